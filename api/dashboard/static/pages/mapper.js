// The form that says how to read a table: the column of each field, its encoding, sheet and threshold.

import { html, useEffect, useRef } from "../vendor/preact-htm.js";
import { t } from "../language.js";
import { LABELLED } from "../methods.js";
import { Busy, Field } from "../parts.js";
import { Code, User, plain } from "../text.js";
import { ErrorBox, Reasons } from "../wording.js";
import { Conversations } from "./turns.js";

/** The fields of each kind of table beside the prompt. */
const ANSWERS = {
  pairs: ["chosen", "rejected"],
  votes: ["answer_1", "answer_2", "preferred"],
  [LABELLED]: ["completion", "label"],
};
const KINDS = Object.keys(ANSWERS);
const ALWAYS_ASKED = ["system"];
const KEPT = "columns";
const MOST_KEPT = 50;

// -- what was chosen before

const keyOf = (columns) => JSON.stringify([...columns].sort());

function allKept() {
  try {
    return JSON.parse(localStorage.getItem(KEPT)) ?? [];
  } catch {
    return [];
  }
}

/** The columns that were chosen for the last file with the same headers. */
export function remembered(columns) {
  if (!columns.length) return undefined;
  return allKept().find(([key]) => key === keyOf(columns))?.[1];
}

export function remember(columns, chosen) {
  const map = Object.fromEntries(Object.entries(chosen).filter(([, column]) => column));
  const others = allKept().filter(([key]) => key !== keyOf(columns));
  try {
    localStorage.setItem(KEPT, JSON.stringify([[keyOf(columns), map], ...others].slice(0, MOST_KEPT)));
  } catch {
    // A full or closed store costs the memory, not the upload.
  }
}

/** The guess at a question as options; undefined where there is none. */
export const answeredBy = (question) =>
  question?.guess === null || question?.guess === undefined ? undefined : { [question.about]: question.guess };

// -- the form

/** Whether a layout has a name that says more than which columns were read. */
export const isPublished = (layout) => Boolean(layout) && !["own", "map", "names"].includes(layout);

/** The kind of table that a map is for. A field that has no column yet is among its keys as well. */
const kindOf = (map, found) => KINDS.find((kind) => ANSWERS[kind].some((field) => field in map)) ?? found.kind ?? "pairs";

/** `found`: of a check; `options`: what was said so far; `choices`: of each question that was asked. */
export function Mapper({ file, found, options, choices, wasRemembered, isReading, error, onChange, onUpload, onCancel }) {
  const heading = useRef(null);
  useEffect(() => heading.current?.focus(), []);
  const question = found.error?.question;
  const map = options.map ?? found.mapping ?? {};
  const isComplete = question?.about === "map" ? isWhole(map) : !question;
  const columns = html`<${Columns} found=${found} map=${map} isOpen=${!isComplete} onMap=${(changed, more) => say({ map: changed, ...more })} />`;
  // Skipping helps if some rows are good, and the errors are of other rows, not of the file.
  const isOfRows = found.rows.length > 0 && found.error?.details.some((detail) => detail.line !== undefined);
  const broken = found.skipped_rows || (isOfRows ? found.error_count : 0);
  const isGood = found.valid || (question?.about === "map" && isComplete);
  const say = (changes) => onChange({ ...options, ...changes });
  return html`
    <section class="box plain mapper" aria-labelledby="mapper-title">
      <h2 id="mapper-title" tabindex="-1" ref=${heading}>${t("mapper.title")} <${User} text=${file.name} /></h2>
      ${wasRemembered && html`<p class="hint">${t("mapper.remembered")}</p>`}
      <${Openings} found=${found} options=${options} choices=${choices} isLabelled=${kindOf(map, found) === LABELLED} say=${say} />
      ${
        found.columns.length > 0 &&
        (question?.about === "map" || Object.keys(map).length
          ? columns
          : html`<details><summary>${t("mapper.columns")}</summary>${columns}</details>`)
      }
      ${question?.about === "map" && !isComplete && html`<p class="wrong">${t("mapper.incomplete")}</p>`}
      ${!question && html`<${ErrorBox} error=${found.error} title=${t("datasets.refused")} />`}
      ${
        (broken > 0 || options.on_invalid) &&
        html`<label class="choice">
          <input type="checkbox" checked=${options.on_invalid === "skip"} onChange=${(event) => say({ on_invalid: event.currentTarget.checked ? "skip" : undefined })} />
          <span>${t("mapper.skip")} <span class="hint">${t("mapper.broken", { n: broken })} ${t("mapper.skip_hint")}</span></span>
        </label>`
      }
      <${ErrorBox} error=${error} />
      <p class="buttons">
        <button type="button" class="main" disabled=${isReading || !isGood} onClick=${onUpload}>${t("mapper.upload")}</button>
        <button type="button" onClick=${onCancel}>${t("cancel")}</button>
        ${isReading && html`<${Busy} text=${t("datasets.reading")} />`}
      </p>
      <${Reasons} of=${found.warnings} />
      <${Conversations} rows=${found.conversations} />
    </section>
  `;
}

/** Whether each field that a kind of row needs has a column. */
export function isWhole(map) {
  const needed = ANSWERS[kindOf(map, {})];
  return Boolean(map.prompt) && needed.every((field) => map[field]);
}

/** Code page, sheet and threshold, where the file leaves them open. */
function Openings({ found, options, choices, isLabelled, say }) {
  const chosen = (about) => options[about] ?? "";
  const list = (about, label, hint) =>
    choices[about] &&
    html`<${Field} id="m-${about}" label=${label} hint=${hint}>
      ${(attributes) => html`<select ...${attributes} translate=${false} value=${chosen(about)} onChange=${(event) => say({ [about]: event.currentTarget.value, ...(about === "sheet" ? { map: undefined } : {}) })}>
        ${!chosen(about) && html`<option value=""></option>`}
        ${choices[about].map((choice) => html`<option value=${choice}>${plain(choice)}</option>`)}
      </select>`}
    </${Field}>`;
  return html`
    <p class="hint">
      ${t("dataset.file_kind")}: <${Code} text=${found.file_kind ?? "?"} />
      ${found.encoding && html` · ${t("dataset.encoding")}: <${Code} text=${found.encoding} />`}
      ${isPublished(found.layout) && html` · ${t("dataset.layout")}: <${Code} text=${found.layout} />`}
    </p>
    <div class="openings">
      ${list("encoding", t("dataset.encoding"), t("mapper.encoding_hint"))} ${list("sheet", t("mapper.sheet"))}
      ${
        ((choices.threshold && isLabelled) || options.threshold !== undefined) &&
        html`<${Field} id="m-threshold" label=${t("mapper.threshold")} hint=${html`${t("mapper.scores")} ${(choices.threshold ?? []).map((each) => html`<${User} text=${each} /> `)}`}>
          ${(attributes) => html`<input ...${attributes} type="number" step="any" dir="ltr" value=${options.threshold ?? ""}
            onKeyDown=${(event) => event.key === "Enter" && (event.preventDefault(), event.currentTarget.blur())}
            onChange=${(event) => say({ threshold: event.currentTarget.value === "" ? undefined : Number(event.currentTarget.value) })} />`}
        </${Field}>`
      }
    </div>
  `;
}

/** A list of columns for each field of the chosen kind of row. */
function Columns({ found, map, isOpen, onMap }) {
  const kind = kindOf(map, found);
  const fields = new Set(["prompt", ...ANSWERS[kind], ...Object.keys(map).filter((field) => map[field]), ...ALWAYS_ASKED]);
  function turn(to) {
    const kept = Object.entries(map).filter(([field]) => !ANSWERS[kind].includes(field));
    // The answers keep their columns in their order, as a beginning.
    const moved = ANSWERS[to].map((field, at) => [field, map[ANSWERS[kind][at]] ?? ""]);
    onMap(Object.fromEntries([...kept, ...moved]), { threshold: undefined });
  }
  return html`
    <fieldset>
      <legend>${t("mapper.columns")}</legend>
      <div class="kinds" role="radiogroup" aria-label=${t("mapper.rows_are")}>
        ${KINDS.map(
          (each) => html`<label class="choice">
            <input type="radio" name="mapper-kind" checked=${kind === each} onChange=${() => turn(each)} />
            <span>${t(`mapper.${each}`)}</span>
          </label>`,
        )}
      </div>
      <div class="numbers">
        ${[...fields].map(
          (field) => html`<${Field} id="m-${field}" label=${t(`rows.${field}`)} name=${field} hint=${firstCell(found.cells, map[field])}>
            ${(attributes) => html`<select ...${attributes} name="" value=${map[field] ?? ""} onChange=${(event) => onMap({ ...map, [field]: event.currentTarget.value })}>
              <option value="">${t("mapper.not_read")}</option>
              ${columnsWith(found.columns, map[field]).map((column) => html`<option value=${column} translate=${false}>${plain(column)}</option>`)}
            </select>`}
          </${Field}>`,
        )}
      </div>
      <details open=${isOpen}>
        <summary>${t("mapper.cells")}</summary>
        <${Cells} cells=${found.cells} columns=${found.columns} />
      </details>
    </fieldset>
  `;
}

/** The first cell of a column that was chosen. */
const firstCell = (cells, column) => cells[column]?.length > 0 && html`<${User} text=${cells[column][0]} />`;

const columnsWith = (columns, chosen) => (!chosen || columns.includes(chosen) ? columns : [...columns, chosen]);

/** The first cells of each column, for whoever has to choose among them. */
const Cells = ({ cells, columns }) => html`
  <dl class="cells" tabindex="0" aria-label=${t("mapper.cells")}>
    ${columns
      .filter((column) => cells[column])
      .map(
        (column) => html`<div>
          <dt><${User} text=${column} /></dt>
          ${cells[column].map((cell) => html`<dd><${User} text=${cell} /></dd>`)}
        </div>`,
      )}
  </dl>
`;

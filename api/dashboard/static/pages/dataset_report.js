// The report about a dataset: the shortcuts it offers, as sentences and as intervals, and what else its rows show.

import { html, useState } from "../vendor/preact-htm.js";
import { ApiError, get, usePoll } from "../api.js";
import { decimal, number, t } from "../language.js";
import { Amount, Facts, Field, Loaded, Table } from "../parts.js";
import { Block, Code } from "../text.js";
import { ErrorBox, Message } from "../wording.js";

const ASKED_EVERY_MS = 2000;
const SHOWN_RULES = 12;
const LOWEST = 0.4;
const SIDES = ["chosen", "rejected", "desirable", "undesirable", "prompt"];
const isWaiting = (task) => task?.state === "queued" || task?.state === "running";
const percent = (share) => `${number(Math.round(1000 * share) / 10)}%`;

export function DatasetReport({ dataset }) {
  const [model, setModel] = useState("");
  const [asked, setAsked] = useState("");
  const found = usePoll(
    (signal) => get(`/v1/datasets/${dataset.id}/report`, { wait_s: 0, ...(asked && { model: asked }) }, signal),
    (task) => (isWaiting(task) ? ASKED_EVERY_MS : 0),
    [dataset.id, asked],
  );
  function ask(event) {
    event.preventDefault();
    setAsked(model.trim());
  }
  return html`
    <${Loaded} of=${found}>
      ${(task) =>
        task.error
          ? html`<${ErrorBox} error=${new ApiError(200, task.error)} />`
          : task.result
            ? html`<${Findings} report=${task.result} /><${Tokens} of=${task.result.tokens} /><${Figures} report=${task.result} />`
            : html`<p class="hint" role="status">${t("report.computing")}</p>`}
    </${Loaded}>
    <form class="filters" onSubmit=${ask}>
      <${Field} id="r-model" label=${t("report.model")}>
        ${(attributes) => html`<input ...${attributes} dir="ltr" value=${model} onInput=${(event) => setModel(event.currentTarget.value)} />`}
      </${Field}>
      <button>${t("report.count")}</button>
    </form>
  `;
}

/** What to read first: of a dataset's report, or of the summary in a dry run. */
export function Findings({ report }) {
  const { shortcuts, findings } = report;
  const others = findings.filter((each) => each.code !== "shortcut");
  return html`
    ${shortcuts.named.map((each) => html`<${Shortcut} of=${each} />`)}
    ${shortcuts.none && html`<p><${Message} of=${shortcuts.none} />.</p>`}
    ${shortcuts.note && html`<p class="hint"><${Message} of=${shortcuts.note} />.</p>`}
    ${others.length > 0 && html`<ul class="findings">${others.map((each) => html`<li><${Message} of=${each} />.</li>`)}</ul>`}
    <${Intervals} shortcuts=${shortcuts} />
  `;
}

/** How many tokens the model's vocabulary makes of a word, by side and by variety. */
export function Tokens({ of }) {
  if (!of) return null;
  const sides = SIDES.filter((side) => side in of.sides).map((side) => ({ name: t(`rows.${side}`), ...of.sides[side] }));
  const varieties = Object.entries(of.varieties).map(([variety, found]) => ({ name: t(`variety.${variety}`), ...found }));
  const hasVarieties = varieties.length > 1;
  const ratio = (value) => (value === null || value === undefined ? "–" : html`<span class="number" dir="ltr">${decimal(value, 2)}</span>`);
  return html`<h3>${t("report.tokens")}: <${Code} text=${of.model} /></h3>
    <${Table} caption=${t("report.tokens")} rows=${[...sides, ...(hasVarieties ? varieties : [])]} keyOf=${(row) => row.name} columns=${[
      [t("report.side"), (row) => row.name],
      [t("report.per_word"), (row) => ratio(row.tokens_per_word)],
      ...(hasVarieties ? [[t("report.next_to_msa"), (row) => ratio(row.next_to_msa)]] : []),
    ]} />
    <${Facts} rows=${[
      [t("report.counted"), html`<${Amount} value=${of.rows} />`],
      [t("report.long_prompts", { most: number(of.max_prompt_length) }), html`<${Amount} value=${of.prompts_over_limit} />`],
      [t("report.long_rows", { most: number(of.max_length) }), html`<${Amount} value=${of.rows_over_limit} />`],
    ]} />`;
}

/** A shortcut in words, what to do about it, and rows that show it. */
const Shortcut = ({ of: each }) => html`
  <section class="box warning">
    <p><strong><${Message} of=${each} />.</strong></p>
    <p><${Message} of=${each.advice} /></p>
    ${each.examples && html`<details>
      <summary>${t("report.examples")}</summary>
      ${each.examples.map(
        (row) => html`<article class="row">
          <h3>${t("rows.row", { n: row.row })} ${row.label !== undefined && html` · ${t(row.label ? "rows.desirable" : "rows.undesirable")}`}</h3>
          ${["prompt", "completion", "chosen", "rejected"]
            .filter((name) => row[name] !== undefined)
            .map((name) => html`<h4>${t(`rows.${name}`)}</h4><${Block} text=${row[name]} />`)}
        </article>`,
      )}
    </details>`}
  </section>
`;

/** Each rule as a dot with its interval, between the line of chance and the bound from which a rule is named. */
function Intervals({ shortcuts }) {
  const rules = shortcuts.rules?.slice(0, SHOWN_RULES);
  if (!rules?.length) return null;
  const lowest = Math.min(LOWEST, ...rules.map((each) => Math.floor(10 * each.low) / 10));
  return html`
    <figure class="intervals">
      <figcaption>${t("report.intervals", { bound: Math.round(100 * shortcuts.bound) })}</figcaption>
      <table>
        <thead class="unseen">
          <tr><th scope="col">${t("report.rule")}</th><th scope="col">${t("report.picture")}</th><th scope="col">${t("report.right")}</th></tr>
        </thead>
        <tbody>
          ${rules.map(
            (each) => html`<tr class=${each.named ? "named" : ""}>
              <th scope="row"><${Message} of=${each} /></th>
              <td class="picture"><${Interval} of=${each} lowest=${lowest} bound=${shortcuts.bound} /></td>
              <td><span class="number" dir="ltr">${percent(each.share)}</span>${" "}
                <span class="number faint" dir="ltr">${percent(each.low)}–${percent(each.high)}</span></td>
            </tr>`,
          )}
        </tbody>
      </table>
    </figure>
  `;
}

/** One dot and its interval. Grows from where reading begins: mirrored in Arabic. */
function Interval({ of: { share, low, high }, lowest, bound }) {
  const isMirrored = document.documentElement.dir === "rtl";
  const place = (value) => {
    const across = (100 * (Math.max(value, lowest) - lowest)) / (1 - lowest);
    return `${2 + 0.96 * (isMirrored ? 100 - across : across)}%`;
  };
  const mark = (value, kind) => html`<line class=${kind} x1=${place(value)} x2=${place(value)} y1="0" y2="24" />`;
  return html`<svg width="100%" height="24" aria-hidden="true">
    ${mark(0.5, "chance")}${mark(bound, "bound")}
    <line class="span" x1=${place(low)} x2=${place(high)} y1="12" y2="12" />
    <circle cx=${place(share)} cy="12" r="5" />
  </svg>`;
}

const signLabel = (sign) => (SIGNS_OF_OURS.has(sign) ? t(`sign.${sign}`) : t(`trait.${sign}`));
const SIGNS_OF_OURS = new Set(["reversed", "bidi_controls", "zero_width", "arabic_marks", "persian_marks", "arabizi", "mojibake", "not_nfc"]);

/** Every figure by side, and lengths by variety. */
function Figures({ report }) {
  const sides = SIDES.filter((side) => side in report.sides);
  const signs = [...new Set(sides.flatMap((side) => Object.keys(report.sides[side].signs)))].sort();
  const lengths = sides.map((side) => ({ variety: "", side, ...report.sides[side] }));
  const byVariety = Object.entries(report.varieties).flatMap(([variety, found]) =>
    SIDES.filter((side) => side in found && side !== "prompt").map((side) => ({ variety, side, ...found[side] })),
  );
  return html`
    <details class="figures">
      <summary>${t("report.figures")}</summary>
      <${Table} caption=${t("report.lengths")} rows=${[...lengths, ...byVariety]} keyOf=${(row) => `${row.variety} ${row.side}`} columns=${[
        [t("report.side"), (row) => html`${t(`rows.${row.side}`)}${row.variety && ` · ${t(`variety.${row.variety}`)}`}`],
        [t("report.texts"), (row) => html`<${Amount} value=${row.texts} />`],
        [t("report.words"), (row) => html`<${Amount} value=${row.words.median} />`],
        [t("report.characters"), (row) => html`<${Amount} value=${row.characters.median} />`],
      ]} />
      <${Table} caption=${t("report.signs")} rows=${signs} keyOf=${(sign) => sign} columns=${[
        [t("report.texts_with"), (sign) => signLabel(sign)],
        ...sides.map((side) => [t(`rows.${side}`), (sign) => html`<span class="number" dir="ltr">${percent(report.sides[side].signs[sign]?.share ?? 0)}</span>`]),
      ]} />
    </details>
  `;
}

// Small pieces that every page uses.

import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { Block, Code, User, plain } from "./text.js";
import { ago, bytes, has, instant, instantInZone, instantToSecond, number, pieces, t } from "./language.js";
import { methodTitle } from "./methods.js";

const Stamp = ({ at, say }) => (at ? html`<time datetime=${at} title=${instantInZone(at)}>${say(at)}</time>` : "–");
export const Time = ({ at }) => html`<${Stamp} at=${at} say=${instant} />`;
export const TimeToSecond = ({ at }) => html`<${Stamp} at=${at} say=${instantToSecond} />`;
export const Amount = ({ value, digits = 6 }) =>
  html`<span class="number" dir="ltr">${value === null || value === undefined ? "–" : number(value, digits)}</span>`;
export const Bytes = ({ count }) => (count === null || count === undefined ? "–" : bytes(count));

/** How long ago something was, kept right while the page is open. */
export function Ago({ at }) {
  const [, renew] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => renew((count) => count + 1), 30_000);
    return () => clearInterval(timer);
  }, []);
  return html`<${Stamp} at=${at} say=${ago} />`;
}

const MARKS = { queued: "◷", running: "▶", paused: "❚❚", succeeded: "✓", failed: "✗", cancelled: "⊘" };

/** A job's state as a mark, a word and a colour. */
export const State = ({ state }) =>
  html`<span class="state ${state}"><span aria-hidden="true">${MARKS[state]}</span> ${t(`state.${state}`)}</span>`;

const EFFECT_MARKS = { changed: "●", hardly_changed: "○", collapsed: "✗" };

/** What a run did to its model as a mark, a word and a colour; nothing if it was not measured. */
export const Effect = ({ effect }) =>
  effect &&
  html`<span class="effect ${effect}"><span aria-hidden="true">${EFFECT_MARKS[effect]}</span> ${t(`effect.${effect}`)}</span>`;

/** A method's name, the same in every language. */
export const Method = ({ name }) => html`<span dir="ltr" translate=${false}>${methodTitle(name)}</span>`;

/** How far a job is. */
export const Progress = ({ job }) => html`
  <span class="progress">
    <progress max="100" value=${job.percent} aria-label=${t("job.progress")}></progress>
    <span class="number" dir="ltr">${number(Math.round(job.percent))} %</span>
  </span>
`;

/** An error of the service: what happened, what to do, and every detail. */
export function ErrorBox({ error, title }) {
  if (!error) return null;
  const code = has(`error.${error.code}`) ? error.code : "internal";
  return html`
    <div class="box error" role="alert">
      <strong>${title ? `${title}: ` : ""}${t(`error.${code}`)}</strong>
      ${error.message && !isSaid(error.details) && html`<${Block} text=${error.message} kind="plain" />`}
      ${!isOfFile(error) && html`<p>${t(`hint.${code}`)}</p>`}
      ${error.details?.length > 0 && html`<${Details} of=${error.details} />`}
    </div>
  `;
}

/** Whether the details say in the reader's language what the message says in English. */
const isSaid = (details) => details?.length > 0 && details.every(({ code }) => code && has(`reason.${code}`));

/** Whether an error is of a whole file: its reason says what to do, and no row can be mended. */
const isOfFile = ({ code, details }) => code === "data_invalid" && isSaid(details) && details.every(({ line }) => line === undefined);

/** What is wrong with which rows, one thing a line. */
const Details = ({ of: details }) => html`
  <ul>
    ${details.slice(0, 50).map(
      (detail) => html`<li>
        ${detail.line !== undefined && html`${t("error.line", { n: detail.line })} `}
        ${detail.field && html`<${Name} text=${detail.field} /> `}<${Reason} of=${detail} />
        ${detail.count > 1 && html` ${t("error.rows", { n: detail.count })} <span class="number" dir="ltr">${detail.lines.map((line) => number(line)).join(", ")}${detail.count > detail.lines.length ? ", …" : ""}</span>`}
      </li>`,
    )}
  </ul>
`;

/** A field of a spec, or a column of a file, which may be in any script. */
const Name = ({ text }) => (/^[ -~]+$/.test(text) ? html`<${Code} text=${text} />` : html`<strong><${User} text=${text} /></strong>`);

/** Why something is wrong, in the reader's language where the reason has a name that we have words for. */
const Reason = ({ of: { code, reason, params } }) =>
  code && has(`reason.${code}`)
    ? pieces(`reason.${code}`).map((piece, at) => (at % 2 ? html`<${Value} name=${piece} of=${params?.[piece]} />` : piece))
    : html`<${User} text=${reason} />`;

/** A value within a sentence: a number, a kind of file or row that has a name here, or text of a user. */
function Value({ name, of: value }) {
  if (typeof value === "number") return number(value);
  if (Array.isArray(value)) return value.map((each, at) => html`${at > 0 && t("list.mark")}<${User} text=${each} />`);
  const isKind = name === "kind" || name === "expected";
  if (isKind && has(`file.${value}`)) return t(`file.${value}`);
  if (isKind && has(`kind.${value}`)) return t(`kind.${value}`);
  return html`<${User} text=${value} />`;
}

/** What is valid in a file and probably a mistake, in the form of an error's details. */
export const Reasons = ({ of: details }) =>
  details?.length > 0 &&
  html`<div class="box warning">
    <h2>${t("warnings.title")}</h2>
    <${Details} of=${details} />
  </div>`;

/** Warnings of the service: `{code, message}`. */
export const Warnings = ({ found }) =>
  found?.length
    ? html`<div class="box warning">
        <h2>${t("warnings.title")}</h2>
        <ul>
          ${found.map((each) => html`<li><${Code} text=${each.code} />: <${User} text=${each.message} /></li>`)}
        </ul>
      </div>`
    : null;

export const Busy = ({ text }) => html`<p class="busy" role="status">${text ?? t("busy")}</p>`;

/** What a question answered so far: nothing yet, an error, or the page's part. */
export const Loaded = ({ of, children }) =>
  html`<${ErrorBox} error=${of.error} />${of.data ? children(of.data) : of.error ? null : html`<${Busy} />`}`;

/** A table that turns into cards where the screen is narrow. `columns`: `[heading, cell(row)]`. */
export const Table = ({ caption, columns, rows, keyOf }) => html`
  <table class="cards">
    <caption class="unseen">
      ${caption}
    </caption>
    <thead>
      <tr>
        ${columns.map(([heading]) => html`<th scope="col">${heading}</th>`)}
      </tr>
    </thead>
    <tbody>
      ${rows.map(
        (row) => html`<tr key=${keyOf(row)}>
          ${columns.map(([heading, cell]) => html`<td data-label=${heading}>${cell(row)}</td>`)}
        </tr>`,
      )}
    </tbody>
  </table>
`;

/** The buttons below a page of a list, which goes from newest to oldest. */
export const Pager = ({ cursor, next, onCursor, children }) => html`
  <p class="buttons">
    ${cursor && html`<button type="button" onClick=${() => onCursor(null)}>${t("jobs.newest")}</button>`}
    ${next && html`<button type="button" onClick=${() => onCursor(next)}>${t("jobs.older")}</button>`}
    ${children}
  </p>
`;

/** Terms and what they are. `rows`: `[term, text]`; what is undefined is left out. */
export const Facts = ({ rows }) => html`
  <dl class="facts">
    ${rows.filter(([, value]) => value !== undefined).map(([term, value]) => html`<div><dt>${term}</dt><dd>${value}</dd></div>`)}
  </dl>
`;

/** A button that asks before it acts; `act` may answer a promise, whose error is shown. */
export function Confirm({ label, question, act, danger = false }) {
  const dialog = useRef(null);
  const [state, setState] = useState({ busy: false, error: null });
  const [isOpen, setOpen] = useState(false);
  useEffect(() => {
    if (isOpen) dialog.current.showModal();
  }, [isOpen]);
  async function go() {
    setState({ busy: true, error: null });
    try {
      await act();
      setOpen(false);
      setState({ busy: false, error: null });
    } catch (error) {
      setState({ busy: false, error });
    }
  }
  return html`
    <button type="button" class=${danger ? "danger" : ""} onClick=${() => setOpen(true)}>${label}</button>
    ${
      isOpen &&
      html`<dialog ref=${dialog} aria-label=${label} onClose=${() => setOpen(false)}>
        <p>${question}</p>
        <${ErrorBox} error=${state.error} />
        <p class="buttons">
          <button type="button" class=${danger ? "danger" : "main"} disabled=${state.busy} onClick=${go}>${label}</button>
          <button type="button" onClick=${() => dialog.current.close()}>${t("cancel")}</button>
        </p>
      </dialog>`
    }
  `;
}

/** A button whose act may take a while; its error is shown beside it. */
export function Action({ label, act, main = false }) {
  const [state, setState] = useState({ busy: false, error: null });
  async function go() {
    setState({ busy: true, error: null });
    try {
      await act();
      setState({ busy: false, error: null });
    } catch (error) {
      setState({ busy: false, error });
    }
  }
  return html`
    <button type="button" class=${main ? "main" : ""} disabled=${state.busy} onClick=${go}>${label}</button>
    <${ErrorBox} error=${state.error} />
  `;
}

/** A labelled field of a form, with a hint and what is wrong with it. `children(attributes)` makes the input. */
export function Field({ id, label, name, hint, error, children }) {
  const about = [hint && `${id}-hint`, error && `${id}-error`].filter(Boolean).join(" ");
  const attributes = { id, name, "aria-describedby": about || undefined, "aria-invalid": error ? "true" : undefined };
  return html`
    <div class="field">
      <label for=${id}>${label}${name && html` <${Code} text=${name} />`}</label>
      ${children(attributes)}
      ${hint && html`<p class="hint" id="${id}-hint">${hint}</p>`}
      ${error && html`<p class="wrong" id="${id}-error"><${User} text=${error} /></p>`}
    </div>
  `;
}

/** Tokens of a rendered row; those that count towards the loss are marked. */
export const Tokens = ({ tokens }) =>
  html`<${Block} kind="tokens">
    ${tokens.map((token) => html`<span class=${token.trained ? "trained" : ""} title=${token.id}>${token.text}</span>`)}
  </${Block}>`;

/** Rows as the model sees them. */
export const RenderedRows = ({ rows }) => html`
  <p>${t("rows.mask")}</p>
  ${rows.map(
    (row) => html`<article class="row">
      <h3>
        ${t("rows.row", { n: typeof row.row === "string" ? plain(row.row) : row.row })}
        ${row.label !== null && html` · ${t(row.label ? "rows.desirable" : "rows.undesirable")}`}
      </h3>
      ${row.dropped_because && html`<p class="wrong">${t("rows.dropped", { why: t(`finding.${row.dropped_because}`) })}</p>`}
      <h4>${t("rows.prompt")}</h4>
      <${Tokens} tokens=${row.prompt} />
      ${Object.entries(row.answers).map(([name, tokens]) => html`<h4>${t(`rows.${name}`)}</h4><${Tokens} tokens=${tokens} />`)}
    </article>`,
  )}
`;

// Small pieces that every page uses.

import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { cancelTask } from "./api.js";
import { Block, Code, plain } from "./text.js";
import { ago, bytes, instant, instantInZone, instantToSecond, number, t } from "./language.js";
import { methodTitle } from "./methods.js";
import { ErrorBox, Reason } from "./wording.js";

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
  html`<span class="effect ${effect}"><span aria-hidden="true">${EFFECT_MARKS[effect]}</span> ${t(`verdict.${effect}`)}</span>`;

/** A method's name, the same in every language. */
export const Method = ({ name }) => html`<span dir="ltr" translate=${false}>${methodTitle(name)}</span>`;

/** How far a job is. */
export const Progress = ({ job }) => html`
  <span class="progress">
    <progress max="100" value=${job.percent} aria-label=${t("job.progress")}></progress>
    <span class="number" dir="ltr">${number(Math.round(job.percent))} %</span>
  </span>
`;

export const Busy = ({ text }) => html`<p class="busy" role="status">${text ?? t("busy")}</p>`;

/** As `Busy`, for a task that can be cancelled once it has an id. */
export function BusyTask({ text, id }) {
  const [state, setState] = useState({ asked: null, error: null });
  async function cancel() {
    setState({ asked: id, error: null });
    try {
      await cancelTask(id);
    } catch (error) {
      setState({ asked: null, error });
    }
  }
  return html`
    <p class="busy" role="status">${text}</p>
    ${id && html`<button type="button" disabled=${state.asked === id} onClick=${cancel}>${t("task.cancel")}</button>`}
    <${ErrorBox} error=${state.error} />
  `;
}

/**
 * What a question answered so far: nothing yet, an error, or the page's part. `kind`: what the question is about, if it may
 * be gone: `job` or `dataset`.
 */
export const Loaded = ({ of, kind, children }) =>
  kind && !of.data && of.error?.code === "not_found"
    ? html`<${Missing} kind=${kind} />`
    : html`<${ErrorBox} error=${of.error} />${of.data ? children(of.data) : of.error ? null : html`<${Busy} />`}`;

export const isId = (text) => /^[0-9a-f]{32}$/.test(text);

/** A page of something that does not exist, with the way to what does. `kind`: `job` or `dataset`. */
export const Missing = ({ kind }) => html`<p>${t(`missing.${kind}`)} <a href="#/${kind}s">${t(`${kind}s.title`)}</a></p>`;

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
          ${columns.map(([heading, cell]) => html`<td data-label=${heading}><div>${cell(row)}</div></td>`)}
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

/** Attributes of an input, which mark it if it is wrong. `wrong`: details of an error. */
export const marks = (id, hint, wrong) => ({
  "aria-describedby": [hint && `${id}-hint`, wrong?.length && `${id}-error`].filter(Boolean).join(" ") || undefined,
  "aria-invalid": wrong?.length ? "true" : undefined,
});

/** What is wrong with an input, a reason a line. */
export const Wrong = ({ id, of: wrong }) =>
  wrong?.length > 0 &&
  html`<div class="wrong" id="${id}-error">${wrong.map((detail) => html`<p><${Reason} of=${detail} /></p>`)}</div>`;

/** The details of an error by the field that they are about, for `Field`. */
export const byField = (error, placeOf = (field) => field) => Object.groupBy(error?.details ?? [], ({ field }) => placeOf(field));

/**
 * A labelled field of a form, with a hint and what is wrong with it. `wrong`: details of an error; `children(attributes)`
 * makes the input.
 */
export function Field({ id, label, name, hint, wrong, children }) {
  const attributes = { id, name, ...marks(id, hint, wrong) };
  return html`
    <div class="field">
      <label for=${id}>${label}${name && html` <${Code} text=${name} />`}</label>
      ${children(attributes)}
      ${hint && html`<p class="hint" id="${id}-hint">${hint}</p>`}
      <${Wrong} id=${id} of=${wrong} />
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
      ${row.dropped_because && html`<p class="wrong">${t("rows.dropped", { why: t(`found.${row.dropped_because}`) })}</p>`}
      <h4>${t("rows.prompt")}</h4>
      <${Tokens} tokens=${row.prompt} />
      ${Object.entries(row.answers).map(([name, tokens]) => html`<h4>${t(`rows.${name}`)}</h4><${Tokens} tokens=${tokens} />`)}
    </article>`,
  )}
`;

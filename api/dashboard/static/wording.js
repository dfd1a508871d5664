// What the service says, in the reader's language: errors, their details, warnings. Knows no page.
//
// The service gives each sentence a code and its values. What has no code, such as an error that an earlier version stored,
// is quoted in English.

import { html } from "./vendor/preact-htm.js";
import { current, has, number, pieces, t } from "./language.js";
import { Code, Prose, Quotation, User } from "./text.js";

/** The value that is the words of a library or of a process, and how long it may be within a sentence. */
const QUOTED = "problem";
const SHORT = 40;

const placesOf = (code, n) => pieces(code, n).filter((_, at) => at % 2);

/** Whether a catalogue has a sentence, and a stored one has all its values. */
const isKnown = (code, params = {}) => Boolean(code) && has(code) && placesOf(code, params.n).every((name) => name in params);

/** A sentence by its code and values, and below it the long words of a library. */
export function Worded({ code, params = {} }) {
  const parts = pieces(code, params.n);
  const quoted = parts.includes(QUOTED) && typeof params[QUOTED] === "string" ? params[QUOTED] : "";
  const isName = (at) => parts[at - 1]?.endsWith("`") && parts[at + 1]?.startsWith("`");
  const shown = parts.map((piece, at) => {
    if (at % 2 && piece === QUOTED && quoted) return quoted.length > SHORT ? "…" : html`<${Quotation} text=${quoted} isInline=${true} />`;
    if (at % 2) return html`<${Value} of=${params[piece]} isName=${isName(at)} />`;
    return html`<${Prose} text=${piece.slice(isName(at - 1) ? 1 : 0, isName(at + 1) ? -1 : undefined)} />`;
  });
  return html`${shown}${quoted.length > SHORT && html`<${Quotation} text=${quoted} />`}`;
}

/** A value within a sentence: a number, another sentence, a list of them, or text of a user. */
function Value({ of: value, isName }) {
  if (typeof value === "number") return html`<span class="number" dir="ltr">${number(value)}</span>`;
  if (Array.isArray(value)) return value.map((each, at) => [at > 0 && t("list.mark"), html`<${Value} of=${each} isName=${isName} />`]);
  if (typeof value === "boolean" || value === null) return html`<${Code} text=${String(value)} />`;
  if (typeof value === "object") return html`<${Said} code=${value.code} params=${value.params} english=${value.code} />`;
  return isName ? html`<${Code} text=${value} />` : html`<${User} text=${value} />`;
}

/** A sentence in the reader's language, or else its English. */
export function Said({ code, params, english }) {
  if (isKnown(code, params)) return html`<${Worded} code=${code} params=${params} />`;
  if (!english) return null;
  return current() === "en" ? html`<${User} text=${english} />` : html`<${Quotation} text=${english} />`;
}

/** Why something is wrong: of a detail of an error. */
export const Reason = ({ of: { code, params, reason } }) =>
  html`<${Said} code=${code} params=${params} english=${reason} />`;

/** What an error or a warning says. */
export const Message = ({ of: { message, message_code: code, params } }) =>
  html`<${Said} code=${code} params=${params} english=${message} />`;

/** The name of a kind of errors. */
export const errorTitle = (code) => t(has(`error.${code}`) ? `error.${code}` : "error.internal");

/**
 * An error: what happened, what to do, and every detail. `isPlaced(detail)`: whether the page shows the detail elsewhere, at
 * the field that it is about. If it shows them all, the box only points to them.
 */
export function ErrorBox({ error, title, isPlaced = () => false }) {
  if (!error) return null;
  const details = error.details ?? [];
  const shown = details.filter((detail) => !isPlaced(detail));
  const placed = details.length - shown.length;
  const says = Boolean(error.message || error.message_code) && !isSaidBy(details, error);
  const headline = (text) => html`<strong>${title ? `${title}: ` : ""}${text}</strong>`;
  if (placed && !shown.length && !says)
    return html`<div class="box error" role="alert">${headline(t("wrong.fields", { n: placed }))}</div>`;
  return html`
    <div class="box error" role="alert">
      ${headline(errorTitle(error.code))}
      ${says && html`<p><${Message} of=${error} /></p>`}
      ${placed > 0 ? html`<p>${t("wrong.fields", { n: placed })}</p>` : !isOfFile(error) && html`<${Hint} of=${error} />`}
      ${shown.length > 0 && html`<${Details} of=${shown} />`}
    </div>
  `;
}

/** What to do about an error. */
const Hint = ({ of: { code, hint } }) =>
  (has(`hint.${code}`) || hint) && html`<p><${Said} code=${`hint.${code}`} english=${hint} /></p>`;

/** Whether the message only repeats a detail. */
const isSaidBy = (details, { message }) => details.some(({ reason }) => reason && message.includes(reason));

/** Whether an error is of a whole file: its reason says what to do, and no row can be mended. */
const isOfFile = ({ code, details }) =>
  code === "data_invalid" &&
  details?.length > 0 &&
  details.every(({ code: reason, params, line }) => line === undefined && isKnown(reason, params));

/** What is wrong with which rows, one thing a line. */
export const Details = ({ of: details }) => html`
  <ul>
    ${details.slice(0, 50).map(
      (detail) => html`<li>
        ${detail.line !== undefined && html`${t("wrong.line", { n: detail.line })} `}
        ${detail.field && html`<${Name} text=${detail.field} /> `}<${Reason} of=${detail} />
        ${detail.count > 1 && html` ${t("wrong.rows", { n: detail.count })} <span class="number" dir="ltr">${detail.lines.map((line) => number(line)).join(", ")}${detail.count > detail.lines.length ? ", …" : ""}</span>`}
      </li>`,
    )}
  </ul>
`;

/** A field of a spec, or a column of a file, which may be in any script. */
const Name = ({ text }) => (/^[ -~]+$/.test(text) ? html`<${Code} text=${text} />` : html`<strong><${User} text=${text} /></strong>`);

/** What is valid in a file and probably a mistake, in the form of an error's details. */
export const Reasons = ({ of: details }) =>
  details?.length > 0 &&
  html`<div class="box warning">
    <h2>${t("warnings.title")}</h2>
    <${Details} of=${details} />
  </div>`;

/** Warnings of a job or of a dry run. */
export const Warnings = ({ found }) =>
  found?.length > 0 &&
  html`<div class="box warning">
    <h2>${t("warnings.title")}</h2>
    <ul>
      ${found.map((each) => html`<li><${Message} of=${each} /></li>`)}
    </ul>
  </div>`;

// Text of users on its way to the page: shown as it is, obeyed never. As tafdil/text.py does for terminals.

import { html } from "./vendor/preact-htm.js";

const ANSI = /\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])/g;
const CONTROL = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}]/u;
// Line ends and tabs; joiners of Persian, Urdu and emoji, and Arabic signs that enclose numbers: none reorders anything.
const KEPT = /[\n\t\u200c\u200d\u0600-\u0605\u06dd\u08e2]/;

const isControl = (letter) => CONTROL.test(letter) && !KEPT.test(letter);

/** Children of an element: the text, with each control or format character as a visible escape. */
export function visible(text) {
  const plain = String(text ?? "").replace(ANSI, "");
  if (!CONTROL.test(plain)) return plain;
  const parts = [""];
  for (const letter of plain) {
    if (isControl(letter)) parts.push(html`<span class="control" dir="ltr">${escape(letter)}</span>`, "");
    else parts[parts.length - 1] += letter;
  }
  return parts;
}

function escape(letter) {
  const code = letter.codePointAt(0).toString(16).padStart(4, "0");
  return code.length > 4 ? `\\U${code.padStart(8, "0")}` : `\\u${code}`;
}

/** The same as one string, for where no elements can stand: choices of a list, legends of charts. */
export const plain = (text) =>
  Array.from(String(text ?? "").replace(ANSI, ""), (letter) => (isControl(letter) ? escape(letter) : letter)).join("");

/** Text of a user within a line: in its own direction, leaving that of its neighbours alone. */
export const User = ({ text }) => html`<bdi class="user" dir="auto" translate=${false}>${visible(text)}</bdi>`;

/** Text of a user on lines of its own; each paragraph in its own direction. */
export const Block = ({ text, children, kind = "" }) =>
  html`<div class="block ${kind}" dir="auto" translate=${false}>${children ?? visible(text)}</div>`;

/** Names of fields, ids, numbers with signs: left to right whatever stands around. */
export const Code = ({ text }) => html`<code dir="ltr" translate=${false}>${visible(text)}</code>`;

const NAMES = /`([^`]*)`|\b([A-Za-z]+_\w+)/;
// Latin words in an Arabic sentence stand together, so that a command keeps its order. Proper names, such as JSON, are not code.
const NAMES_IN_ARABIC = /`([^`]*)`|([A-Za-z](?:[\w./[\]='"<>:+ -]*[\w\]'">])?)/;
const isProper = (name) => /^[A-Z]/.test(name) && !/[_/:=]/.test(name);

/** A sentence of ours whose names and values stand in backticks, or show by their letters. */
export function Prose({ text }) {
  const isArabic = /[\u0600-\u06ff]/.test(text);
  return text.split(isArabic ? NAMES_IN_ARABIC : NAMES).map((part, at) => {
    if (at % 3 === 0 || !part) return part;
    return at % 3 === 2 && isArabic && isProper(part) ? html`<bdi translate=${false}>${part}</bdi>` : html`<${Code} text=${part} />`;
  });
}

/** The words of a library or of an earlier version: English, on lines of their own or, if there are few, within a sentence. */
export const Quotation = ({ text, isInline = false }) =>
  html`<q class="quotation ${isInline ? "" : "apart"}" dir="ltr" lang="en" translate=${false}>${visible(text)}</q>`;

/** What a machine printed or wrote: English, left to right. */
export const Machine = ({ text, ...rest }) =>
  html`<pre class="machine" dir="ltr" lang="en" translate=${false} tabindex="0" ...${rest}>${visible(text)}</pre>`;

// Below this share of common words, marks would cover nearly everything and show nothing.
const MIN_OVERLAP = 0.3;

const words = (text) => text.match(/\S+\s*|\s+/g) ?? [];

/**
 * Two texts with the words that differ marked.
 * @returns children for the first text (its own words in `del`) and for the second (in `ins`); null if the texts have too few
 *   words in common for marks to help.
 */
export function differences(before, after) {
  const found = Diff.diffArrays(words(before), words(after), {
    comparator: (one, other) => one.trim() === other.trim(),
    timeout: 500,
  });
  if (!found) return null;
  const count = (parts) => parts.reduce((sum, { value }) => sum + value.length, 0);
  const kept = count(found.filter(({ added, removed }) => !added && !removed));
  // Common words are counted once in `found`, and stand in both texts.
  if (2 * kept < MIN_OVERLAP * (kept + count(found))) return null;
  const [left, right] = [[], []];
  for (const { value, added, removed } of found) {
    const text = visible(value.join(""));
    if (!added) left.push(removed ? html`<del>${text}</del>` : text);
    if (!removed) right.push(added ? html`<ins>${text}</ins>` : text);
  }
  return [left, right];
}

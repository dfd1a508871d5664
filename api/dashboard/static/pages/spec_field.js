// One field of a job spec as a part of a form: the input that its types ask for, its help, unit and bounds.
//
// A form keeps of each field a text or a boolean, `null` if the spec is to say null, and undefined where the default holds.

import { html } from "../vendor/preact-htm.js";
import { current, entered, number, t } from "../language.js";
import { Field, marks, Wrong } from "../parts.js";
import { Code, Prose } from "../text.js";

const LONG_TEXT = 1000;
// The largest integer that the service stores: a bound, but none that anybody meets.
const LARGEST = 2 ** 31 - 1;

const takes = (field, ...types) => field.types.some((each) => types.includes(each));
const isText = (field) => takes(field, "list") && field.items.every((each) => each === "string");
const isNumber = (field) => takes(field, "integer", "number");
const isCheckbox = (field) => field.types.join() === "boolean" && !field.nullable;
const isChoice = (field) => !takes(field, "list", "object", "integer", "number") && (takes(field, "boolean") || field.choices.length > 0);

/** Whether a form's value says more than the default. */
export const isSet = (value) => (typeof value === "string" ? value.trim() !== "" : value !== undefined);

/** Whether a field of one method can keep what was entered for the field of the same name of another. */
export const fits = (field, value) =>
  !isChoice(field) || typeof value === "boolean" || ["true", "false", ...field.choices].includes(value) || !isSet(value);

/** A value of a spec as the form keeps it. */
export function kept(field, value) {
  if (value === undefined || (value === null && field.default === null)) return undefined;
  if (value === null || isCheckbox(field)) return value;
  if (typeof value !== "object") return String(value);
  const isPlain = isText(field) && value.every((line) => line.trim() && !/\n|^\[/.test(line));
  const isAlone = takes(field, "string") && value.length === 1;
  return isPlain && !isAlone ? value.join("\n") : JSON.stringify(value, null, 2);
}

/** What the form keeps as a value of the spec. Throws a `SyntaxError` if it is to be JSON and is not. */
export function sent(field, value) {
  if (value === null || typeof value === "boolean") return value;
  if (takes(field, "boolean") && ["true", "false"].includes(value)) return value === "true";
  if (isText(field) && !value.trim().startsWith("[")) {
    const lines = value
      .split("\n")
      .map((line) => line.trim())
      .filter(Boolean);
    return takes(field, "string") && lines.length === 1 ? lines[0] : lines;
  }
  if (takes(field, "list", "object")) return JSON.parse(value);
  // Some fields take a word instead of a number; the service checks it.
  if (isNumber(field)) return entered(value);
  return value;
}

/** The default as a text; empty where there is none. */
function shownDefault({ default: value }) {
  if (value === null || (typeof value === "object" && Object.keys(value).length === 0)) return "";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** The bounds in mathematical notation, which is one for all languages. */
function bounds(field) {
  const marks = [
    ["≥", field.minimum],
    [">", field.exclusive_minimum],
    ["≤", field.maximum],
    ["<", field.exclusive_maximum],
  ];
  const found = marks.filter(([, bound]) => bound !== null && bound < LARGEST);
  return found.length > 0 && html` <span class="number bounds" dir="ltr">${found.map(([mark, bound]) => `${mark} ${number(bound)}`).join(", ")}</span>`;
}

/**
 * `value`: what the form keeps; `change(value)` hears what it is to keep. `isOpen`: an empty field is not the default but
 * left to a recipe.
 */
export function SpecField({ field, value, wrong, change, isOpen }) {
  const id = `f-${field.name}`;
  const label = field.label[current()];
  const form = isText(field) ? t("new.one_per_line") : takes(field, "list", "object") && t("new.as_json");
  const choices = takes(field, "list") && field.choices.map((choice) => html` <${Code} text=${choice} />`);
  const hint = html`<${Prose} text=${field.help[current()]} /> ${form}${choices}${bounds(field)}`;
  if (isCheckbox(field)) return html`<${Checkbox} ...${{ id, label, hint, field, value, wrong, change }} />`;
  const canBeNull = field.nullable && field.default !== null;
  return html`
    <${Field} id=${id} label=${label} name=${field.name} hint=${hint} wrong=${wrong}>
      ${(attributes) => html`
        <${Input} ...${{ attributes, field, value, change, isOpen }} />
        ${
          canBeNull &&
          html`<label class="choice">
            <input type="checkbox" checked=${value === null} onChange=${(event) => change(event.currentTarget.checked ? null : undefined)} />
            <span>${t("new.no_value")} <${Code} text="null" /></span>
          </label>`
        }
      `}
    </${Field}>
  `;
}

function Input({ attributes, field, value, change, isOpen }) {
  const empty = isOpen ? "" : shownDefault(field);
  const keep = (event) => change(event.currentTarget.value || undefined);
  const common = { ...attributes, translate: false, value: value ?? "", disabled: value === null, placeholder: empty };
  if (isChoice(field)) {
    const choices = [...(takes(field, "boolean") ? ["true", "false"] : []), ...field.choices];
    return html`<select ...${common} dir="ltr" onChange=${keep}>
      <option value="">${empty || "–"}</option>
      ${choices.filter((choice) => choice !== empty).map((choice) => html`<option value=${choice}>${choice}</option>`)}
    </select>`;
  }
  if (takes(field, "list", "object") || (takes(field, "string") && field.max_length > LONG_TEXT)) {
    const direction = takes(field, "list", "object") && !isText(field) ? "ltr" : "auto";
    return html`<textarea ...${common} rows="2" dir=${direction} spellcheck=${false} onInput=${keep}></textarea>`;
  }
  const input = html`<input ...${common} dir=${isNumber(field) ? "ltr" : "auto"} inputmode=${isNumber(field) && !takes(field, "string") ? "decimal" : undefined} onInput=${keep} />`;
  return field.unit ? html`<span class="measured">${input}<span>${t(`unit.${field.unit}`)}</span></span>` : input;
}

const Checkbox = ({ id, label, hint, field, value, wrong, change }) => html`
  <div class="field">
    <label class="choice" for=${id}>
      <input type="checkbox" id=${id} name=${field.name} ...${marks(id, hint, wrong)} checked=${value ?? field.default}
        onChange=${(event) => change(event.currentTarget.checked === field.default ? undefined : event.currentTarget.checked)} />
      <span>${label} <${Code} text=${field.name} /></span>
    </label>
    <p class="hint" id="${id}-hint">${hint}</p>
    <${Wrong} id=${id} of=${wrong} />
  </div>
`;

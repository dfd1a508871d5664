// The data of a new job: one dataset, or several with weights or numbers of rows.

import { html } from "../vendor/preact-htm.js";
import { t } from "../language.js";
import { Field, Wrong } from "../parts.js";
import { plain } from "../text.js";

const MEASURES = ["all", "weight", "rows"];
const NEW = { source: "", measure: "all", amount: "" };

// -- between a spec and the form

/** The data of a spec, or of one dataset in it, as one word: `id:…` or `path:…`. */
export const source = (spec, prefix) =>
  spec[`${prefix}_id`] ? `id:${spec[`${prefix}_id`]}` : spec[`${prefix}_path`] ? `path:${spec[`${prefix}_path`]}` : "";

/** The same word as fields of a spec. */
export function sourceFields(word, prefix) {
  const [kind, ...value] = word.split(":");
  return word ? { [`${prefix}_${kind}`]: value.join(":") } : {};
}

/** What the form shows of a spec's `datasets`; none if there is one dataset. */
export const mixOf = ({ datasets }) =>
  (datasets ?? []).map(({ name, ...each }) => {
    const measure = MEASURES.find((one) => each[one] !== undefined && each[one] !== null) ?? "all";
    return { source: source(each, "dataset"), measure, amount: String(each[measure] ?? ""), name };
  });

/** A spec's `datasets`; nothing if there is one dataset. */
export const datasetsOf = (mix) =>
  mix.length
    ? {
        datasets: mix.map(({ source: word, measure, amount, name }) => ({
          ...sourceFields(word, "dataset"),
          ...(measure !== "all" && { [measure]: Number(amount) }),
          ...(name && { name }),
        })),
      }
    : {};

// -- the form

/** A list of uploaded datasets and samples. `choices`: of `choicesFor`. */
export const DataSelect = ({ attributes, value, empty, choices, onChange }) => html`
  <select ...${attributes} value=${value} onChange=${(event) => onChange(event.currentTarget.value)}>
    <option value="">${empty}</option>
    ${choices.uploaded.map((each) => html`<option value="id:${each.id}" dir="auto" translate=${false}>${plain(each.name ?? each.id.slice(0, 8))} · ${each.kind} · ${each.train_rows}</option>`)}
    ${choices.samples.map((path) => html`<option value="path:${path}" translate=${false}>${path}</option>`)}
    ${!isKnown(value, choices) && html`<option value=${value} translate=${false}>${plain(value.replace(/^\w+:/, ""))}</option>`}
  </select>
`;

const isKnown = (value, { uploaded, samples }) =>
  !value || uploaded.some(({ id }) => value === `id:${id}`) || samples.some((path) => value === `path:${path}`);

/** One dataset, or several: `data` is the one, `mix` has the several. */
export function TrainingData({ data, mix, choices, wrong, onChange }) {
  const set = (at, changes) => onChange({ mix: mix.map((each, place) => (place === at ? { ...each, ...changes } : each)) });
  const add = () => onChange({ data: "", mix: [...(mix.length ? mix : [{ ...NEW, source: data }]), NEW] });
  function remove(at) {
    const left = mix.filter((_, place) => place !== at);
    onChange(left.length > 1 ? { mix: left } : { data: left[0].source, mix: [] });
  }
  const more = html`<p><button type="button" onClick=${add}>${t("new.mix_add")}</button></p>`;
  if (!mix.length)
    return html`
      <${Field} id="f-data" label=${t("new.data")} name="dataset_id" hint=${t("new.data_hint")} wrong=${wrong.dataset_id ?? wrong.dataset_path}>
        ${(attributes) => html`<${DataSelect} attributes=${attributes} value=${data} empty=${t("new.data_choose")} choices=${choices} onChange=${(word) => onChange({ data: word })} />`}
      </${Field}>
      ${more}
    `;
  return html`
    <fieldset class="mix">
      <legend>${t("new.data")}</legend>
      <p class="hint">${t("new.mix_hint")}</p>
      <${Wrong} id="f-datasets" of=${wrong.datasets} />
      ${mix.map((each, at) => html`<${Entry} key=${at} at=${at} entry=${each} choices=${choices} wrong=${wrong} onChange=${(changes) => set(at, changes)} onRemove=${() => remove(at)} />`)}
      ${more}
    </fieldset>
  `;
}

function Entry({ at, entry, choices, wrong, onChange, onRemove }) {
  const of = (name) => wrong[`datasets.${at}.${name}`];
  const ofSource = wrong[`datasets.${at}`] ?? of("dataset_id") ?? of("dataset_path");
  return html`
    <div class="entry" role="group" aria-label=${t("new.mix_dataset", { n: at + 1 })}>
      <${Field} id="f-mix-${at}" label=${t("new.mix_dataset", { n: at + 1 })} wrong=${ofSource}>
        ${(attributes) => html`<${DataSelect} attributes=${attributes} value=${entry.source} empty=${t("new.data_choose")} choices=${choices} onChange=${(word) => onChange({ source: word, name: undefined })} />`}
      </${Field}>
      <${Field} id="f-mix-${at}-measure" label=${t("new.mix_measure")}>
        ${(attributes) => html`<select ...${attributes} value=${entry.measure} onChange=${(event) => onChange({ measure: event.currentTarget.value, amount: "" })}>
          ${MEASURES.map((measure) => html`<option value=${measure}>${t(`take.${measure}`)}</option>`)}
        </select>`}
      </${Field}>
      ${
        entry.measure !== "all" &&
        html`<${Field} id="f-mix-${at}-amount" label=${t(`take.${entry.measure}`)} wrong=${of(entry.measure)}>
          ${(attributes) => html`<input ...${attributes} type="number" min="0" step="any" dir="ltr" value=${entry.amount} onInput=${(event) => onChange({ amount: event.currentTarget.value })} />`}
        </${Field}>`
      }
      <button type="button" aria-label=${t("new.mix_remove", { n: at + 1 })} onClick=${onRemove}>${t("overlay.remove")}</button>
    </div>
  `;
}

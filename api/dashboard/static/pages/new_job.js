// A new training: the form, the dry run that it must pass, and only then the submit.

import { html, useEffect, useRef, useState } from "../vendor/preact-htm.js";
import { ANSWER_WAIT_S, ApiError, answered, get, post, usePoll } from "../api.js";
import { current, t } from "../language.js";
import { methodOf, methods } from "../methods.js";
import { BusyTask, byField, Field, Method, Missing } from "../parts.js";
import { Code } from "../text.js";
import { ErrorBox } from "../wording.js";
import { DataSelect, datasetsOf, mixOf, source, sourceFields, TrainingData } from "./mix.js";
import { UploadButton } from "./upload.js";
import { DryRun } from "./dry_run.js";
import { Recipes, recipesOf } from "./recipe.js";
import { SpecField, fits, isSet, kept, sent } from "./spec_field.js";

/** Fields of a spec that have a place of their own in the form. */
const OWN = new Set([
  "method",
  "recipe",
  "name",
  "model_name",
  "dataset_id",
  "dataset_path",
  "datasets",
  "eval_dataset_id",
  "eval_dataset_path",
]);
const EMPTY = { recipe: "", name: "", model_name: "", data: "", mix: [], evaluation: "", values: {} };

/** The fields of a method that are shown in groups, by whether they are shown first. */
const fieldsOf = (method, isMain) =>
  (methodOf(method)?.fields ?? []).filter((field) => field.is_main === isMain && !OWN.has(field.name));
const allFieldsOf = (method) => [...fieldsOf(method, true), ...fieldsOf(method, false)];

/** What the form shows of a spec. */
const formOf = (spec) => ({
  method: spec.method,
  recipe: spec.recipe ?? "",
  name: spec.name ?? "",
  model_name: spec.model_name,
  data: source(spec, "dataset"),
  mix: mixOf(spec),
  evaluation: source(spec, "eval_dataset"),
  values: Object.fromEntries(allFieldsOf(spec.method).map((field) => [field.name, kept(field, spec[field.name])])),
});

/** The form as it opens: the first recipe and the first method, with the model that its sample job trains. */
function emptyForm() {
  const [first] = methods();
  return { ...EMPTY, recipe: recipesOf(first?.name)[0] ?? "", method: first?.name, model_name: first?.example.model_name ?? "" };
}

/** The spec that the form says. Throws an `ApiError` about fields that are empty and must not be, or whose JSON cannot be read. */
function specOf(form) {
  const values = {};
  const details = missing(form);
  for (const field of allFieldsOf(form.method).filter(({ name }) => isSet(form.values[name]))) {
    try {
      values[field.name] = sent(field, form.values[field.name]);
    } catch (error) {
      details.push({ field: field.name, code: "new.not_json", params: { problem: error.message } });
    }
  }
  if (details.length) throw new ApiError(0, { code: "spec_invalid", message: "", details });
  return {
    method: form.method,
    ...(form.recipe && { recipe: form.recipe }),
    ...(form.name && { name: form.name }),
    model_name: form.model_name,
    ...sourceFields(form.data, "dataset"),
    ...datasetsOf(form.mix),
    ...sourceFields(form.evaluation, "eval_dataset"),
    ...values,
  };
}

/** Details of an error for what every run needs and the form lacks. */
function missing({ model_name: model, data, mix }) {
  const found = [];
  if (!model.trim()) found.push({ field: "model_name", code: "new.required" });
  if (!mix.length && !data) found.push({ field: "dataset_id", code: "new.choose_data" });
  mix.forEach(({ source: one, measure, amount }, at) => {
    if (!one) found.push({ field: `datasets.${at}.dataset_id`, code: "new.choose_data" });
    if (measure !== "all" && !amount) found.push({ field: `datasets.${at}.${measure}`, code: "new.required" });
  });
  return found;
}

/** Where the form shows an error: a list is one input, but each dataset of a mix has inputs of its own. */
const placeOf = (field) => (field.startsWith("datasets.") ? field : field.split(".")[0]);

/** The places of a form that show what is wrong with them. */
function placesOf({ method, mix }) {
  const data = mix.length
    ? ["datasets", ...mix.flatMap(({ measure }, at) => ["", ".dataset_id", ".dataset_path", `.${measure}`].map((name) => `datasets.${at}${name}`))]
    : ["dataset_id", "dataset_path"];
  const own = ["recipe", "name", "model_name", "eval_dataset_id", "eval_dataset_path"];
  return new Set([...own, ...data, ...allFieldsOf(method).map(({ name }) => name)]);
}

// Not `randomUUID`, which browsers have on encrypted pages alone.
const newKey = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export function NewJob({ from }) {
  const [form, setForm] = useState(emptyForm);
  const [checked, setChecked] = useState({ is: "not" });
  const [submitted, setSubmitted] = useState({ busy: false, error: null });
  const report = useRef(null);
  const fields = useRef(null);
  const datasets = usePoll(
    (signal) => get("/v1/datasets", { limit: 200 }, signal),
    () => 0,
    [],
  );
  const old = usePoll(
    async (signal) => (from ? get(`/v1/jobs/${from}/metadata`, {}, signal) : null),
    () => 0,
    [from],
  );
  useEffect(() => {
    if (old.data) setForm(formOf(old.data.sent_spec));
  }, [old.data]);

  function change(changes) {
    setForm((before) => ({ ...before, ...changes }));
    setChecked({ is: "not" });
  }
  async function check(event) {
    event.preventDefault();
    let spec;
    try {
      spec = specOf(form);
    } catch (error) {
      return setChecked({ is: "refused", error });
    }
    setChecked({ is: "busy" });
    setSubmitted({ busy: false, error: null });
    try {
      const asked = await post("/v1/jobs/validate", spec, { query: { wait_s: ANSWER_WAIT_S } });
      const result = await answered(asked, (task) => setChecked({ is: "busy", task }));
      setChecked({ is: "good", spec, result, key: newKey() });
      report.current?.focus();
    } catch (error) {
      setChecked({ is: "refused", error });
    }
  }
  // The first field that is wrong, or else the error: once the page shows them.
  useEffect(() => {
    if (checked.is === "refused") (fields.current.querySelector("[aria-invalid=true]") ?? report.current).focus();
  }, [checked]);
  async function submit() {
    setSubmitted({ busy: true, error: null });
    try {
      // The key is of this dry run: pressed twice, or sent again after a lost reply, it makes one job.
      const job = await post("/v1/jobs", checked.spec, { headers: { "Idempotency-Key": checked.key } });
      location.hash = `#/jobs/${job.id}`;
    } catch (error) {
      setSubmitted({ busy: false, error });
    }
  }
  const wrong = byField(checked.error, placeOf);
  const places = placesOf(form);
  return html`
    ${old.error?.code === "not_found" ? html`<${Missing} kind="job" />` : html`<${ErrorBox} error=${old.error ?? datasets.error} />`}
    <form class="job" onSubmit=${check} noValidate ref=${fields}>
      <${Recipes} method=${form.method} chosen=${form.recipe} wrong=${wrong.recipe} onChange=${(recipe) => change({ recipe })} />
      <${Basics} form=${form} change=${change} wrong=${wrong} datasets=${datasets} />
      ${
        !form.recipe &&
        html`<fieldset>
          <legend>${t("new.main")}</legend>
          <${Fields} of=${fieldsOf(form.method, true)} form=${form} change=${change} wrong=${wrong} />
        </fieldset>`
      }
      <${More} form=${form} change=${change} wrong=${wrong} />
      <button class="main" disabled=${checked.is === "busy"}>${t("new.check")}</button>
      <p class="hint">${t("new.check_hint")}</p>
    </form>
    <section class="report" aria-label=${t("dry.title")} tabindex="-1" ref=${report}>
      ${checked.is === "busy" && html`<${BusyTask} text=${t("new.checking")} id=${checked.task} />`}
      <${ErrorBox} error=${checked.error} title=${t("new.refused")} isPlaced=${({ field }) => places.has(placeOf(field))} />
      ${
        checked.is === "good" &&
        html`<${DryRun} result=${checked.result} />
          <${ErrorBox} error=${submitted.error} />
          <p class="buttons">
            <button type="button" class="main" disabled=${submitted.busy} onClick=${submit}>${t("new.submit")}</button>
          </p>`
      }
    </section>
  `;
}

/** The form with an uploaded dataset: as the one, or in the first empty place of several. */
function withUpload({ mix }, word) {
  const at = mix.findIndex((each) => !each.source);
  if (at < 0) return mix.length ? {} : { data: word };
  return { mix: mix.map((each, place) => (place === at ? { ...each, source: word } : each)) };
}

function Basics({ form, change, wrong, datasets }) {
  const method = methodOf(form.method);
  const uploaded = (datasets.data?.datasets ?? []).filter(({ kind }) => method?.dataset_kinds.includes(kind));
  const samples = samplesFor(method);
  const choices = { uploaded, samples };
  const text =
    (name, more = {}) =>
    (attributes) =>
      html`<input ...${attributes} ...${more} value=${form[name]} onInput=${(event) => change({ [name]: event.currentTarget.value })} />`;
  function choose(name) {
    const unfit = allFieldsOf(name).filter((field) => !fits(field, form.values[field.name]));
    change({ method: name, values: { ...form.values, ...Object.fromEntries(unfit.map((field) => [field.name, undefined])) } });
  }
  return html`
    <fieldset>
      <legend>${t("jobs.method")}</legend>
      <${Methods} chosen=${form.method} onChoose=${choose} />
      <p><button type="button" onClick=${() => change(formOf(method.example))}>${t("new.sample")}</button> <span class="hint">${t("new.sample_hint")}</span></p>
    </fieldset>
    <${Field} id="f-name" label=${t("new.name")} name="name" wrong=${wrong.name}>${text("name", { dir: "auto", maxLength: 200 })}</${Field}>
    <${Field} id="f-model" label=${t("jobs.model")} name="model_name" hint=${t("new.model_hint")} wrong=${wrong.model_name}>${text("model_name", { dir: "ltr" })}</${Field}>
    <${TrainingData} data=${form.data} mix=${form.mix} choices=${choices} wrong=${wrong} onChange=${change} />
    <${UploadButton} onDone=${(made) => {
      datasets.again();
      change(withUpload(form, `id:${made.id}`));
    }} />
    <${Field} id="f-evaluation" label=${t("new.evaluation")} name="eval_dataset_id" wrong=${wrong.eval_dataset_id ?? wrong.eval_dataset_path}>
      ${(attributes) => html`<${DataSelect} attributes=${attributes} value=${form.evaluation} empty=${t("new.evaluation_none")} choices=${choices} onChange=${(word) => change({ evaluation: word })} />`}
    </${Field}>
  `;
}

/** The sample files that a method takes: those of its own sample job, and of methods that take no other kinds of rows. */
function samplesFor(method) {
  const isServed = (other) => other.dataset_kinds.every((kind) => method.dataset_kinds.includes(kind));
  const examples = methods().filter((other) => method && isServed(other)).map(({ example }) => example);
  return [...new Set(examples.flatMap((example) => [example.dataset_path, example.eval_dataset_path]))];
}

/** The choice of a method: those that introductions name, and the others below them. */
function Methods({ chosen, onChoose }) {
  const choice = ({ name, description }) => html`<label class="choice">
    <input type="radio" name="method" value=${name} checked=${chosen === name} onChange=${() => onChoose(name)} />
    <span><strong><${Method} name=${name} /></strong> ${description[current()]}</span>
  </label>`;
  const others = methods().filter(({ headline }) => !headline);
  return html`
    ${methods().filter(({ headline }) => headline).map(choice)}
    ${
      others.length > 0 &&
      html`<details open=${others.some(({ name }) => name === chosen)}>
        <summary>${t("new.more_methods")}</summary>
        ${others.map(choice)}
      </details>`
    }
  `;
}

const Fields = ({ of, form, change, wrong }) => html`<div class="numbers">
  ${of.map(
    (field) => html`<${SpecField} key=${field.name} field=${field} isOpen=${Boolean(form.recipe)} value=${form.values[field.name]} wrong=${wrong[field.name]}
      change=${(value) => change({ values: { ...form.values, [field.name]: value } })} />`,
  )}
</div>`;

/** The fields that few runs change, folded away; open when one of them is wrong. With a recipe, these are all fields. */
function More({ form, change, wrong }) {
  const fields = form.recipe ? allFieldsOf(form.method) : fieldsOf(form.method, false);
  const set = fields.filter(({ name }) => isSet(form.values[name]));
  return html`<details class="more" open=${fields.some(({ name }) => wrong[name])}>
    <summary>
      ${t(form.recipe ? "new.numbers" : "new.more")} ${set.length > 0 && html`<span class="hint">${t("new.more_set")} ${set.map(({ name }) => html`<${Code} text=${name} /> `)}</span>`}
    </summary>
    ${form.recipe && html`<p class="hint">${t("new.numbers_hint")}</p>`}
    <${Fields} of=${fields} form=${form} change=${change} wrong=${wrong} />
  </details>`;
}

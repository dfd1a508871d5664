// A new training: the form, the dry run that it must pass, and only then the submit.

import { html, useEffect, useRef, useState } from "../vendor/preact-htm.js";
import { answered, get, post, usePoll } from "../api.js";
import { t } from "../language.js";
import { Busy, ErrorBox, Field, Method } from "../parts.js";
import { Code } from "../text.js";
import { DataSelect, datasetsOf, mixOf, source, sourceFields, TrainingData } from "./mix.js";
import { UploadButton } from "./upload.js";
import { DryRun } from "./dry_run.js";

const SAMPLE_FILES = {
  kto: ["samples/kto_train.jsonl", "samples/pairs_held_out.jsonl"],
  pairs: ["samples/pairs_train.jsonl", "samples/pairs_held_out.jsonl"],
};
const ALL = ["kto", "ipo", "cpo"];
const SCHEMAS = { kto: "KTOJobSpec", ipo: "IPOJobSpec", cpo: "CPOJobSpec" };
// Numbers of a spec that have a field of their own; every other one can be written as JSON.
const NUMBERS = [
  ["beta", ALL],
  ["learning_rate", ALL],
  ["num_train_epochs", ALL],
  ["max_steps", ALL],
  ["per_device_train_batch_size", ALL],
  ["gradient_accumulation_steps", ALL],
  ["max_length", ALL],
  ["max_prompt_length", ALL],
  ["lora_r", ALL],
  ["eval_steps", ALL],
  ["warmup_steps", ALL],
  ["lora_dropout", ALL],
  ["desirable_weight", ["kto"]],
  ["undesirable_weight", ["kto"]],
  ["label_smoothing", ["ipo", "cpo"]],
  ["cpo_alpha", ["cpo"]],
];
const OWN = new Set([
  ...NUMBERS.map(([name]) => name),
  "method",
  "name",
  "model_name",
  "learning_rate_cap",
  "use_lora",
  "optim",
  "sample_prompts",
  "system_prompt",
  "dataset_id",
  "dataset_path",
  "datasets",
  "eval_dataset_id",
  "eval_dataset_path",
]);
const EMPTY = {
  method: "kto",
  name: "",
  model_name: "tafdil/tiny-arabic-qwen-2",
  data: "",
  mix: [],
  evaluation: "",
  numbers: {},
  isCapped: true,
  useLora: true,
  optim: "",
  prompts: "",
  system: "",
  more: "",
};

/** What the form shows of a spec. */
function formOf(spec) {
  const rest = Object.fromEntries(Object.entries(spec).filter(([name]) => !OWN.has(name)));
  return {
    method: spec.method,
    name: spec.name ?? "",
    model_name: spec.model_name,
    data: source(spec, "dataset"),
    mix: mixOf(spec),
    evaluation: source(spec, "eval_dataset"),
    numbers: Object.fromEntries(
      NUMBERS.filter(([name]) => spec[name] !== undefined && spec[name] !== null).map(([name]) => [
        name,
        String(spec[name]),
      ]),
    ),
    isCapped: spec.learning_rate_cap !== null,
    useLora: spec.use_lora !== false,
    optim: spec.optim ?? "",
    prompts: (spec.sample_prompts ?? []).join("\n"),
    system: spec.system_prompt ?? "",
    more: Object.keys(rest).length ? JSON.stringify(rest, null, 2) : "",
  };
}

/** A number, or the word that stands in its place; the service says which words a field takes. */
const numberOf = (text) => (Number.isNaN(Number(text)) ? text.trim() : Number(text));

/** The spec that the form says. Throws when its JSON cannot be read. */
function specOf(form) {
  const numbers = NUMBERS.filter(([name, methods]) => methods.includes(form.method) && form.numbers[name]?.trim());
  const prompts = form.prompts
    .split("\n")
    .map((line) => line.trim())
    .filter(Boolean);
  return {
    method: form.method,
    ...(form.name && { name: form.name }),
    model_name: form.model_name,
    ...sourceFields(form.data, "dataset"),
    ...datasetsOf(form.mix),
    ...sourceFields(form.evaluation, "eval_dataset"),
    ...Object.fromEntries(numbers.map(([name]) => [name, numberOf(form.numbers[name])])),
    ...(form.isCapped ? {} : { learning_rate_cap: null }),
    ...(form.useLora ? {} : { use_lora: false }),
    ...(form.optim && { optim: form.optim }),
    ...(prompts.length && { sample_prompts: prompts }),
    ...(form.system.trim() && { system_prompt: form.system }),
    ...(form.more.trim() && JSON.parse(form.more)),
  };
}

// Not `randomUUID`, which browsers have on encrypted pages alone.
const newKey = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** A training of the sample data that shows something within a minute on two cores. */
function sampleOf(method) {
  const [train, held] = SAMPLE_FILES[method === "kto" ? "kto" : "pairs"];
  const numbers = {
    learning_rate: "0.002",
    max_steps: "60",
    per_device_train_batch_size: "16",
    gradient_accumulation_steps: "1",
    eval_steps: "20",
    ...(method !== "kto" && { beta: "0.5" }),
  };
  return { ...EMPTY, method, data: `path:${train}`, evaluation: `path:${held}`, numbers, isCapped: false };
}

export function NewJob({ from }) {
  const [form, setForm] = useState(EMPTY);
  const [checked, setChecked] = useState({ is: "not" });
  const [submitted, setSubmitted] = useState({ busy: false, error: null });
  const report = useRef(null);
  const datasets = usePoll(
    (signal) => get("/v1/datasets", { limit: 200 }, signal),
    () => 0,
    [],
  );
  const openapi = usePoll(
    (signal) => get("/openapi.json", {}, signal),
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
      return setChecked({
        is: "refused",
        error: { code: "spec_invalid", message: t("new.not_json"), details: [{ field: "more", reason: error.message }] },
      });
    }
    setChecked({ is: "busy" });
    setSubmitted({ busy: false, error: null });
    try {
      const result = await answered(await post("/v1/jobs/validate", spec, { query: { wait_s: 60 } }));
      setChecked({ is: "good", spec, result, key: newKey() });
    } catch (error) {
      setChecked({ is: "refused", error });
    }
    report.current?.focus();
  }
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
  const wrong = Object.fromEntries(
    (checked.error?.details ?? []).filter(({ field }) => field).map(({ field, reason }) => [field, reason]),
  );
  return html`
    <${ErrorBox} error=${old.error ?? datasets.error} />
    <form class="job" onSubmit=${check} noValidate>
      <${Basics} form=${form} change=${change} wrong=${wrong} datasets=${datasets} />
      <${Numbers} form=${form} change=${change} wrong=${wrong} schemas=${openapi.data?.components.schemas} />
      <${More} form=${form} change=${change} wrong=${wrong} />
      <button class="main" disabled=${checked.is === "busy"}>${t("new.check")}</button>
      <p class="hint">${t("new.check_hint")}</p>
    </form>
    <section class="report" aria-label=${t("dry.title")} tabindex="-1" ref=${report}>
      ${checked.is === "busy" && html`<${Busy} text=${t("new.checking")} />`}
      <${ErrorBox} error=${checked.error} title=${t("new.refused")} />
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
  const isFor = (kind) => form.method === "kto" || kind === "pairs";
  const uploaded = (datasets.data?.datasets ?? []).filter(({ kind }) => isFor(kind));
  const samples = Object.entries(SAMPLE_FILES)
    .filter(([kind]) => isFor(kind))
    .flatMap(([, files]) => files);
  const choices = { uploaded, samples };
  const text =
    (name, more = {}) =>
    (attributes) =>
      html`<input ...${attributes} ...${more} value=${form[name]} onInput=${(event) => change({ [name]: event.currentTarget.value })} />`;
  return html`
    <fieldset>
      <legend>${t("jobs.method")}</legend>
      ${ALL.map(
        (method) => html`<label class="choice">
          <input type="radio" name="method" value=${method} checked=${form.method === method} onChange=${() => change({ method })} />
          <span><strong><${Method} name=${method} /></strong> ${t(`method.${method}_text`)}</span>
        </label>`,
      )}
      <p><button type="button" onClick=${() => change(sampleOf(form.method))}>${t("new.sample")}</button> <span class="hint">${t("new.sample_hint")}</span></p>
    </fieldset>
    <${Field} id="f-name" label=${t("new.name")} name="name" error=${wrong.name}>${text("name", { dir: "auto", maxLength: 200 })}</${Field}>
    <${Field} id="f-model" label=${t("jobs.model")} name="model_name" hint=${t("new.model_hint")} error=${wrong.model_name}>${text("model_name", { dir: "ltr" })}</${Field}>
    <${TrainingData} data=${form.data} mix=${form.mix} choices=${choices} wrong=${wrong} onChange=${change} />
    <${UploadButton} onDone=${(made) => {
      datasets.again();
      change(withUpload(form, `id:${made.id}`));
    }} />
    <${Field} id="f-evaluation" label=${t("new.evaluation")} name="eval_dataset_id" error=${wrong.eval_dataset_id ?? wrong.eval_dataset_path}>
      ${(attributes) => html`<${DataSelect} attributes=${attributes} value=${form.evaluation} empty=${t("new.evaluation_none")} choices=${choices} onChange=${(word) => change({ evaluation: word })} />`}
    </${Field}>
  `;
}

function Numbers({ form, change, wrong, schemas }) {
  const fields = schemas?.[SCHEMAS[form.method]]?.properties ?? {};
  return html`<fieldset class="numbers">
    <legend>${t("new.numbers")}</legend>
    ${NUMBERS.filter(([, methods]) => methods.includes(form.method)).map(
      ([name]) => html`<${Field} id="f-${name}" label=${t(`field.${name}`)} name=${name} hint=${name === "eval_steps" && html`${t("new.eval_steps_hint", { share: "0.1" })} <${Code} text="epoch" />`} error=${wrong[name]}>
        ${(
          attributes,
        ) => html`<input ...${attributes} inputmode="decimal" dir="ltr" translate=${false} placeholder=${fields[name]?.default ?? ""} value=${form.numbers[name] ?? ""}
          onInput=${(event) => change({ numbers: { ...form.numbers, [name]: event.currentTarget.value } })} />`}
      </${Field}>`,
    )}
    <${Field} id="f-optim" label=${t("field.optim")} name="optim" error=${wrong.optim}>
      ${(attributes) => html`<select ...${attributes} dir="ltr" translate=${false} value=${form.optim} onChange=${(event) => change({ optim: event.currentTarget.value })}>
        <option value="">${fields.optim?.default ?? ""}</option>
        ${(fields.optim?.enum ?? []).filter((name) => name !== fields.optim.default).map((name) => html`<option value=${name}>${name}</option>`)}
      </select>`}
    </${Field}>
    <label class="choice">
      <input type="checkbox" checked=${!form.isCapped} onChange=${(event) => change({ isCapped: !event.currentTarget.checked })} />
      <span>${t("new.lift_cap")} <${Code} text="learning_rate_cap" /></span>
    </label>
    <label class="choice">
      <input type="checkbox" checked=${form.useLora} onChange=${(event) => change({ useLora: event.currentTarget.checked })} />
      <span>${t("new.use_lora")} <${Code} text="use_lora" /></span>
    </label>
  </fieldset>`;
}

const More = ({ form, change, wrong }) => html`
  <${Field} id="f-system" label=${t("new.system")} name="system_prompt" hint=${t("new.system_hint")} error=${wrong.system_prompt}>
    ${(attributes) => html`<textarea ...${attributes} rows="2" dir="auto" value=${form.system} onInput=${(event) => change({ system: event.currentTarget.value })}></textarea>`}
  </${Field}>
  <${Field} id="f-prompts" label=${t("new.prompts")} name="sample_prompts" hint=${t("new.prompts_hint")} error=${wrong.sample_prompts}>
    ${(attributes) => html`<textarea ...${attributes} rows="3" dir="auto" value=${form.prompts} onInput=${(event) => change({ prompts: event.currentTarget.value })}></textarea>`}
  </${Field}>
  <${Field} id="f-more" label=${t("new.more")} hint=${t("new.more_hint")} error=${wrong.more}>
    ${(attributes) => html`<textarea ...${attributes} rows="3" dir="ltr" translate=${false} spellcheck=${false} placeholder='{"chat_template_kwargs": {"enable_thinking": false}}' value=${form.more} onInput=${(event) => change({ more: event.currentTarget.value })}></textarea>`}
  </${Field}>
`;

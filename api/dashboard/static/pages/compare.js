// What the trained model answers next to its reference: side by side, what differs, the proof, and what was asked before.

import { html, useState } from "../vendor/preact-htm.js";
import { events, get, usePoll } from "../api.js";
import { entered, t } from "../language.js";
import { Ago, Amount, Busy, BusyTask, byField, Facts, Field, Loaded, Method, Pager } from "../parts.js";
import { Block, Code, User, differences } from "../text.js";
import { ErrorBox } from "../wording.js";
import { HeldOut } from "./held_out.js";
import { titleOf } from "./jobs.js";
import { Margin } from "./margin.js";
import { promptText } from "./samples.js";

const HISTORY = 20;

export function Compare({ id }) {
  const job = usePoll(
    (signal) => get(`/v1/jobs/${id}`, {}, signal),
    () => 0,
    [id],
  );
  const [cursor, setCursor] = useState(null);
  const history = usePoll(
    (signal) => get(`/v1/jobs/${id}/comparisons`, { limit: HISTORY, cursor }, signal),
    () => 0,
    [id, cursor],
  );
  const [shown, setShown] = useState(null);
  return html`<${Loaded} of=${job} kind="job">
    ${(found) => html`
      <p class="title"><a href="#/jobs/${id}"><${User} text=${titleOf(found)} /></a> <${Method} name=${found.method} /> · <${Code} text=${found.model_name} /></p>
      <${Question} id=${id} onPartial=${setShown} onDone=${(done) => {
        setShown(done);
        history.again();
      }} />
      ${shown && html`<${Answers} of=${shown} />`}
      <${HeldOut} id=${id} />
      <h2>${t("compare.history")}</h2>
      <${Loaded} of=${history}>
        ${({ comparisons, next_cursor: next }) => html`
          ${comparisons.length === 0 && html`<p>${t("compare.none")}</p>`}
          <ol class="history">
            ${comparisons.map(
              (each) => html`<li key=${each.id}>
              <button type="button" class="plain" onClick=${() => setShown(each)}><${User} text=${each.request.prompt.slice(0, 120)} /></button>
              <${Ago} at=${each.created_at} />
            </li>`,
            )}
          </ol>
          <${Pager} cursor=${cursor} next=${next} onCursor=${setCursor} />
        `}
      </${Loaded}>
    `}
  </${Loaded}>`;
}

function Question({ id, onPartial, onDone }) {
  const [form, setForm] = useState({ prompt: "", max_length: "128", temperature: "0", seed: "" });
  const [state, setState] = useState({ busy: false, error: null });
  const input = (name) => (attributes) =>
    html`<input ...${attributes} inputmode="decimal" dir="ltr" value=${form[name]} onInput=${(event) => setForm({ ...form, [name]: event.currentTarget.value })} />`;
  async function ask(event) {
    event.preventDefault();
    setState({ busy: true, error: null });
    const numbers = Object.fromEntries(
      ["max_length", "temperature", "seed"].filter((name) => form[name] !== "").map((name) => [name, entered(form[name])]),
    );
    const request = { prompt: form.prompt, ...numbers };
    try {
      for await (const { type, data } of events(`/v1/jobs/${id}/compare`, {
        method: "POST",
        query: { stream: true },
        body: request,
        onOpen: ({ headers }) =>
          setState({ busy: true, error: null, task: headers.get("Location")?.split("/").pop() ?? null }),
      })) {
        if (type === "partial") onPartial({ request, result: data, state: "running" });
        if (type === "result") onDone(data);
        if (type === "error") throw data;
      }
      setState({ busy: false, error: null });
    } catch (error) {
      setState({ busy: false, error: error.code ? error : { code: "unreachable", message: "" } });
    }
  }
  const wrong = byField(state.error);
  return html`<form onSubmit=${ask}>
    <${Field} id="c-prompt" label=${t("compare.prompt")} wrong=${wrong.prompt}>
      ${(attributes) => html`<textarea ...${attributes} rows="3" dir="auto" required value=${form.prompt} onInput=${(event) => setForm({ ...form, prompt: event.currentTarget.value })}></textarea>`}
    </${Field}>
    <div class="filters">
      <${Field} id="c-length" label=${t("compare.max_length")} wrong=${wrong.max_length}>${input("max_length")}</${Field}>
      <${Field} id="c-temperature" label=${t("compare.temperature")} hint=${t("compare.greedy")} wrong=${wrong.temperature}>${input("temperature")}</${Field}>
      <${Field} id="c-seed" label=${t("compare.seed")} wrong=${wrong.seed}>${input("seed")}</${Field}>
    </div>
    <button class="main" disabled=${state.busy || !form.prompt.trim()}>${t("compare.ask")}</button>
    ${state.busy && html`<${BusyTask} text=${t("compare.busy")} id=${state.task} />`}
    <${ErrorBox} error=${state.error} isPlaced=${({ field }) => field in form} />
  </form>`;
}

function Answers({ of: { request, result, error, state } }) {
  if (error) return html`<${ErrorBox} error=${error} />`;
  if (!result) return html`<${Busy} text=${t("compare.busy")} />`;
  const isDone = state === "succeeded";
  const { reference_model_response: reference, trained_model_response: trained, proof } = result;
  const marked = isDone && reference !== trained ? differences(reference, trained) : null;
  const [left, right] = marked ?? [undefined, undefined];
  return html`
    <section aria-label=${t("compare.answers")} aria-busy=${!isDone}>
      <${Block} text=${promptText(request.prompt)} kind="quote" />
      <div class="sides">
        <article><h2>${t("compare.reference")}</h2><${Block} text=${reference}>${left}</${Block}></article>
        <article><h2>${t("compare.trained")}</h2><${Block} text=${trained}>${right}</${Block}></article>
      </div>
      ${isDone && html`<p>${t(reference === trained ? "compare.same" : marked ? "compare.marks" : "compare.no_overlap")}</p>`}
      ${proof?.adapter_has_no_effect && html`<div class="box warning">${t("compare.no_effect")}</div>`}
      ${isDone && html`<${Verdict} result=${result} />`}
    </section>
  `;
}

function Verdict({ result }) {
  const { proof } = result;
  return html`
    <h2>${t("compare.verdict")}</h2>
    <${Margin} result=${result} />
    ${typeof result.seed === "number" && html`<${Facts} rows=${[[t("compare.seed"), html`<${Amount} value=${result.seed} />`]]} />`}
    <p class="hint">${t("compare.verdict_hint")}</p>
    <h2>${t("compare.proof")}</h2>
    <${Facts}
      rows=${[
        [t("compare.trained_weights"), html`<${Code} text=${proof.trained_fingerprint} />`],
        [t("compare.reference_weights"), html`<${Code} text=${proof.reference_fingerprint} />`],
        [t("compare.covers"), t(proof.covers === "function" ? "compare.covers_function" : "compare.covers_tensors")],
        [t("compare.function"), proof.function_sha256 ? html`<${Code} text=${proof.function_sha256} />` : undefined],
        [t("compare.logits"), html`<${Amount} value=${proof.max_logit_difference} digits=${4} />`],
        [t("compare.kl"), html`<${Amount} value=${proof.mean_kl} digits=${4} />`],
        [t("compare.dtype"), result.dtype && html`<${Code} text=${result.dtype} />`],
      ]}
    />
    <p class="hint">${t("compare.proof_hint")}</p>
  `;
}

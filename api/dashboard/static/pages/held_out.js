// Many held-out prompts answered by both models, counted: with progress while they are answered, and the last verdict.

import { html, useState } from "../vendor/preact-htm.js";
import { events, get, usePoll } from "../api.js";
import { Folded } from "../charts.js";
import { decimal, t } from "../language.js";
import { Busy, Field } from "../parts.js";
import { Block, User } from "../text.js";
import { ErrorBox } from "../wording.js";
import { Margin } from "./margin.js";
import { promptText } from "./samples.js";

// What needs a look comes first.
const ORDER = ["broken", "worse", "tie", "better"];
const percent = (share) => decimal(Math.round(100 * share), 3);

/** The section of the comparison page: a button, the progress, the last verdict. */
export function HeldOut({ id }) {
  const [count, setCount] = useState("48");
  const [state, setState] = useState({ partial: null, result: null, error: null, busy: false });
  const last = usePoll(
    async (signal) => {
      const { comparisons } = await get(`/v1/jobs/${id}/compare/held_out`, {}, signal);
      const done = comparisons.find((each) => each.result);
      return { found: done && (await get(`/v1/jobs/${id}/compare/held_out/${done.id}`, {}, signal)) };
    },
    () => 0,
    [id],
  );
  async function ask(event) {
    event.preventDefault();
    setState({ partial: null, result: null, error: null, busy: true });
    try {
      for await (const { type, data } of events(`/v1/jobs/${id}/compare/held_out`, {
        method: "POST",
        query: { stream: true },
        body: { prompts: Number(count) },
      })) {
        if (type === "partial") setState((before) => ({ ...before, partial: data }));
        if (type === "result") setState({ partial: null, result: data.result, error: null, busy: false });
        if (type === "error") throw data;
      }
      setState((before) => ({ ...before, busy: false }));
    } catch (error) {
      const shown = error.code ? error : { code: "unreachable", message: "" };
      setState({ partial: null, result: null, error: shown, busy: false });
    }
  }
  const result = state.result ?? (state.busy ? null : last.data?.found?.result);
  return html`
    <section aria-label=${t("held_out.title")} aria-busy=${state.busy}>
      <h2>${t("held_out.title")}</h2>
      <p>${t("held_out.text")}</p>
      <form class="filters" onSubmit=${ask}>
        <${Field} id="h-prompts" label=${t("held_out.prompts")}>
          ${(attributes) => html`<input ...${attributes} type="number" min="1" max="200" required dir="ltr" value=${count} onInput=${(event) => setCount(event.currentTarget.value)} />`}
        </${Field}>
        <button disabled=${state.busy}>${t("held_out.ask")}</button>
      </form>
      ${state.busy && html`<${Running} partial=${state.partial} />`}
      <${ErrorBox} error=${state.error} />
      ${result && html`<${Counts} result=${result} />`}
    </section>
  `;
}

function Running({ partial }) {
  if (!partial) return html`<${Busy} text=${t("compare.busy")} />`;
  const { prompts: done, asked, current } = partial;
  return html`
    <p>
      <progress max=${asked} value=${done} aria-label=${t("held_out.title")}></progress>${" "}
      ${t("held_out.progress", { done, asked })}
    </p>
    ${current && html`<${Sides} answer=${current} />`}
  `;
}

function Counts({ result }) {
  const answers = [...result.answers].sort((one, other) => {
    const order = ORDER.indexOf(one.outcome) - ORDER.indexOf(other.outcome);
    return order || (one.margin ?? 0) - (other.margin ?? 0);
  });
  const { better, ties, worse, broken, prompts } = result;
  const [share, low, high] = [result.share, result.low, result.high].map(percent);
  return html`
    <p class="title">${t("held_out.better", { better, prompts })}</p>
    <p>${t("held_out.rest", { ties, worse, broken })} ${t("held_out.share", { share, low, high })}</p>
    <p class="hint">${t("compare.verdict_hint")}</p>
    ${answers.map(
      (answer) => html`<${Folded} title=${html`${t(`outcome_of.${answer.outcome}`)} · <${User} text=${promptText(answer.prompt).slice(0, 120)} />`}>
        ${() => html`<${Sides} answer=${answer} /><${Margin} result=${answer} />`}
      </${Folded}>`,
    )}
  `;
}

const Sides = ({ answer }) => html`
  <${Block} text=${promptText(answer.prompt)} kind="quote" />
  <div class="sides">
    <article><h3>${t("compare.reference")}</h3><${Block} text=${answer.reference_model_response} /></article>
    <article><h3>${t("compare.trained")}</h3><${Block} text=${answer.trained_model_response} /></article>
  </div>
`;

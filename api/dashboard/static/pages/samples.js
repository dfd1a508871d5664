// What the model answered to fixed prompts while it trained, step by step.

import { html, useState } from "../vendor/preact-htm.js";
import { t } from "../language.js";
import { Block, differences, plain } from "../text.js";

/** A prompt, which is text or a conversation. */
export const promptText = (prompt) =>
  typeof prompt === "string" ? prompt : prompt.map(({ role, content }) => `${role}: ${content}`).join("\n");

export function Samples({ events }) {
  const told = events.filter((event) => event.type === "samples");
  const [place, setPlace] = useState(0);
  if (!told.length) return html`<p>${t("samples.none")}</p>`;
  const prompts = [...new Set(told.flatMap(({ data }) => data.samples.map(({ prompt }) => promptText(prompt))))];
  const prompt = prompts[Math.min(place, prompts.length - 1)];
  const answers = told.flatMap(({ data }) =>
    data.samples
      .filter((each) => promptText(each.prompt) === prompt)
      .map((each) => ({ step: data.step, text: each.response })),
  );
  return html`
    <p>
      <label>
        ${t("samples.prompt")}
        <select value=${place} onChange=${(event) => setPlace(Number(event.currentTarget.value))}>
          ${prompts.map((text, number) => html`<option value=${number} dir="auto" translate=${false}>${plain(text.slice(0, 90))}</option>`)}
        </select>
      </label>
    </p>
    <${Block} text=${prompt} kind="quote" />
    <p class="hint">${t("samples.marks")}</p>
    ${answers
      .map(({ step, text }, number) => {
        const [, marked] = (number && differences(answers[number - 1].text, text)) || [];
        return html`<article class="row">
          <h2>${t("samples.step", { n: step })}</h2>
          <${Block} text=${text}>${marked ?? undefined}</${Block}>
        </article>`;
      })
      .reverse()}
  `;
}

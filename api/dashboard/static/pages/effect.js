// What a run did to its model, and the evidence for that, in words.

import { html } from "../vendor/preact-htm.js";
import { decimal, t } from "../language.js";
import { Effect } from "../parts.js";

const percent = (share) => decimal(Math.round(100 * share), 3);

/** Sentences about the evidence: which rows were measured, and the results. */
function sentences({ rows, rows_from: from, mean_kl: kl, shift, margin, samples, decided_by: by }) {
  const found = [t(`measured.${from}`, { n: rows })];
  const isBroken = (by.includes("mean_kl") && kl === null) || (by.includes("shift") && shift === null);
  if (isBroken) found.push(t("effect.not_finite"));
  else found.push(kl === null ? t("effect.shift", { value: decimal(shift, 2) }) : t("effect.kl", { value: decimal(kl, 2) }));
  if (margin) {
    const [mean, low, high] = [margin.mean, margin.low, margin.high].map((value) => value !== null && decimal(value, 3));
    found.push(margin.low === null ? t("effect.margin_alone", { mean }) : t("effect.margin", { mean, low, high }));
  }
  if (samples) {
    found.push(t("effect.differing", { n: Math.round(samples.differing * samples.prompts), of: samples.prompts }));
    found.push(
      t("effect.signs", {
        repetition: percent(samples.repetition),
        before: percent(samples.repetition_before),
        script: percent(samples.foreign_script),
        ratio: decimal(samples.length_ratio, 2),
      }),
    );
  }
  return found;
}

/** A box below the header of a succeeded job. `event`: its last event of the type `effect`, once loaded. */
export const EffectBox = ({ effect, event }) =>
  effect &&
  html`<section class="box plain" aria-label=${t("effect.title")}>
    <h2>${t("effect.title")}: <${Effect} effect=${effect} /></h2>
    <p>${t(`effect_text.${effect}`)}</p>
    ${
      event &&
      html`<ul>
        ${sentences(event.data.evidence).map((sentence) => html`<li>${sentence}</li>`)}
      </ul>`
    }
  </section>`;

// Which of two answers the trained model prefers, and what is wrong with its own.

import { html } from "../vendor/preact-htm.js";
import { signed, t } from "../language.js";

/** How much more the trained model's implicit reward gives its own answer. Earlier versions stored only its sigmoid. */
function marginOf({ margin, preference_score: score }) {
  if (margin !== undefined) return margin;
  return score > 0 && score < 1 ? Math.log(score / (1 - score)) : null;
}

/** The margin with its sign, unless both answers are the same, and the flags. */
export function Margin({ result }) {
  const margin = marginOf(result);
  const isSame = result.trained_model_response === result.reference_model_response;
  return html`
    ${
      margin !== null &&
      !isSame &&
      html`<p class="margin">
        ${t("compare.margin")}: <span class="number" dir="ltr">${signed(margin, 3)}</span> · ${" "}
        ${t(margin > 0 ? "compare.prefers_own" : "compare.prefers_reference")}
      </p>`
    }
    ${result.flags?.map((flag) => html`<p class="box warning">${t(`flag.${flag}`)}</p>`)}
  `;
}

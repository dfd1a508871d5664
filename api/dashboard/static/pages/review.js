// What a run learned: by slice, by shortcut, by spelling, and the rows that it got wrong.

import { html } from "../vendor/preact-htm.js";
import { t } from "../language.js";
import { Amount, Table } from "../parts.js";
import { Code, User } from "../text.js";

const METRICS = ["preference_accuracy", "margin_accuracy", "overall_accuracy", "margin"];
const amount = (name) => (row) => html`<${Amount} value=${row[name]} digits=${3} />`;

/** A part below the header of a job whose last event of the type `review` is there. */
export function Review({ event }) {
  if (!event) return null;
  const { slices, shortcuts, spelling, hardest_rows: hardest } = event.data.review;
  const metrics = METRICS.filter((name) => slices.some((slice) => name in slice));
  return html`<details class="review">
    <summary>${t("review.title")}</summary>
    ${
      slices.length > 0 &&
      html`<h3>${t("review.slices")}</h3><${Table} caption=${t("review.slices")} rows=${slices} keyOf=${(each) => each.name} columns=${[
        [t("review.slice"), (each) => (each.name === null ? t("review.others") : html`<${User} text=${each.name} />`)],
        [t("review.rows"), amount("rows")],
        ...metrics.map((name) => [t(`slice_metric.${name}`), amount(name)]),
      ]} />`
    }
    ${
      shortcuts?.length > 0 &&
      html`<h3>${t("review.shortcuts")}</h3><${Table} caption=${t("review.shortcuts")} rows=${shortcuts} keyOf=${(each) => each.trait} columns=${[
        [t("review.trait"), (each) => html`<${Code} text=${each.trait} />`],
        [t("review.share"), amount("share")],
        [t("review.rows"), amount("rows")],
        [t("review.left"), amount("margin_left")],
      ]} /><p class="hint">${t("review.left_hint")}</p>`
    }
    ${shortcuts?.length === 0 && html`<p>${t("review.no_shortcut")}</p>`}
    ${
      spelling?.length > 0 &&
      html`<h3>${t("review.spelling")}</h3><${Table} caption=${t("review.spelling")} rows=${spelling} keyOf=${(each) => each.spelling} columns=${[
        [t("review.trait"), (each) => html`<${Code} text=${each.spelling} />`],
        [t("review.answers"), amount("answers")],
        [t("review.before"), amount("before")],
        [t("review.after"), amount("after")],
        [t("review.shift"), amount("shift")],
      ]} /><p class="hint">${t("review.spelling_hint")}</p>`
    }
    <h3>${t("review.hardest")}</h3>
    <${Table} caption=${t("review.hardest")} rows=${hardest} keyOf=${(each) => `${each.row} ${each.label}`} columns=${[
      [t("review.row"), (each) => html`<${User} text=${each.row} />`],
      [t("review.loss"), amount("loss")],
    ]} />
    <p class="hint">${t("review.hardest_hint")}</p>
  </details>`;
}

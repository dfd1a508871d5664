// What a run finds in its rows: how many, how long, what is cut and dropped, and KTO's balance.

import { html } from "../vendor/preact-htm.js";
import { number, t } from "../language.js";
import { Amount, Facts } from "../parts.js";
import { User } from "../text.js";

const PARTS = ["train", "validation"];
const OF_MIX = ["rows_in_file", "rows_taken", "rows_trained_on"];

/** `report`: of a job's `data` event, or of a dry run. */
export function DataReport({ report }) {
  const { desirable_rows: desirable, undesirable_rows: undesirable, suggested_weights: weights } = report;
  return html`
    ${report.datasets && html`<${Mix} datasets=${report.datasets} />`}
    ${PARTS.filter((name) => report[name]).map((name) => html`<${Part} name=${name} found=${report[name]} />`)}
    <${Facts}
      rows=${[
        [t("data.trained_on"), html`<${Amount} value=${report.rows_trained_on} />`],
        [t("data.validated_on"), html`<${Amount} value=${report.rows_validated_on} />`],
        [t("data.held_back"), report.rows_held_back ? html`<${Amount} value=${report.rows_held_back} />` : undefined],
        [t("data.left_over"), report.rows_left_over ? html`<${Amount} value=${report.rows_left_over} />` : undefined],
        [t("dataset.desirable"), desirable === undefined ? undefined : html`<${Amount} value=${desirable} />`],
        [t("dataset.undesirable"), undesirable === undefined ? undefined : html`<${Amount} value=${undesirable} />`],
        [t("field.desirable_weight"), weights ? suggested(weights, "desirable_weight") : undefined],
        [t("field.undesirable_weight"), weights ? suggested(weights, "undesirable_weight") : undefined],
      ]}
    />
  `;
}

/** The weight that balances the labels while the other one is 1. */
const suggested = (weights, name) =>
  t("data.suggested", { low: number(weights[`${name}_min`], 3), high: number(weights[`${name}_max`], 3) });

/** What each of several datasets gives. */
const Mix = ({ datasets }) => html`
  <table>
    <caption><strong>${t("mix.title")}</strong></caption>
    <thead>
      <tr>
        <th scope="col">${t("mix.dataset")}</th>
        ${OF_MIX.map((each) => html`<th scope="col">${t(`mix.${each}`)}</th>`)}
      </tr>
    </thead>
    <tbody>
      ${datasets.map(
        (one) => html`<tr>
          <th scope="row"><${User} text=${one.name} /></th>
          ${OF_MIX.map((each) => html`<td><${Amount} value=${one[each]} /></td>`)}
        </tr>`,
      )}
    </tbody>
  </table>
`;

const Part = ({ name, found }) => html`
  <table>
    <caption><strong>${t(`data.${name}`)}</strong></caption>
    <thead>
      <tr>
        ${["length", "median", "p95", "max"].map((each) => html`<th scope="col">${t(`data.${each}`)}</th>`)}
      </tr>
    </thead>
    <tbody>
      ${["prompt_tokens", "answer_tokens"].map(
        (each) => html`<tr>
          <th scope="row">${t(`data.${each}`)}</th>
          ${["median", "p95", "max"].map((which) => html`<td><${Amount} value=${found[each][which]} /></td>`)}
        </tr>`,
      )}
    </tbody>
  </table>
  <${Facts}
    rows=${[
      [t("dry.rows"), html`<${Amount} value=${found.rows} />`],
      [t("data.prompts_cut"), html`<${Amount} value=${found.prompts_cut} /> <${Numbers} of=${found.first_rows_cut} />`],
      [t("data.completions_cut"), html`<${Amount} value=${found.completions_cut} />`],
      [
        t("data.rows_dropped"),
        html`<${Amount} value=${found.rows_dropped} /> <${Numbers} of=${found.first_rows_dropped} />`,
      ],
    ]}
  />
  <${Findings} found=${found.findings} />
`;

/** What was found in the rows: why some were dropped, and what looks like a mistake. */
const Findings = ({ found }) =>
  found?.length
    ? html`<ul>
        ${found.map(
          (each) => html`<li>
            ${t(`found.${each.code}`)}: <${Amount} value=${each.rows} /> <${Numbers} of=${each.first_rows} />
            ${each.dropped && html` ${t("found.dropped")}`}
          </li>`,
        )}
      </ul>`
    : null;

/** Rows by their lines; with several datasets each is the text `dataset:line`. */
const Numbers = ({ of }) =>
  of.length
    ? html`<span dir="ltr">(${of.map((row, place) => [place ? ", " : "", typeof row === "number" ? number(row) : html`<${User} text=${row} />`])})</span>`
    : null;

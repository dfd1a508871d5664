// What a run would do, before it starts.

import { html } from "../vendor/preact-htm.js";
import { Folded } from "../charts.js";
import { bytes, decimal, duration, number, t } from "../language.js";
import { Amount, Facts, RenderedRows } from "../parts.js";
import { Code, Machine } from "../text.js";
import { Warnings } from "../wording.js";
import { DataReport } from "./data_report.js";
import { Findings, Tokens } from "./dataset_report.js";
import { RecipeName, RecipeRecord } from "./recipe.js";

export function DryRun({ result }) {
  const { data, forecast, lengths, memory, plan, recipe, report, samples, spec, stop_tokens: stops, time, warnings } = result;
  return html`
    <h2>${t("dry.title")}</h2>
    <${Forecast} of=${forecast} />
    <${Warnings} found=${warnings} />
    ${memory?.fits === false && html`<div class="box error" role="alert">${t("dry.no_room", { free: bytes(memory.free_bytes) })}</div>`}
    <${Facts}
      rows=${[
        [t("dry.steps"), html`<${Amount} value=${plan.optimizer_steps} />`],
        [t("dry.rows_a_step"), html`<${Amount} value=${plan.rows_a_step} />`],
        [t("dry.evaluations"), html`<${Amount} value=${plan.evaluations} />`],
        [t("field.learning_rate"), html`<${Amount} value=${plan.learning_rate} />`],
        [t("dry.tokens"), html`<${Amount} value=${plan.tokens_an_epoch} />`],
        [
          t("dry.memory"),
          memory
            ? t("dry.band", { value: bytes(memory.bytes), low: bytes(memory.low_bytes), high: bytes(memory.high_bytes) })
            : t("dry.unknown"),
        ],
        [
          t("dry.time"),
          time?.total_seconds
            ? t("dry.time_band", {
                value: duration(time.total_seconds),
                low: duration(time.total_low_seconds),
                high: duration(time.total_high_seconds),
                start: duration(time.startup_seconds),
              })
            : t("dry.unknown"),
        ],
        [t("dry.stop_tokens"), stops?.length ? stops.map(({ token }) => html`<${Code} text=${token} /> `) : undefined],
        [t("dry.precision"), memory ? html`<${Code} text=${memory.precision} />` : undefined],
      ]}
    />
    ${recipe && html`<h3>${t("field.recipe")}: <${RecipeName} of=${recipe} /></h3><${RecipeRecord} of=${recipe} />`}
    ${report && html`<h3>${t("report.title")}</h3><${Findings} report=${report} /><${Tokens} of=${report.tokens} />`}
    <h3>${t("dry.lengths")}</h3>
    <${Lengths} lengths=${lengths} />
    <${Folded} title=${t("dry.data")}>${() => html`<${DataReport} report=${data} />`}</${Folded}>
    <${Folded} title=${t("dry.samples")}>${() => html`<${RenderedRows} rows=${samples} />`}</${Folded}>
    <${Folded} title=${t("dry.spec")}>${() => html`<${Machine} text=${JSON.stringify(spec, null, 2)} aria-label=${t("dry.spec")} />`}</${Folded}>
  `;
}

/** What the run will probably do to the model, judging by its learning rates. */
const Forecast = ({ of }) =>
  of?.effect
    ? html`<section class="box plain" aria-label=${t("dry.forecast")} data-effect=${of.effect}>
        <h2>${t("dry.forecast")}</h2>
        <p>
          ${t(`forecast.${of.effect}`, {
            sum: decimal(of.learning_rate_sum * of.lora_scaling, 2),
            low: decimal(of.hardly_below, 2),
            high: decimal(of.collapsed_above, 2),
          })}
        </p>
        <p class="hint">${t("dry.forecast_hint")}</p>
      </section>`
    : null;

/** Rows by tokens, as bars. */
function Lengths({ lengths }) {
  // Short lengths that no row has say nothing.
  const shown = lengths.slice(lengths.findIndex(({ rows }) => rows > 0));
  const most = Math.max(...lengths.map(({ rows }) => rows), 1);
  return html`<table class="bars">
    <caption class="unseen">${t("dry.lengths")}</caption>
    <thead><tr><th scope="col">${t("dry.up_to")}</th><th scope="col">${t("dry.rows")}</th></tr></thead>
    <tbody>
      ${shown.map(
        ({ up_to: upTo, rows }) => html`<tr>
        <th scope="row">${number(upTo)}</th>
        <td><meter max=${most} value=${rows} aria-label=${t("dry.rows")}></meter> ${number(rows)}</td>
      </tr>`,
      )}
    </tbody>
  </table>`;
}

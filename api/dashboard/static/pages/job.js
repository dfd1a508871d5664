// One job: where it stands, what can be done with it, and all that it reported.

import { html, useState } from "../vendor/preact-htm.js";
import { FINAL, get, getText, post, remove, useJobEvents, usePoll } from "../api.js";
import { Curves, Folded } from "../charts.js";
import { decimal, t } from "../language.js";
import { methodTitle } from "../methods.js";
import {
  Action,
  Amount,
  Confirm,
  Facts,
  Loaded,
  Method,
  Progress,
  State,
  Table,
  Time,
} from "../parts.js";
import { Code, Machine, User, plain } from "../text.js";
import { ErrorBox, Said, Warnings } from "../wording.js";
import { DataReport } from "./data_report.js";
import { EffectBox } from "./effect.js";
import { Events } from "./events.js";
import { Files } from "./files.js";
import { Standing, titleOf } from "./jobs.js";
import { useCurves } from "./overlay.js";
import { RecipeName, RecipeRecord } from "./recipe.js";
import { Review } from "./review.js";
import { Samples } from "./samples.js";

const PARTS = ["curves", "samples", "events", "logs", "attempts", "data", "metadata", "files"];
const LIVE_MS = 1500;
const LOG_BYTES = 256 * 1024;

export function Job({ id, part, query }) {
  const found = usePoll(
    (signal) => get(`/v1/jobs/${id}`, {}, signal),
    (job) => (job && FINAL.has(job.state) ? 0 : LIVE_MS),
    [id],
  );
  const events = useJobEvents(id);
  return html`<${Loaded} of=${found} kind="job">
    ${(job) => html`
      <${Head} job=${job} again=${found.again} />
      <${ErrorBox} error=${job.error} title=${t("job.ended_by")} />
      <${EffectBox} effect=${job.effect} event=${events.findLast((event) => event.type === "effect")} />
      <${Review} event=${events.findLast((event) => event.type === "review")} />
      <${Warnings} found=${job.warnings} />
      ${job.recipe && html`<${Folded} title=${t("recipe.set")}>${() => html`<${RecipeRecord} of=${job.recipe} />`}</${Folded}>`}
      <nav class="tabs" aria-label=${t("job.parts")}>
        ${PARTS.map(
          (name) =>
            html`<a href="#/jobs/${id}/${name}" aria-current=${name === part ? "page" : undefined}>${t(`part.${name}`)}</a>`,
        )}
      </nav>
      <section aria-label=${t(`part.${PARTS.includes(part) ? part : "curves"}`)}>
        <${Part} name=${part} job=${job} events=${events} query=${query} />
      </section>
    `}
  </${Loaded}>`;
}

function Part({ name, job, events, query }) {
  switch (name) {
    case "samples":
      return html`<${Samples} events=${events} />`;
    case "events":
      return html`<${Events} events=${events} />`;
    case "logs":
      return html`<${Logs} job=${job} />`;
    case "attempts":
      return html`<${Attempts} job=${job} />`;
    case "data":
      return html`<${Data} event=${events.findLast((event) => event.type === "data")} />`;
    case "metadata":
      return html`<${Metadata} job=${job} />`;
    case "files":
      return html`<${Files} job=${job} />`;
    default:
      return html`<${JobCurves} job=${job} others=${query.getAll("with")} />`;
  }
}

function Head({ job, again }) {
  const act = (action, body) => async () => {
    await post(`/v1/jobs/${job.id}/${action}`, body);
    again();
  };
  const rerun = (body) => async () => {
    const made = await post(`/v1/jobs/${job.id}/rerun`, body);
    location.hash = `#/jobs/${made.id}`;
  };
  const isOver = FINAL.has(job.state);
  return html`
    <div class="head">
      <p class="title"><${User} text=${titleOf(job)} /> <${State} state=${job.state} /> <${Standing} job=${job} /></p>
      <${Progress} job=${job} />
      <${Facts}
        rows=${[
          [t("job.id"), html`<${Code} text=${job.id} />`],
          [t("jobs.method"), html`<${Method} name=${job.method} />`],
          [t("jobs.model"), html`<${Code} text=${job.model_name} />`],
          [t("field.recipe"), job.recipe ? html`<${RecipeName} of=${job.recipe} />` : undefined],
          [t("mix.title"), job.spec.datasets ? html`<${Mix} datasets=${job.spec.datasets} />` : undefined],
          [t("job.steps"), html`<span class="number" dir="ltr">${job.step} / ${job.total_steps ?? "–"}</span>`],
          [t("job.attempt"), html`<${Amount} value=${job.attempt} />`],
          [t("jobs.created"), html`<${Time} at=${job.created_at} />`],
          [t("job.finished"), job.finished_at ? html`<${Time} at=${job.finished_at} />` : undefined],
          [
            t("job.rerun_of"),
            job.rerun_of
              ? html`<a href="#/jobs/${job.rerun_of}"><${Code} text=${job.rerun_of.slice(0, 8)} /></a>`
              : undefined,
          ],
        ]}
      />
      <p class="buttons">
        ${job.state === "succeeded" && html`<a class="button main" href="#/jobs/${job.id}/compare">${t("compare.title")}</a>`}
        ${(job.state === "queued" || job.state === "running") && html`<${Action} label=${t("job.pause")} act=${act("pause")} />`}
        ${job.state === "paused" && html`<${Resume} job=${job} act=${act} />`}
        ${!isOver && html`<${Confirm} label=${t("job.cancel")} question=${t("job.cancel_sure")} act=${act("cancel")} danger=${true} />`}
        ${isOver && html`<${Action} label=${t("job.rerun")} act=${rerun({})} />`}
        ${isOver && job.checkpoint_step > 0 && html`<${Action} label=${t("job.rerun_from", { n: job.checkpoint_step })} act=${rerun({ from_checkpoint: true })} />`}
        <a class="button" href="#/new?from=${job.id}">${t("job.clone")}</a>
        ${
          isOver &&
          html`<${Confirm} label=${t("job.delete")} question=${t("job.delete_sure")} danger=${true} act=${async () => {
            await remove(`/v1/jobs/${job.id}`);
            location.hash = "#/jobs";
          }} />`
        }
      </p>
    </div>
  `;
}

/** Resumes a job; one that has run for its hours needs more of them. */
function Resume({ job, act }) {
  const [hours, setHours] = useState(2 * (job.spec.max_hours ?? 0));
  const needsHours = job.pause_reason === "time_limit";
  return html`
    ${
      needsHours &&
      html`<label>
        ${t("job.max_hours")}
        <input type="number" min="0" step="any" dir="ltr" value=${hours} onInput=${(event) => setHours(event.currentTarget.valueAsNumber)} />
      </label>`
    }
    <${Action} label=${t("job.resume")} act=${act("resume", needsHours ? { max_hours: hours } : undefined)} main=${true} />
  `;
}

/** What the spec says of each of several datasets. */
const Mix = ({ datasets }) => html`<ul>
  ${datasets.map(
    ({ dataset_id: id, name, rows, weight }) => html`<li>
      ${id ? html`<a href="#/datasets/${id}"><${User} text=${name} /></a>` : html`<${User} text=${name} />`}${" · "}
      ${rows ? t("mix.rows", { n: rows }) : weight ? t("mix.weight", { weight: decimal(weight, 3) }) : t("mix.all")}
    </li>`,
  )}
</ul>`;

function JobCurves({ job, others }) {
  const [range, setRange] = useState(null);
  const found = useCurves([job.id, ...others], range);
  const recent = usePoll(
    (signal) => get("/v1/jobs", { limit: 100 }, signal),
    () => 0,
    [],
  );
  const shown = new Set([job.id, ...others]);
  const choices = recent.data?.jobs.filter((each) => !shown.has(each.id) && each.step > 0) ?? [];
  const set = (ids) => (location.hash = `#/jobs/${job.id}/curves?${new URLSearchParams(ids.map((id) => ["with", id]))}`);
  return html`
    <p class="overlaid">
      <label>
        ${t("overlay.add")}
        <select value="" onChange=${(event) => event.currentTarget.value && set([...others, event.currentTarget.value])}>
          <option value="">–</option>
          ${choices.map((each) => html`<option value=${each.id} dir="auto" translate=${false}>${plain(titleOf(each))} · ${methodTitle(each.method)}</option>`)}
        </select>
      </label>
      ${found.data?.slice(1).map(
        ({ job: other, title }) =>
          html`<button type="button" onClick=${() => set(others.filter((id) => id !== other.id))}>
            ${t("overlay.remove")} <${User} text=${title} />
          </button>`,
      )}
    </p>
    <${Loaded} of=${found}>${(jobs) => html`<${Curves} jobs=${jobs} range=${range} onRange=${setRange} />`}</${Loaded}>
  `;
}

function Logs({ job }) {
  const [attempt, setAttempt] = useState("");
  const load = async (signal) => ({
    text: await getText(`/v1/jobs/${job.id}/logs`, { last_bytes: LOG_BYTES, attempt }, signal),
  });
  const found = usePoll(load, () => (FINAL.has(job.state) ? 0 : 2 * LIVE_MS), [job.id, attempt, job.state]);
  const numbers = Array.from({ length: job.attempt }, (_, place) => place + 1);
  return html`
    <p>
      <label>
        ${t("job.attempt")}
        <select value=${attempt} onChange=${(event) => setAttempt(event.currentTarget.value)}>
          <option value="">${t("jobs.all")}</option>
          ${numbers.map((number) => html`<option value=${number}>${number}</option>`)}
        </select>
      </label>
      <a href="/v1/jobs/${job.id}/logs" download="${job.id}.log">${t("logs.whole")}</a>
    </p>
    <${Loaded} of=${found}>
      ${({ text }) => (text ? html`<${Machine} text=${text} aria-label=${t("part.logs")} />` : html`<p>${t("logs.none")}</p>`)}
    </${Loaded}>
  `;
}

function Attempts({ job }) {
  const found = usePoll(
    (signal) => get(`/v1/jobs/${job.id}/attempts`, {}, signal),
    () => (FINAL.has(job.state) ? 0 : LIVE_MS),
    [job.id, job.state],
  );
  return html`<${Loaded} of=${found}>
    ${({ attempts }) =>
      html`<${Table} caption=${t("part.attempts")} rows=${attempts} keyOf=${(each) => each.number} columns=${[
        [t("attempt.number"), (each) => html`<${Amount} value=${each.number} />`],
        [t("attempt.worker"), (each) => html`<${Code} text=${each.worker} />`],
        [t("attempt.device"), (each) => html`<${Code} text=${each.device_report?.name ?? each.device} />`],
        [t("attempt.started"), (each) => html`<${Time} at=${each.started_at} />`],
        [t("attempt.ended"), (each) => html`<${Time} at=${each.ended_at} />`],
        [
          t("attempt.outcome"),
          (each) =>
            each.outcome
              ? html`${t(`outcome.${each.outcome}`)} <${Said} code=${each.reason_code} params=${each.reason_params} english=${each.reason} />`
              : "–",
        ],
        [
          t("attempt.steps"),
          (each) => html`<span class="number" dir="ltr">${each.first_step ?? "–"} – ${each.last_step ?? "–"}</span>`,
        ],
      ]} />`}
  </${Loaded}>`;
}

const Data = ({ event }) =>
  event ? html`<p>${t("data.text")}</p><${DataReport} report=${event.data.report} />` : html`<p>${t("data.none")}</p>`;

function Metadata({ job }) {
  const found = usePoll(
    (signal) => get(`/v1/jobs/${job.id}/metadata`, {}, signal),
    () => 0,
    [job.id, job.state],
  );
  return html`<${Loaded} of=${found}>
    ${(metadata) => html`
      <p>${t(metadata.complete ? "metadata.complete" : "metadata.incomplete")}</p>
      <${Machine} text=${JSON.stringify(metadata, null, 2)} aria-label=${t("part.metadata")} />
    `}
  </${Loaded}>`;
}

// The list of jobs, newest first, kept current.

import { html, useState } from "../vendor/preact-htm.js";
import { get, usePoll } from "../api.js";
import { duration, t } from "../language.js";
import { methodTitle, methods } from "../methods.js";
import { Ago, Effect, Loaded, Method, Pager, Progress, State, Table } from "../parts.js";
import { Code, User } from "../text.js";

const STATES = ["queued", "running", "paused", "succeeded", "failed", "cancelled"];
const LIVE_MS = 2000;
const MAX_OVERLAID = 8;

/** A job by its name, or by the start of its id. */
export const titleOf = (job) => job.name ?? job.id.slice(0, 8);

function go(query, changes) {
  const next = new URLSearchParams(query);
  for (const [name, value] of Object.entries(changes)) value ? next.set(name, value) : next.delete(name);
  location.hash = `#/jobs?${next}`;
}

export function Jobs({ query }) {
  const [state, method, cursor] = ["state", "method", "cursor"].map((name) => query.get(name));
  const [chosen, setChosen] = useState([]);
  const page = usePoll(
    (signal) => get("/v1/jobs", { state, method, cursor }, signal),
    () => LIVE_MS,
    [state, method, cursor],
  );
  const toggle = (id) => setChosen((old) => (old.includes(id) ? old.filter((each) => each !== id) : [...old, id]));
  return html`
    <form class="filters" aria-label=${t("jobs.filters")}>
      <${Choice} label=${t("jobs.state")} value=${state} of=${STATES} text=${(name) => t(`state.${name}`)}
        onChange=${(value) => go(query, { state: value, cursor: null })} />
      <${Choice} label=${t("jobs.method")} value=${method} of=${methods().map(({ name }) => name)} text=${methodTitle} translate=${false}
        onChange=${(value) => go(query, { method: value, cursor: null })} />
      <a class="button main" href="#/new">${t("new.title")}</a>
    </form>
    <${Loaded} of=${page}>
      ${({ jobs, next_cursor: next }) => html`
        ${
          jobs.length
            ? html`<${Table} caption=${t("jobs.title")} rows=${jobs} keyOf=${(job) => job.id} columns=${columns(chosen, toggle)} />`
            : html`<p class="empty">${t(state || method || cursor ? "jobs.none_such" : "jobs.none")}</p>`
        }
        <${Pager} cursor=${cursor} next=${next} onCursor=${(to) => go(query, { cursor: to })}>
          ${chosen.length > 1 && html`<a class="button" href="#/curves/${chosen.join(",")}">${t("jobs.overlay", { n: chosen.length })}</a>`}
        </${Pager}>
      `}
    </${Loaded}>
  `;
}

const Choice = ({ label, value, of, text, translate, onChange }) => html`
  <label>
    ${label}
    <select value=${value ?? ""} onChange=${(event) => onChange(event.currentTarget.value)}>
      <option value="">${t("jobs.all")}</option>
      ${of.map((name) => html`<option value=${name} translate=${translate}>${text(name)}</option>`)}
    </select>
  </label>
`;

const columns = (chosen, toggle) => [
  [
    t("jobs.choose"),
    (job) =>
      html`<input type="checkbox" id="choose-${job.id}" aria-label=${t("jobs.choose_one")} aria-labelledby="choose-${job.id} name-${job.id}" checked=${chosen.includes(job.id)}
        disabled=${!chosen.includes(job.id) && chosen.length >= MAX_OVERLAID} onChange=${() => toggle(job.id)} />`,
  ],
  [t("jobs.name"), (job) => html`<a id="name-${job.id}" href="#/jobs/${job.id}"><${User} text=${titleOf(job)} /></a>`],
  [t("jobs.method"), (job) => html`<${Method} name=${job.method} />`],
  [t("jobs.model"), (job) => html`<${Code} text=${job.model_name} />`],
  [t("jobs.state"), (job) => html`<${State} state=${job.state} /> <${Effect} effect=${job.effect} /> <${Standing} job=${job} />`],
  [t("jobs.progress"), (job) => html`<${Progress} job=${job} />`],
  [t("jobs.created"), (job) => html`<${Ago} at=${job.created_at} />`],
];

/** Where a job stands, in some words: its place in the queue, or what it does. */
export function Standing({ job }) {
  const parts = [];
  if (job.queue_position) parts.push(t("job.place", { n: job.queue_position }));
  if (job.seconds_until_start !== null) parts.push(t("job.starts_in", { time: duration(job.seconds_until_start) }));
  if (["broker", "pause", "quota"].includes(job.waiting_for)) parts.push(t(`waiting.${job.waiting_for}`));
  if (job.phase) parts.push(t(`phase.${job.phase}`));
  if (job.seconds_left !== null) parts.push(t("job.left", { time: duration(job.seconds_left) }));
  if (job.requested) parts.push(t(`requested.${job.requested}`));
  if (["time_limit", "quota"].includes(job.pause_reason)) parts.push(t(`pause_reason.${job.pause_reason}`));
  return html`<span class="standing">${parts.join(" · ")}</span>`;
}

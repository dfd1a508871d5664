// Curves of several jobs over each other.

import { html, useRef, useState } from "../vendor/preact-htm.js";
import { FINAL, get, usePoll } from "../api.js";
import { Curves, question } from "../charts.js";
import { Loaded, State } from "../parts.js";
import { User } from "../text.js";
import { titleOf } from "./jobs.js";

const LIVE_MS = 3000;

/** Jobs with their curves, while one of them runs again and again. */
export function useCurves(ids, range) {
  const load = (signal) =>
    Promise.all(
      ids.map(async (id) => {
        const [job, metrics] = await Promise.all([
          get(`/v1/jobs/${id}`, {}, signal),
          get(`/v1/jobs/${id}/metrics`, question(range), signal),
        ]);
        return { job, title: titleOf(job), series: metrics.series };
      }),
    );
  const every = (found) => (found && found.every(({ job }) => FINAL.has(job.state)) ? 0 : LIVE_MS);
  const found = usePoll(load, every, [ids.join(","), String(range)]);
  // What is drawn stays while other steps are asked for.
  const drawn = useRef(null);
  drawn.current = found.data ?? drawn.current;
  return { ...found, data: drawn.current };
}

export function Overlay({ ids }) {
  const [range, setRange] = useState(null);
  const found = useCurves(ids, range);
  return html`<${Loaded} of=${found} kind="job">
    ${(jobs) => html`
      <ul class="jobs">
        ${jobs.map(({ job, title }) => html`<li><a href="#/jobs/${job.id}"><${User} text=${title} /></a> <${State} state=${job.state} /></li>`)}
      </ul>
      <${Curves} jobs=${jobs} range=${range} onRange=${setRange} />
    `}
  </${Loaded}>`;
}

// What happened to a job, event by event, in sentences.

import { html } from "../vendor/preact-htm.js";
import { bytes, has, t } from "../language.js";
import { Amount, Table, TimeToSecond } from "../parts.js";
import { Code } from "../text.js";
import { Message, Said, Worded, errorTitle } from "../wording.js";

/** What an event says besides its name, by its type. */
const TOLD = {
  queued: ({ rerun_of: old, from_checkpoint: goesOn }) =>
    old && html`<${Worded} code=${goesOn ? "told.rerun_from" : "told.rerun"} params=${{ job: old.slice(0, 8) }} />`,
  claimed: ({ worker, device }) => html`<${Worded} code="told.claimed" params=${{ worker, device }} />`,
  phase: ({ phase }) => t(`phase.${phase}`),
  first_step: (data) => html`<${Start} of=${data} />`,
  checkpoint: ({ step }) => t("samples.step", { n: step }),
  checkpoint_loaded: ({ step, job_id: job }) => html`<${Worded} code="told.loaded" params=${{ step, job: job.slice(0, 8) }} />`,
  samples: ({ step, samples }) => t("told.samples", { step, n: samples.length }),
  effect: ({ effect }) => t(`effect.${effect}`),
  cancel_requested: ({ save_checkpoint: isSaved }) => isSaved && t("told.saving_first"),
  artifacts_removed: ({ files, freed_bytes: freed }) => `${t("files.cleared", { n: files })} (${bytes(freed)})`,
  warning: (data) => html`<${Message} of=${data} />`,
  failed: ({ error }) => error && html`<strong>${errorTitle(error.code)}:</strong> <${Message} of=${error} />`,
  worker_lost: (data) => html`<${Reason} of=${data} />`,
  paused: (data) => html`<${Left} of=${data} />`,
  preempted: (data) => html`<${Left} of=${data} />`,
  cancelled: (data) => html`<${Left} of=${data} />`,
};

/** Why an attempt ended: of an attempt, or of the event that ended it. */
export const Reason = ({ of: { reason, reason_code: code, reason_params: params } }) =>
  html`<${Said} code=${code} params=${params} english=${reason} />`;

/** Whether an attempt that ended early left a checkpoint. */
const Left = ({ of: { checkpoint, checkpoint_step: step, reason, ...more } }) =>
  checkpoint ? t("told.saved", { n: step }) : reason && html`<${Reason} of=${{ reason, ...more }} />`;

/** How the process of a run was started, and where the seconds until its first step went. */
function Start({ of: { start, reason, since_claim_s: total, seconds = {} } }) {
  const parts = Object.entries(seconds).filter(([, value]) => value >= 0.1);
  return html`
    ${start && html`<div>${t(`start.${reason ?? start}`)}</div>`}
    ${total !== undefined && html`<div>${t("told.since_claim", { n: Math.round(10 * total) / 10 })}</div>`}
    ${
      parts.length > 0 &&
      html`<ul class="parts">
        ${parts.map(([name, value]) => html`<li>${has(`spent.${name}`) ? t(`spent.${name}`) : html`<${Code} text=${name} />`}: <${Amount} value=${value} digits=${2} /></li>`)}
      </ul>`
    }
  `;
}

const eventTitle = (type) => (has(`event.${type}`) ? t(`event.${type}`) : html`<${Code} text=${type} />`);

export const Events = ({ events }) => html`
  <${Table} caption=${t("part.events")} rows=${[...events].reverse()} keyOf=${(event) => event.id} columns=${[
    [t("events.time"), (event) => html`<${TimeToSecond} at=${event.data.at} />`],
    [t("events.what"), (event) => eventTitle(event.type)],
    [t("job.attempt"), (event) => html`<${Amount} value=${event.data.attempt} />`],
    [t("events.details"), (event) => TOLD[event.type]?.(event.data) || ""],
  ]} />
`;

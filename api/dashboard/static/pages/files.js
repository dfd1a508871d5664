// The files that a job left behind: download, merge, delete.

import { html, useState } from "../vendor/preact-htm.js";
import { ANSWER_WAIT_S, FINAL, answered, get, post, remove, usePoll } from "../api.js";
import { t } from "../language.js";
import { Action, BusyTask, Bytes, Confirm, Loaded, Table, Time } from "../parts.js";
import { Code } from "../text.js";

const LIVE_MS = 3000;
// What people come for stands first.
const ORDER = ["model", "merged", "metrics", "log", "manifest", "checkpoint"];

export function Files({ job }) {
  // Written when it is drawn: the language may change meanwhile.
  const [note, setNote] = useState({ say: () => "" });
  const [merging, setMerging] = useState(null);
  const isOver = FINAL.has(job.state);
  const found = usePoll(
    (signal) => get(`/v1/jobs/${job.id}/artifacts`, {}, signal),
    () => (isOver ? 0 : LIVE_MS),
    [job.id, job.state],
  );
  async function merge() {
    setNote({ say: () => t("files.merging") });
    try {
      const asked = await post(`/v1/jobs/${job.id}/merge`, undefined, { query: { wait_s: ANSWER_WAIT_S } });
      await answered(asked, setMerging);
    } catch (error) {
      setNote({ say: () => "" });
      throw error;
    } finally {
      setMerging(null);
    }
    setNote({ say: () => t("files.merged") });
    found.again();
  }
  async function clear() {
    const { freed_bytes: freed, removed } = await remove(`/v1/jobs/${job.id}/artifacts`);
    setNote({ say: () => html`${t("files.cleared", { n: removed.length })} (<${Bytes} count=${freed} />)` });
    found.again();
  }
  return html`
    ${
      isOver &&
      html`<p class="buttons">
      ${job.state === "succeeded" && job.spec.use_lora && html`<${Action} label=${t("files.merge")} act=${merge} />`}
      <${Confirm} label=${t("files.clear")} question=${t("files.clear_sure")} act=${clear} danger=${true} />
      ${merging ? html`<${BusyTask} text=${note.say()} id=${merging} />` : html`<span role="status">${note.say()}</span>`}
    </p>`
    }
    <${Loaded} of=${found}>
      ${({ artifacts }) =>
        artifacts.length
          ? html`<${Table} caption=${t("part.files")} rows=${[...artifacts].sort((one, other) => ORDER.indexOf(one.kind) - ORDER.indexOf(other.kind))} keyOf=${(file) => file.id} columns=${[
              [t("files.kind"), (file) => t(`artifact.${file.kind}`)],
              [t("files.name"), (file) => html`<a href=${file.href} download><${Code} text=${file.name} /></a>`],
              [t("files.size"), (file) => html`<${Bytes} count=${file.size_bytes} />`],
              [t("files.sha256"), (file) => html`<${Code} text=${`${file.sha256.slice(0, 12)}…`} />`],
              [t("jobs.created"), (file) => html`<${Time} at=${file.created_at} />`],
            ]} />`
          : html`<p>${t("files.none")}</p>`}
    </${Loaded}>
  `;
}

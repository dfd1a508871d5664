// Uploads a file that was chosen or dropped: reads it without storing, lets a person say how to read it, then stores it.

import { html, useEffect, useRef, useState } from "../vendor/preact-htm.js";
import { sendFile } from "../api.js";
import { t } from "../language.js";
import { Busy } from "../parts.js";
import { Code } from "../text.js";
import { ErrorBox } from "../wording.js";
import { answeredBy, isWhole, Mapper, remember, remembered } from "./mapper.js";

const KINDS = ["CSV", "TSV", "XLSX", "JSONL", "JSON", "Parquet"];
const IDLE = { is: "idle", error: null };
// A workbook may need a sheet, then columns, then a threshold: each guess leads to the next question.
const MOST_QUESTIONS = 5;

/** The reading options as query parameters. */
const asQuery = ({ map, ...others }) => ({
  ...others,
  map: Object.entries(map ?? {})
    .filter(([, column]) => column)
    .map(([field, column]) => `${field}:${column}`),
});

/** Lets a person choose a file, uploads it, and passes on the dataset. */
export function UploadButton({ onDone }) {
  const input = useRef(null);
  const running = useRef(null);
  const [state, setState] = useState(IDLE);
  const [isOver, setOver] = useState(false);
  useEffect(() => () => running.current?.abort(), []);

  /** Sends the file. Returns the response, or undefined if the upload was cancelled, or refused with an error on the page. */
  async function send(path, file, options, more, shown) {
    running.current?.abort();
    const controller = (running.current = new AbortController());
    const onProgress = (share) => setState((old) => ({ ...old, share }));
    setState((old) => ({ ...old, ...shown, share: 0, error: null }));
    try {
      const query = { ...asQuery(options), ...more };
      return await sendFile(path, file, { query, signal: controller.signal, onProgress });
    } catch (error) {
      if (error.name !== "AbortError") setState({ ...IDLE, error });
    }
    return undefined;
  }

  async function take(file) {
    if (!file) return;
    let [found, options, wasRemembered] = [null, {}, false];
    const choices = {};
    for (let round = 0; round < MOST_QUESTIONS; round++) {
      found = await send("/v1/datasets/check", file, options, {}, { is: "reading" });
      if (!found) return;
      const question = found.error?.question;
      if (question) choices[question.about] = question.choices;
      const kept = remembered(found.columns);
      if (kept && !options.map) {
        [options, wasRemembered] = [{ ...options, map: kept }, true];
        continue;
      }
      const answer = answeredBy(question);
      if (!answer || question.about in options) break;
      options = { ...options, ...answer };
      // A guess of some columns shows what is known so far; a whole one is read like a choice.
      if (question.about === "map" && !isWhole(answer.map)) break;
    }
    if (found.valid && !found.converted) await store(file, options, found);
    else setState({ is: "asking", file, found, options, choices, wasRemembered, error: null });
  }

  /** Reads the file again with changed options. */
  async function change(options) {
    const { file } = state;
    const found = await send("/v1/datasets/check", file, options, {}, { options, isReading: true });
    if (!found) return;
    const question = found.error?.question;
    setState((old) => ({
      ...old,
      found: { ...found, columns: found.columns.length ? found.columns : old.found.columns },
      choices: question ? { ...old.choices, [question.about]: question.choices } : old.choices,
      isReading: false,
    }));
  }

  async function store(file, options, found) {
    const made = await send("/v1/datasets", file, options, { name: file.name.slice(0, 200) }, { is: "sending" });
    if (!made) return;
    if (options.map) remember(found.columns, options.map);
    setState(IDLE);
    onDone(made);
  }

  function stop() {
    running.current?.abort();
    setState(IDLE);
  }

  if (state.is === "asking")
    return html`<${Mapper}
      ...${state}
      onChange=${change}
      onUpload=${() => store(state.file, state.options, state.found)}
      onCancel=${stop}
    />`;
  const isBusy = state.is !== "idle";
  const drop = {
    onDragOver: (event) => {
      event.preventDefault();
      setOver(true);
    },
    onDragLeave: () => setOver(false),
    onDrop: (event) => {
      event.preventDefault();
      setOver(false);
      if (!isBusy) take(event.dataTransfer.files[0]);
    },
  };
  return html`
    <div class="field drop ${isOver ? "over" : ""}" ...${drop}>
      <label for="upload">${t("datasets.upload")}</label>
      <input id="upload" type="file" ref=${input} disabled=${isBusy} aria-describedby="upload-hint" onChange=${async () => {
        const [file] = input.current.files;
        await take(file);
        if (input.current) input.current.value = "";
      }} />
      <span class="hint">${t("datasets.drop")}</span>
      <p class="hint" id="upload-hint">
        ${t("datasets.upload_hint")} ${KINDS.map((kind) => html`<${Code} text=${kind} /> `)}
      </p>
      ${isBusy && html`<${Sending} state=${state} onStop=${stop} />`}
      <${ErrorBox} error=${state.error} title=${t("datasets.refused")} />
    </div>
  `;
}

/** The progress of an upload, then a note that the service is reading the file. */
function Sending({ state, onStop }) {
  const isSent = state.share >= 1;
  const label = t(state.is === "sending" ? "datasets.uploading" : "datasets.reading");
  return html`
    <p class="sending">
      <progress max="1" value=${isSent ? undefined : state.share} aria-label=${label}></progress>
      <span aria-hidden="true">${t("datasets.sent", { percent: Math.floor(100 * state.share) })}</span>
      <button type="button" onClick=${onStop}>${t("cancel")}</button>
    </p>
    <${Busy} text=${label} />
  `;
}

// Datasets: upload, what was found in them, their rows as they are and as a model sees them.

import { html, useState } from "../vendor/preact-htm.js";
import { answered, get, post, remove, usePoll } from "../api.js";
import { t } from "../language.js";
import { LABELLED } from "../methods.js";
import { Ago, Amount, Busy, Bytes, Confirm, Facts, Field, Loaded, Pager, RenderedRows, Table, Time } from "../parts.js";
import { Block, Code, User } from "../text.js";
import { ErrorBox, Reasons } from "../wording.js";
import { DatasetReport } from "./dataset_report.js";
import { isPublished } from "./mapper.js";
import { promptText } from "./samples.js";
import { UploadButton } from "./upload.js";

const PAGE = 20;

const nameOf = (dataset) => dataset.name ?? dataset.id.slice(0, 8);

export function Datasets() {
  const [cursor, setCursor] = useState(null);
  const found = usePoll(
    (signal) => get("/v1/datasets", { cursor }, signal),
    () => 0,
    [cursor],
  );
  return html`
    <${UploadButton} onDone=${(made) => (location.hash = `#/datasets/${made.id}`)} />
    <${Loaded} of=${found}>
      ${({ datasets, next_cursor: next }) => html`
        ${
          datasets.length
            ? html`<${Table} caption=${t("datasets.title")} rows=${datasets} keyOf=${(each) => each.id} columns=${[
                [t("jobs.name"), (each) => html`<a href="#/datasets/${each.id}"><${User} text=${nameOf(each)} /></a>`],
                [t("dataset.kind"), (each) => t(`kind.${each.kind}`)],
                [t("dataset.train_rows"), (each) => html`<${Amount} value=${each.train_rows} />`],
                [t("dataset.validation_rows"), (each) => html`<${Amount} value=${each.validation_rows} />`],
                [t("files.size"), (each) => html`<${Bytes} count=${each.size_bytes} />`],
                [t("jobs.created"), (each) => html`<${Ago} at=${each.created_at} />`],
              ]} />`
            : html`<p class="empty">${t("datasets.none")}</p>`
        }
        <${Pager} cursor=${cursor} next=${next} onCursor=${setCursor} />
      `}
    </${Loaded}>
  `;
}

export function Dataset({ id }) {
  const found = usePoll(
    (signal) => get(`/v1/datasets/${id}`, {}, signal),
    () => 0,
    [id],
  );
  return html`<${Loaded} of=${found} kind="dataset">
    ${(dataset) => html`
      <p class="title"><${User} text=${nameOf(dataset)} /></p>
      <${Report} dataset=${dataset} />
      <p class="buttons">
        <${Confirm} label=${t("dataset.delete")} question=${t("dataset.delete_sure")} danger=${true} act=${async () => {
          await remove(`/v1/datasets/${id}`);
          location.hash = "#/datasets";
        }} />
      </p>
      <h2>${t("report.title")}</h2>
      <${DatasetReport} dataset=${dataset} />
      <h2>${t("dataset.rows")}</h2>
      <${Rows} dataset=${dataset} />
      <h2>${t("dataset.preview")}</h2>
      <${Preview} dataset=${dataset} />
    `}
  </${Loaded}>`;
}

function Report({ dataset }) {
  const { desirable_rows: desirable, train_rows: rows } = dataset;
  const renamed = Object.entries(dataset.mapping ?? {}).filter(([field, column]) => field !== column);
  return html`
    <${Facts}
      rows=${[
        [t("dataset.kind"), t(`kind.${dataset.kind}`)],
        [t("dataset.file_kind"), dataset.file_kind ? html`<${Code} text=${dataset.file_kind} />` : undefined],
        [t("dataset.encoding"), dataset.encoding ? html`<${Code} text=${dataset.encoding} />` : undefined],
        [t("dataset.layout"), isPublished(dataset.layout) ? html`<${Code} text=${dataset.layout} />` : undefined],
        [t("dataset.mapping"), renamed.length ? renamed.map(([field, column]) => html`<div><${Code} text=${field} />: <${User} text=${column} /></div>`) : undefined],
        [t("dataset.unused"), dataset.unused?.length ? dataset.unused.map((column) => html`<div><${User} text=${column} /></div>`) : undefined],
        [t("dataset.skipped"), dataset.skipped_rows ? html`<${Amount} value=${dataset.skipped_rows} /> <a href=${`/v1/datasets/${dataset.id}/broken`} download>${t("dataset.broken")}</a>` : undefined],
        [t("dataset.format"), html`<${Code} text=${dataset.format} />`],
        [t("dataset.train_rows"), html`<${Amount} value=${rows} />`],
        [t("dataset.validation_rows"), html`<${Amount} value=${dataset.validation_rows} />`],
        [t("dataset.desirable"), dataset.kind === LABELLED ? html`<${Amount} value=${desirable} />` : undefined],
        [t("dataset.undesirable"), dataset.kind === LABELLED ? html`<${Amount} value=${rows - desirable} />` : undefined],
        [t("files.size"), html`<${Bytes} count=${dataset.size_bytes} />`],
        [t("files.sha256"), html`<${Code} text=${dataset.sha256} />`],
        [t("jobs.created"), html`<${Time} at=${dataset.created_at} />`],
      ]}
    />
    <${Reasons} of=${dataset.warnings} />
    ${
      dataset.kind === LABELLED &&
      html`<p class="balance">
        <label for="balance">${t("dataset.balance")}</label>
        <meter id="balance" min="0" max=${rows} value=${desirable}></meter>
        <span>${t("dataset.share", { percent: Math.round((100 * desirable) / rows) })}</span>
      </p>`
    }
  `;
}

/** An answer or prompt, which is text or a list of turns. */
const spoken = (value) => (typeof value === "string" || Array.isArray(value) ? promptText(value) : JSON.stringify(value));

function Rows({ dataset }) {
  const [first, setFirst] = useState(1);
  const found = usePoll(
    (signal) => get(`/v1/datasets/${dataset.id}/rows`, { first, count: PAGE }, signal),
    () => 0,
    [dataset.id, first],
  );
  return html`
    <${Loaded} of=${found}>
      ${({ rows }) =>
        rows.map(
          (row) => html`<article class="row">
          <h3>${t("rows.row", { n: row.row })} ${row.label !== undefined && html` · ${t(row.label ? "rows.desirable" : "rows.undesirable")}`}</h3>
          ${["prompt", "completion", "chosen", "rejected"]
            .filter((name) => row[name] !== undefined)
            .map((name) => html`<h4>${t(`rows.${name}`)}</h4><${Block} text=${spoken(row[name])} />`)}
        </article>`,
        )}
    </${Loaded}>
    <p class="buttons">
      <button type="button" disabled=${first === 1} onClick=${() => setFirst(Math.max(1, first - PAGE))}>${t("rows.earlier")}</button>
      <button type="button" disabled=${(found.data?.rows.length ?? 0) < PAGE} onClick=${() => setFirst(first + PAGE)}>${t("rows.later")}</button>
    </p>
  `;
}

function Preview({ dataset }) {
  const [model, setModel] = useState("tafdil/tiny-arabic-qwen-2");
  const [state, setState] = useState({ is: "not" });
  async function ask(event) {
    event.preventDefault();
    setState({ is: "busy" });
    try {
      const { rows } = await answered(await post(`/v1/datasets/${dataset.id}/preview`, { model_name: model, rows: 5 }));
      setState({ is: "done", rows, error: null });
    } catch (error) {
      setState({ is: "done", rows: [], error });
    }
  }
  return html`
    <form class="filters" onSubmit=${ask}>
      <${Field} id="p-model" label=${t("jobs.model")}>
        ${(attributes) => html`<input ...${attributes} dir="ltr" value=${model} onInput=${(event) => setModel(event.currentTarget.value)} />`}
      </${Field}>
      <button disabled=${state.is === "busy"}>${t("dataset.preview_ask")}</button>
    </form>
    ${state.is === "busy" && html`<${Busy} />`}
    <${ErrorBox} error=${state.error} />
    ${state.rows?.length > 0 && html`<${RenderedRows} rows=${state.rows} />`}
  `;
}

// Rows as chat turns, before a model and its template are chosen.

import { html } from "../vendor/preact-htm.js";
import { has, t } from "../language.js";
import { Block, Code, plain } from "../text.js";

/** `rows`: conversations of a check, each with `prompt`, `answers` and `label`. */
export function Conversations({ rows }) {
  const shown = rows.filter((row) => row.prompt.length || Object.keys(row.answers).length);
  if (!shown.length) return null;
  return html`
    <section class="conversations" aria-labelledby="conversations-title">
      <h3 id="conversations-title">${t("turns.title")}</h3>
      <p class="hint">${t("turns.hint")}</p>
      ${shown.map((row, at) => html`<${Conversation} key=${at} row=${row} number=${row.row ?? at + 1} />`)}
    </section>
  `;
}

const Conversation = ({ row, number }) => html`
  <article class="row">
    <h4>${t("rows.row", { n: number })}</h4>
    ${row.prompt.map((turn) => html`<${Turn} turn=${turn} />`)}
    <div class=${Object.keys(row.answers).length > 1 ? "sides" : ""}>
      ${Object.entries(row.answers).map(
        ([name, turns]) => html`<div class="answer ${name}">
          ${turns.map((turn) => html`<${Turn} turn=${turn} about=${aboutAnswer(name, row.label)} />`)}
        </div>`,
      )}
    </div>
  </article>
`;

/** Which answer it is, or how it was judged. */
const aboutAnswer = (name, label) =>
  name !== "completion" ? t(`rows.${name}`) : label === null ? "" : t(label ? "rows.desirable" : "rows.undesirable");

const Turn = ({ turn: { role, content, ...more }, about }) => html`
  <h5>${has(`role.${role}`) ? t(`role.${role}`) : html`<span translate=${false}>${plain(role)}</span>`}${about && ` · ${about}`}</h5>
  ${content && html`<${Block} text=${content} />`}
  ${Object.entries(more).map(([name, text]) => html`<p><${Code} text=${name} />: <${Code} text=${text} /></p>`)}
`;

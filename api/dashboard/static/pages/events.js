// What happened to a job, event by event, in sentences.

import { html } from "../vendor/preact-htm.js";
import { t } from "../language.js";
import { Amount, Table, TimeToSecond } from "../parts.js";
import { Message } from "../wording.js";

/** An event of a type that the service has no sentence for is named. */
const sentenceOf = ({ type, data }) => html`<${Message} of=${{ ...data, message: data.message ?? type }} />`;

export const Events = ({ events }) => html`
  <${Table} caption=${t("part.events")} rows=${[...events].reverse()} keyOf=${(event) => event.id} columns=${[
    [t("events.time"), (event) => html`<${TimeToSecond} at=${event.data.at} />`],
    [t("events.what"), sentenceOf],
    [t("job.attempt"), (event) => html`<${Amount} value=${event.data.attempt} />`],
  ]} />
`;

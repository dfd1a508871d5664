// Signing in with an API key, which the browser then keeps in a cookie that no script reads.

import { html, useState } from "../vendor/preact-htm.js";
import { post } from "../api.js";
import { t } from "../language.js";
import { Field } from "../parts.js";
import { ErrorBox } from "../wording.js";

export function SignIn({ onDone }) {
  const [key, setKey] = useState("");
  const [error, setError] = useState(null);
  async function enter(event) {
    event.preventDefault();
    try {
      await post("/v1/session", { key: key.trim() });
      onDone();
    } catch (caught) {
      setError(caught);
    }
  }
  return html`<form onSubmit=${enter} class="narrow">
    <p>${t("sign_in.text")}</p>
    <${Field} id="key" label=${t("sign_in.key")} hint=${t("sign_in.hint")}>
      ${(attributes) =>
        html`<input ...${attributes} type="password" autocomplete="current-password" required dir="ltr" value=${key} onInput=${(event) => setKey(event.currentTarget.value)} />`}
    </${Field}>
    <${ErrorBox} error=${error} />
    <button class="main">${t("sign_in.enter")}</button>
  </form>`;
}

// Recipes: the choice of one in the form of a new job, and what one set.

import { html } from "../vendor/preact-htm.js";
import { t } from "../language.js";
import { methodOf } from "../methods.js";
import { marks, Table, Wrong } from "../parts.js";
import { Code } from "../text.js";
import { Message } from "../wording.js";

/** The recipes that a method has; none in the methods of a service that has no recipes. */
export const recipesOf = (method) => methodOf(method)?.fields.find(({ name }) => name === "recipe")?.choices ?? [];

/** The choice of a recipe, or of none; `onChange` hears its name, or an empty text. */
export function Recipes({ method, chosen, wrong, onChange }) {
  const choice = (name) => html`<label class="choice">
    <input type="radio" name="recipe" value=${name} checked=${chosen === name} onChange=${() => onChange(name)} />
    <span><strong>${t(`recipe.${name || "none"}`)}</strong> ${t(`recipe.${name || "none"}_text`)}</span>
  </label>`;
  return html`
    <fieldset id="f-recipe" ...${marks("f-recipe", undefined, wrong)} tabindex="-1">
      <legend>${t("field.recipe")}</legend>
      ${[...recipesOf(method), ""].map(choice)}
      <${Wrong} id="f-recipe" of=${wrong} />
    </fieldset>
  `;
}

/** The name of a job's recipe, with the version that set its fields. */
export const RecipeName = ({ of }) => t("recipe.named", { name: t(`recipe.${of.name}`), version: of.version });

/** What a recipe went by, and each field that it set, with its value and why. */
export const RecipeRecord = ({ of }) => html`
  <p><${Message} of=${of} /></p>
  <${Table} caption=${t("recipe.set")} rows=${of.fields} keyOf=${({ name }) => name} columns=${[
    [t("recipe.field"), ({ name }) => html`<${Code} text=${name} />`],
    [t("recipe.value"), ({ value }) => html`<${Code} text=${JSON.stringify(value)} />`],
    [t("recipe.source"), (field) => html`<${Message} of=${field} />`],
  ]} />
`;

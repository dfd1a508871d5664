// The methods that the service knows, asked for once: pages keep no list of their own.

import { get } from "./api.js";

/** The kind of a dataset of single answers with a label. A method has the same name; neither stands for the other. */
export const LABELLED = "kto";

let known = [];

/** Asks for the methods, unless that was done. A key that may not read gets none; pages say so themselves. */
export async function loadMethods() {
  if (known.length) return;
  try {
    known = (await get("/v1/methods")).methods;
  } catch (error) {
    if (error.status !== 403) throw error;
  }
}

/** Every method as `GET /v1/methods` describes it, those that introductions name first. */
export const methods = () => [...known].sort((one, other) => Number(other.headline) - Number(one.headline));

export const methodOf = (name) => known.find((each) => each.name === name);

/** A method as people write it, e.g. `SimPO`. A job of an earlier version may name one that is gone. */
export const methodTitle = (name) => methodOf(name)?.title ?? name;

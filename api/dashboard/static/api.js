// The service over HTTP: calls, errors, event streams, and hooks that keep a page current.

import { useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { current } from "./language.js";

/** An error in the service's one shape: code, message, hint, details; `status` 0 when nothing answered. */
export class ApiError extends Error {
  constructor(status, error) {
    super(error.message);
    Object.assign(this, { details: [], hint: "", ...error, status });
  }
}

function address(path, query = {}) {
  const pairs = Object.entries(query).flatMap(([name, value]) => [value].flat().map((each) => [name, each]));
  const given = pairs.filter(([, value]) => value !== undefined && value !== null && value !== "");
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}

async function send(method, path, { query, body, headers = {}, signal } = {}) {
  const isJson = body !== undefined && !(body instanceof Blob);
  const sent = { "Accept-Language": current(), ...(isJson && { "Content-Type": "application/json" }), ...headers };
  let response;
  try {
    response = await fetch(address(path, query), {
      method,
      signal,
      headers: sent,
      body: isJson ? JSON.stringify(body) : body,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { code: "unreachable", message: "" });
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  const error = told?.error ?? { code: "internal", message: `HTTP ${response.status}` };
  if (response.status === 401) dispatchEvent(new Event("signed-out"));
  throw new ApiError(response.status, error);
}

const read = async (response) => (response.status === 204 ? null : response.json());
export const get = async (path, query, signal) => read(await send("GET", path, { query, signal }));
export const getText = async (path, query, signal) => (await send("GET", path, { query, signal })).text();
export const post = async (path, body, { query, headers, signal } = {}) =>
  read(await send("POST", path, { body, query, headers, signal }));
export const remove = async (path, query) => read(await send("DELETE", path, { query }));

/**
 * Sends a file as the body of a POST. `onProgress(share)` hears how much of it has left, 0 to 1, which `fetch` does not report.
 * Throws an `ApiError`, and an `AbortError` once `signal` says so.
 */
export function sendFile(path, file, { query, signal, onProgress }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", address(path, query));
    request.setRequestHeader("Accept-Language", current());
    request.responseType = "json";
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.upload.onload = () => onProgress(1);
    request.onerror = () => reject(new ApiError(0, { code: "unreachable", message: "" }));
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    request.onload = () => {
      const { status, response } = request;
      if (status >= 200 && status < 300) return resolve(response);
      if (status === 401) dispatchEvent(new Event("signed-out"));
      return reject(new ApiError(status, response?.error ?? { code: "internal", message: `HTTP ${status}` }));
    };
    signal.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}

/** How long a request for a task waits for the answer; what takes longer can be cancelled meanwhile. */
export const ANSWER_WAIT_S = 2;

/** Cancels a task. One that is over meanwhile stays as it is. */
export async function cancelTask(id) {
  try {
    await post(`/v1/tasks/${id}/cancel`);
  } catch (error) {
    if (error.code !== "state_conflict") throw error;
  }
}

/** The result of a task, once a worker has answered it. Throws its error. `onWait(id)` hears which task it waits for. */
export async function answered(task, onWait) {
  while (task.state === "queued" || task.state === "running") {
    onWait?.(task.id);
    await new Promise((resolve) => setTimeout(resolve, 1000));
    task = await get(`/v1/tasks/${task.id}`);
  }
  if (task.error) throw new ApiError(200, task.error);
  return task.result;
}

/** Events of a stream: `{id, type, data}`. Ends when the stream does. `onOpen(response)` sees its headers. */
export async function* events(path, { method = "GET", query, body, signal, onOpen } = {}) {
  const response = await send(method, path, { query, body, signal });
  onOpen?.(response);
  if (response.status === 204) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (waiting + value).split("\n\n");
    waiting = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s, 2)));
      if (fields.data) yield { id: Number(fields.id), type: fields.event, data: JSON.parse(fields.data) };
    }
  }
}

/**
 * What `load(signal)` answers, asked again every `every(data)` milliseconds (0: not again), less often when answers are
 * slow and not at all while the page is hidden.
 * @returns `{data, error, again}`; the last answer stays while a later question fails.
 */
export function usePoll(load, every, dependencies) {
  const [found, setFound] = useState({ data: null, error: null });
  const again = useRef(() => {});
  useEffect(() => {
    const controller = new AbortController();
    let timer, isDue;
    let round = 0;
    async function look() {
      clearTimeout(timer);
      isDue = document.hidden;
      if (isDue || controller.signal.aborted) return;
      const mine = ++round;
      const began = performance.now();
      let answer = null;
      let isGone = false;
      try {
        answer = await load(controller.signal);
        if (mine === round && !controller.signal.aborted) setFound({ data: answer, error: null });
      } catch (error) {
        if (error.name === "AbortError" || mine !== round) return;
        isGone = error.status === 404;
        setFound((old) => ({ ...old, error }));
      }
      const wait = isGone ? 0 : every(answer);
      if (wait && mine === round && !controller.signal.aborted)
        timer = setTimeout(look, Math.max(wait, 5 * (performance.now() - began)));
    }
    const onVisible = () => isDue && look();
    document.addEventListener("visibilitychange", onVisible);
    setFound({ data: null, error: null });
    look();
    again.current = look;
    return () => {
      clearTimeout(timer);
      controller.abort();
      document.removeEventListener("visibilitychange", onVisible);
    };
  }, dependencies);
  return { ...found, again: () => again.current() };
}

export const FINAL = new Set(["succeeded", "failed", "cancelled"]);

const pause = (ms, signal) =>
  new Promise((resolve) => {
    setTimeout(resolve, ms);
    signal.addEventListener("abort", resolve);
  });

/** The events of a job but its metrics, growing while it runs. A stream that breaks is taken up where it broke. */
export function useJobEvents(id) {
  const [found, setFound] = useState([]);
  useEffect(() => {
    const controller = new AbortController();
    const { signal } = controller;
    setFound([]);
    (async () => {
      let after = 0;
      let last = null;
      while (!signal.aborted) {
        try {
          let pending = [];
          let isWaiting = false;
          for await (const event of events(`/v1/jobs/${id}/events`, { query: { after, without: "metrics" }, signal })) {
            [after, last] = [event.id, event.type];
            pending.push(event);
            // Many come at once when a job has a history: they are drawn together.
            if (!isWaiting) {
              isWaiting = true;
              setTimeout(() => {
                const arrived = pending;
                [pending, isWaiting] = [[], false];
                if (!signal.aborted) setFound((old) => [...old, ...arrived]);
              }, 50);
            }
          }
          if (FINAL.has(last)) return;
        } catch (error) {
          if (error.name === "AbortError" || (error.status >= 400 && error.status < 500 && error.status !== 429)) return;
        }
        await pause(2000, signal);
      }
    })();
    return () => controller.abort();
  }, [id]);
  return found;
}

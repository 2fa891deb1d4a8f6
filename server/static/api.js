// Talking to the server. Addresses are relative, so that the page works behind a prefix.

import { askForKey, storedKey } from "./key.js";

export class ApiError extends Error {}

/** The server wants a key, and the user gave none. */
export class KeyNeeded extends ApiError {
  constructor() {
    super("No key was given. Send a message or load the page again to be asked for one.");
  }
}

const UNREACHED = "The server can’t be reached.";
const BROKEN = "The connection to the server broke off; what had come stands here.";

/** The response to a request that succeeded; asks for a key where one is needed. */
export async function call(path, { body, signal } = {}) {
  for (;;) {
    const key = storedKey();
    const response = await send(path, body, signal, key).catch((error) => reword(error, UNREACHED));
    if (response.ok) return response;
    if (response.status !== 401) throw new ApiError(await messageOf(response));
    const replaced = storedKey() !== key; // by the answer to another request's question
    if (!replaced && !(await askForKey(key !== null))) throw new KeyNeeded();
  }
}

export const getJson = async (path) => (await call(path)).json().catch((error) => reword(error, UNREACHED));

/** Browsers call a lost connection a TypeError, each in its own words. */
function reword(error, message) {
  throw error instanceof TypeError ? new ApiError(message) : error;
}

function send(path, body, signal, key) {
  const headers = {};
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  if (body === undefined) return fetch(path, { headers, signal, cache: "no-store" });
  headers["Content-Type"] = "application/json";
  return fetch(path, { method: "POST", headers, signal, body: JSON.stringify(body) });
}

async function messageOf(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `${response.status} ${response.statusText} ${text.slice(0, 200)}`.trim();
  }
}

/** The JSON of each server-sent event up to [DONE]; throws what an error event says. */
export async function* events(response) {
  for await (const line of lines(response.body)) {
    if (!line.startsWith("data:")) continue;
    const data = line.slice("data:".length).trim();
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(event.error.message);
    yield event;
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => reword(error, BROKEN));
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}

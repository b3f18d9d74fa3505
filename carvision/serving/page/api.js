/* Requests to the server, and its errors as sentences. */
import { el } from "./dom.js";

const MAX_TRIES = 6, MAX_WAIT_S = 30;
const UNREACHABLE = "The server can't be reached. Is it running, and is this device connected?";
const NOT_OURS = "The answer is not one of this server: is a proxy between?";
let token = null; // in memory only
let asking = null; // the promise of a token, while the dialog is open
let tokenWanted = false;

/** An error whose message is a sentence for the user. canRetry: the same request may succeed later. */
export class Failure extends Error {
  constructor(message, { code = "", status = 0, canRetry = false } = {}) {
    super(message);
    Object.assign(this, { code, status, canRetry });
  }
}

export function asFailure(error) {
  return error instanceof Failure ? error : new Failure(`This page failed: ${error.message}. Load it again.`);
}

export const needsToken = () => tokenWanted;

/** Return the URL of an operation, below the page's own address, also behind a proxy with a path of its own. */
export function urlOf(path, query = {}) {
  const url = new URL(path.replace(/^\/+/, ""), document.baseURI);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  return url;
}

/**
 * Send a request; return its JSON, or its Blob if `accept` is another type. Waits as the server asks while it is busy.
 *
 * onWait(seconds) is called before each wait. Throws Failure, or AbortError if the signal says so.
 */
export async function ask(path, { query, form, accept = "application/json", signal, onWait } = {}) {
  const url = urlOf(path, query);
  for (let tries = 1; ; tries++) {
    const sent = token;
    const headers = { Accept: accept, ...(sent ? { Authorization: `Bearer ${sent}` } : {}) };
    let response, body;
    try {
      response = await fetch(url, { method: form ? "POST" : "GET", body: form, headers, signal, cache: "no-store" });
      if (response.ok) return await (accept === "application/json" ? response.json() : response.blob());
      body = await response.text();
    } catch (error) {
      if (signal?.aborted) throw new DOMException("cancelled", "AbortError");
      throw new Failure(error instanceof SyntaxError ? NOT_OURS : UNREACHABLE, { canRetry: true });
    }
    if (response.status === 401) {
      if (sent === token) await askToken(sent !== null); // else another request has asked for it meanwhile
      continue;
    }
    const after = Number(response.headers.get("Retry-After"));
    if ([429, 503].includes(response.status) && after > 0 && after <= MAX_WAIT_S && tries < MAX_TRIES) {
      onWait?.(after);
      await pause(after, signal);
      continue;
    }
    throw failureOf(response, body);
  }
}

function failureOf(response, body) {
  const canRetry = [429, 500, 502, 503, 504].includes(response.status);
  try {
    const { code, message } = JSON.parse(body).error;
    return new Failure(sentence(message), { code, status: response.status, canRetry });
  } catch {
    const text = `The server answered ${response.status} ${response.statusText}`.trim();
    return new Failure(`${text}, without saying why.`, { status: response.status, canRetry });
  }
}

/** Return a message as a sentence: with a capital and a full stop. */
export function sentence(message) {
  const text = String(message).trim();
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("cancelled", "AbortError"));
    }, { once: true });
  });
}

/** Ask for the token, once for all requests that wait for it. */
function askToken(wasWrong) {
  tokenWanted = true;
  asking ??= new Promise((resolve, reject) => {
    const input = el("input", { type: "password", required: true, autocomplete: "off", spellcheck: "false" });
    const dialog = el("dialog", { "aria-labelledby": "token-title" }, el("form", { method: "dialog" },
      el("h2", { id: "token-title" }, "This server wants a token"),
      el("p", {}, el("label", {}, "Token ", input)),
      wasWrong && el("p", { class: "wrong", role: "alert" }, "The server does not know this token."),
      el("p", { class: "note" }, "It stays in the memory of this page until you close it."),
      el("p", { class: "actions" }, el("button", { class: "primary" }, "Continue"))));
    dialog.addEventListener("close", () => {
      asking = null;
      token = input.value.trim() || null;
      dialog.remove();
      if (token) return resolve();
      const options = { code: "unauthorized", status: 401, canRetry: true };
      reject(new Failure("This server answers only with its token.", options));
    }, { once: true });
    document.body.append(dialog);
    dialog.showModal();
    input.focus();
  });
  return asking;
}

/** The API that the page stands on; scripts use the same (`api/v1/openapi.json`). */

/** An answer that is no success, or none at all (`status` 0). */
export class Failure extends Error {
  constructor(status, { message, code, param } = {}, retryAfter = null) {
    super(message ?? (status ? `The answer was ${status}.` : "Flowstack does not answer."));
    Object.assign(this, { status, code, param, retryAfter });
  }
}

const waiting = new Set();
let csrf = null;

/** Show that answers are awaited, once that takes long enough to be seen. */
function showWaiting() {
  const oldest = Math.min(...[...waiting].map((one) => one.since));
  const waits = waiting.size ? performance.now() - oldest : 0;
  document.body.classList.toggle("waits", waits > 150);
  const words = document.getElementById("slow");
  if (words) words.textContent = waits > 3000 ? `Still asking, ${Math.round(waits / 1000)} s. A shorter period answers sooner.` : "";
  if (waiting.size) setTimeout(showWaiting, 200);
}

/**
 * Ask, and give the JSON that came, or null where none did.
 * `quiet` is for what is asked again and again: the page does not show that it waits.
 */
export async function ask(method, path, { params, body, signal, headers = {}, quiet } = {}) {
  const pending = { since: performance.now() };
  if (!quiet) {
    waiting.add(pending);
    if (waiting.size === 1) setTimeout(showWaiting, 160);
  }
  try {
    const query = params ? `?${new URLSearchParams(params)}` : "";
    const fields = { ...headers };
    if (body !== undefined) fields["Content-Type"] = "application/json";
    if (method !== "GET" && csrf) fields["X-CSRF-Token"] = csrf;
    let answer;
    try {
      answer = await fetch(path + query, { method, headers: fields, signal, body: body === undefined ? undefined : JSON.stringify(body) });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure(0);
    }
    const found = answer.headers.get("content-type")?.startsWith("application/json") ? await answer.json().catch(() => null) : null;
    if (answer.ok) return found;
    if (answer.status === 401 && path.startsWith("api/") && !path.endsWith("/session")) dispatchEvent(new Event("signed-out"));
    throw new Failure(answer.status, found?.error, answer.headers.get("retry-after"));
  } finally {
    waiting.delete(pending);
    if (!waiting.size) showWaiting();
  }
}

const root = "api/v1/";

/** GET below `api/v1/`. `params` are pairs, or an object. */
export const get = (path, params, options) => ask("GET", root + path, { params, ...options });

/** A change below `api/v1/`. */
export const send = (method, path, body) => ask(method, root + path, { body });

/** Who is signed in, and the clock of the machine that keeps the ledger. */
export async function session() {
  const found = await get("session");
  csrf = found.csrf_token;
  return { ...found, ahead: new Date(found.time) - Date.now() };
}

/** The address of an export. */
export const exportAddress = (params) => `${root}requests/export?${new URLSearchParams(params)}`;

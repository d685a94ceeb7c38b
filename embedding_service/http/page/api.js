// Requests to the service that this page came from, and elements made of their answers.
// Whatever a user or the service says becomes text, never HTML.

export const ROOT = new URL("..", import.meta.url);
const KEY = "embedding-service-key";
let kept = "";

/** Return the key of this tab. */
export function key() {
  try {
    return sessionStorage.getItem(KEY) ?? kept;
  } catch {
    return kept; // where storage is switched off, until the page is left
  }
}

/** Keep a key in this tab. */
export function setKey(value) {
  kept = value;
  try {
    sessionStorage.setItem(KEY, value);
  } catch {
    // As above.
  }
}

/** An answer that is an error, in the service's own words. */
export class Failure extends Error {
  constructor(message, { status = 0, code = "", id = "" } = {}) {
    super(message);
    Object.assign(this, { status, code, id });
  }
}

/** Ask the service. Return the value of its answer, its headers, and the time in milliseconds. */
export async function call(path, body) {
  const headers = { accept: "application/json" };
  if (key()) headers.authorization = `Bearer ${key()}`;
  if (body) headers["content-type"] = "application/json";
  const began = performance.now();
  const method = body ? "POST" : "GET";
  const options = { method, headers, body: body && JSON.stringify(body), cache: "no-store" };
  let response;
  let text;
  try {
    response = await fetch(new URL(path, ROOT), options);
    text = await response.text();
  } catch {
    throw new Failure("The service cannot be reached.");
  }
  const value = parsed(text);
  if (!response.ok) throw failure(response, value);
  return { value, headers: response.headers, ms: performance.now() - began };
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Read an error in whichever envelope the service has it. */
function failure(response, value) {
  const error = value?.error?.message ? value.error : value;
  const isAsked = response.status === 401 && !key();
  const words = isAsked ? "This service asks for a key: enter it above." : [error?.message, error?.error, error?.detail].find((each) => typeof each === "string");
  const id = response.headers.get("x-request-id") ?? "";
  const status = response.status;
  const failed = new Failure(words ?? `${status} ${response.statusText}`, { status, code: error?.code, id });
  if (status === 401) document.dispatchEvent(new CustomEvent("key-wanted", { detail: failed }));
  return failed;
}

/** Return the numbers of a vector or matrix, which came as base64 or as (nested) lists. */
export function numbers(sent) {
  if (typeof sent !== "string") return Float32Array.from((sent ?? []).flat());
  return new Float32Array(Uint8Array.from(atob(sent), (each) => each.charCodeAt(0)).buffer);
}

/** Return the inner product of two vectors. */
export function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** Return the sum over shared tokens of the product of their weights. */
export function lexical(a, b) {
  return Object.entries(a).reduce((sum, [id, weight]) => sum + weight * (b[id] ?? 0), 0);
}

/** Make an element: attributes, listeners (`onclick`), and children, which are elements or text. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Show an error where its answer would have been. */
export function complaint(error) {
  if (!(error instanceof Failure)) console.error(error);
  const details = [error.status, error.code, error.id && `request ${error.id}`].filter(Boolean);
  const more = details.length ? h("span", { class: "note" }, details.join(" · ")) : null;
  return h("p", { class: "error", role: "alert" }, h("span", {}, error.message), more);
}

/** Fill a select with names, and keep the choice if it is still there. */
export function fill(select, names) {
  const before = select.value;
  select.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
  if (names.includes(before)) select.value = before;
}

/** Return a piece of text that is not longer than so many characters. */
export function short(text, most = 80) {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length > most ? `${line.slice(0, most - 1)}…` : line;
}

/** Write a duration. */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 1) return `${(1000 * seconds).toPrecision(seconds < 0.1 ? 2 : 3).replace(/\.0$/, "")} ms`;
  if (seconds < 120) return `${seconds.toFixed(seconds < 60 ? 1 : 0)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h` : `${Math.floor(hours / 24)} days`;
}

/** Write a number as people read it. */
export function amount(value, digits = 0) {
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

/** Wrap what may be too wide, so that keys can scroll it; its edge fades while there is more. */
export function scrolling(label, kind, ...content) {
  const sign = () => box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
  const box = h("div", { class: `scroll ${kind}`, role: "region", "aria-label": label, tabindex: "0", onscroll: sign }, ...content);
  const observer = new ResizeObserver(sign);
  for (const each of [box, ...content]) observer.observe(each);
  return box;
}

/** Return how a token is written; what cannot be seen is shown by a sign. */
export function tokenText(token) {
  return token.text.replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "·";
}

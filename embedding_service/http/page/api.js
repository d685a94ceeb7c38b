// Requests to the service that this page came from, and elements made of their answers.
// Whatever a user or the service says becomes text, never HTML.
export const ROOT = new URL("..", import.meta.url);
const KEY = "embedding-service-key";
const SVG = "http://www.w3.org/2000/svg";
let kept = "";

export const $ = (id) => document.getElementById(id);
export const dot = (a, b) => {
  let sum = 0; // for ColBERT a million times: a loop takes a tenth of the time of reduce()
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
};
export const amount = (value, digits = 0) => value.toLocaleString("en", { maximumFractionDigits: digits });
export const lines = (text) => text.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);
/** Return the attribute that shades an element by a share of the deepest shade, or fills a bar. */
export const shade = (share) => ({ "--v": `${Math.round(100 * share)}%` });
/** Return how a token is written; what cannot be seen is shown by a sign. */
export const tokenText = ({ text }) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "·";

/** Return the key of this tab, or set it. Without storage it lasts until the page is left. */
export function key(value = null) {
  kept = value ?? kept;
  try {
    if (value !== null) sessionStorage.setItem(KEY, value);
    return sessionStorage.getItem(KEY) ?? kept;
  } catch {
    return kept;
  }
}

/** Ask the service. Return the value of its answer, its headers, and the time in milliseconds. */
export async function call(path, body) {
  const headers = { accept: "application/json" };
  if (key()) headers.authorization = `Bearer ${key()}`;
  if (body) headers["content-type"] = "application/json";
  const options = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), cache: "no-store" };
  const began = performance.now();
  const response = await fetch(new URL(path, ROOT), options).catch(() => null);
  const value = await response?.json().catch(() => null);
  if (response && !response.ok) throw failure(response, value);
  if (!value) throw new Error("The service cannot be reached. Is it still running?");
  return { value, headers: response.headers, ms: performance.now() - began };
}

/** Read an error in whichever envelope the service has it; it gets a status, a code and the request's id. */
function failure({ status, headers }, value) {
  const error = value?.error?.message ? value.error : value;
  const said = [error?.message, error?.error, error?.detail].find((each) => typeof each === "string");
  const words = status === 401 && !key() ? "This service asks for a key: enter it above." : said;
  const failed = new Error(words ?? "The service gave no reason; its log has more.");
  Object.assign(failed, { status, code: error?.code, id: headers.get("x-request-id") });
  if (status === 401) document.dispatchEvent(new CustomEvent("key-wanted", { detail: failed }));
  return failed;
}

/** Return the numbers of a vector or matrix, which came as base64 or as (nested) lists. */
export function numbers(sent) {
  if (typeof sent !== "string") return Float32Array.from((sent ?? []).flat());
  return new Float32Array(Uint8Array.from(atob(sent), (each) => each.charCodeAt(0)).buffer);
}

/** Make an element, `tag.class`, of attributes, listeners (`onclick`), and elements or text. */
export function h(name, ...content) {
  const [tag, ...classes] = name.split(".");
  const isDrawn = tag === "svg" || tag === "path";
  const element = isDrawn ? document.createElementNS(SVG, tag) : document.createElement(tag);
  element.classList.add(...classes);
  const attributes = content[0]?.constructor === Object ? content.shift() : {};
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else element.setAttribute(name, value);
  }
  element.append(...content.flat().filter(Boolean));
  return element;
}

/** Make a table; a row is its head and its cells, and those that are elements are cells already. */
export function table(kind, head, rows) {
  const heads = head.map((each) => (each ? h("th", { scope: "col" }, each) : h("td")));
  const cell = (each) => (each instanceof HTMLTableCellElement ? each : h("td", each));
  const row = ([first, ...cells]) => h("tr", h("th", { scope: "row" }, first), cells.map(cell));
  return h(`table.${kind}`, h("thead", h("tr", heads)), h("tbody", rows.map(row)));
}

/** Make a list of names and values, without those that have no value. */
export function facts(rows) {
  return h("dl.facts", rows.map(([name, value]) => value && h("div", h("dt", name), h("dd", value))));
}

/** Show an error where its answer would have been. */
export function complaint({ message, status, code, id }) {
  const details = [status, code, id && `request ${id}`].filter(Boolean).join(" · ");
  return h("div.error", { role: "alert" }, h("p", message), details && h("p.note", details));
}

/** Fill a select with names, and keep the choice if it is still there. */
export function fill(select, names) {
  const [before, shown] = [select.value, Array.from(select, (option) => option.value)];
  if (`${shown}` !== `${names}`) select.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
  if (names.includes(before)) select.value = before;
}

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 1) return `${amount(1000 * seconds, seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 120) return `${amount(seconds, seconds < 60 ? 1 : 0)} s`;
  const [size, unit] = [[60, "min"], [3600, "h"], [86400, "days"]].findLast(([size]) => seconds >= 2 * size);
  return `${Math.floor(seconds / size)} ${unit}`;
}

/** Wrap what may be too wide, so that keys can scroll it; its edge fades while there is more. */
export function scrolling(label, content) {
  const sign = () => box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
  const box = h("div.scroll", { role: "region", "aria-label": label, tabindex: "0", onscroll: sign }, content);
  const observer = new ResizeObserver(sign);
  for (const each of [box, content]) observer.observe(each);
  return box;
}

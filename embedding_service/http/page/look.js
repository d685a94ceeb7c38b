// Figures of the instance that answers, every other second while somebody looks. The service sends
// counters; rates and quantiles of the last minutes are made here of their differences.

import { amount, call, complaint, duration, fill, h } from "./api.js";

const EVERY_MS = 2000;
const KEPT_S = 300;
const RATE_OVER_S = 10;
const QUANTILES_OVER_S = 60;
const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);
const histories = new Map(); // by instance: the figures of its process in the last minutes
let isOpen = false;
let timer;

/** Begin or stop to look. */
export function watch(open) {
  isOpen = open;
  refresh();
}

/** Ask now, if anybody looks. */
export function refresh() {
  clearTimeout(timer);
  if (isWatched()) ask();
}

function isWatched() {
  return isOpen && $("look-live").checked && document.visibilityState === "visible";
}

document.addEventListener("visibilitychange", refresh);
$("look-live").addEventListener("change", refresh);
$("look-instance").addEventListener("change", draw);

async function ask() {
  try {
    const { value } = await call("ui/figures");
    keep(value);
    $("look-status").replaceChildren();
    draw();
  } catch (error) {
    if (error.status === 401) return; // until there is a key, which the notice asks for
    $("look-status").replaceChildren(complaint(error));
  }
  clearTimeout(timer);
  if (isWatched()) timer = setTimeout(ask, EVERY_MS);
}

/** Add figures to the history of their process; behind a balancer, answers come from several. */
function keep(figures) {
  const since = figures.time - KEPT_S - QUANTILES_OVER_S;
  const before = histories.get(figures.instance) ?? [];
  const continued = before.filter((each) => each.process === figures.process && each.time >= since);
  histories.set(figures.instance, [...continued, figures]);
  const names = [...histories.keys()];
  if (names.length !== $("look-instance").length) fill($("look-instance"), names);
  $("look-instances").hidden = names.length < 2;
}

function draw() {
  const history = histories.get($("look-instance").value);
  if (history) $("look-result").replaceChildren(overview(history), ...history.at(-1).models.map((_, i) => modelCard(history, i)));
}

function overview(history) {
  const now = history.at(-1);
  const requests = series(history, RATE_OVER_S, (a, b, s) => (b.requests - a.requests) / s);
  const errors = series(history, RATE_OVER_S, (a, b, s) => (b.errors - a.errors) / s);
  const hits = series(history, QUANTILES_OVER_S, hitRate);
  const rows = [
    ["Instance", now.instance],
    ["Status", badge(now.status)],
    ["Up for", duration(now.uptime_s)],
    ["In flight", amount(now.requests_in_flight)],
    ["Version", now.version],
  ];
  return h("section", { class: "card", "aria-label": "The instance" },
    h("dl", { class: "facts" }, rows.map(([name, content]) => h("div", {}, h("dt", {}, name), h("dd", {}, content)))),
    h("div", { class: "plots" },
      plot("Requests", [requests, errors], (v) => `${amount(v, 1)}/s`, ["answered", "errors"]),
      plot("Median time of a request", quantiles(history, (each) => each.seconds), duration, ["median", "p99"]),
      now.cache
        ? plot("Found in the cache", [hits], (v) => `${amount(100 * v)} %`, [`${amount(now.cache.hits)} of ${amount(now.cache.hits + now.cache.misses)} in all`], 1)
        : h("p", { class: "note" }, "No cache is kept in memory.")));
}

function hitRate(a, b) {
  const hits = (b.cache?.hits ?? 0) - (a.cache?.hits ?? 0);
  const asked = hits + (b.cache?.misses ?? 0) - (a.cache?.misses ?? 0);
  return asked ? hits / asked : NaN;
}

function modelCard(history, i) {
  const of = (figures) => figures.models[i];
  const now = of(history.at(-1));
  const texts = series(history, RATE_OVER_S, (a, b, s) => (of(b).texts - of(a).texts) / s);
  const queue = history.map((each) => [each.time, of(each).queued_tokens]);
  const facts = [now.device, now.dtype, now.dimension && `${amount(now.dimension)} dimensions`, now.load_s && `loaded in ${duration(now.load_s)}`];
  const restarts = now.replicas.reduce((sum, each) => sum + each.restarts, 0);
  return h("section", { class: "card" },
    h("div", { class: "heading" }, h("h2", {}, now.name), badge(now.ready ? "ready" : "not ready")),
    h("p", { class: "note" }, [...facts, restarts ? `${restarts} restarts` : "no restarts"].filter(Boolean).join(" · ")),
    h("div", { class: "plots" },
      plot("Texts", [texts], (v) => `${amount(v, 1)}/s`, [`${amount(now.texts)} in all`]),
      plot("Median time in the engine", quantiles(history, (each) => of(each).engine), duration, ["median", "p99"]),
      plot("Tokens in the queue", [queue], amount, [`of at most ${amount(now.queue_limit_tokens)}`])),
    replicas(history, of));
}

function replicas(history, of) {
  const [before, after] = [history.at(Math.max(-1 - QUANTILES_OVER_S / (EVERY_MS / 1000), -history.length)), history.at(-1)];
  const rows = of(after).replicas.map((each, place) => {
    const busy = (each.busy_s - (of(before).replicas[place]?.busy_s ?? 0)) / (after.time - before.time);
    const share = Number.isFinite(busy) ? `${amount(100 * Math.min(1, Math.max(0, busy)))} %` : "–";
    const cells = [badge(each.state), each.restarts, each.outstanding_tokens, each.texts, each.steps, share];
    return h("tr", {}, h("th", { scope: "row" }, `${place}`), cells.map((cell) => h("td", {}, typeof cell === "number" ? amount(cell) : cell)));
  });
  const names = ["Replica", "State", "Restarts", "Tokens in work", "Texts", "Steps", "Busy"];
  return h("table", { class: "plain", "aria-label": `Replicas of ${of(after).name}` },
    h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, rows));
}

function badge(state) {
  const kind = { ready: "good", dead: "bad" }[state] ?? "warn";
  return h("span", { class: `badge ${kind}` }, state);
}

/** Return [time, value] for each of the figures: `f` of those some seconds before, and of them. */
function series(history, seconds, f) {
  let first = 0;
  return history.map((figures, i) => {
    while (first < i - 1 && figures.time - history[first + 1].time >= seconds) first++;
    const passed = figures.time - history[first].time;
    return [figures.time, passed > 0 ? f(history[first], figures, passed) : NaN];
  });
}

function quantiles(history, counts) {
  return [0.5, 0.99].map((q) => series(history, QUANTILES_OVER_S, (a, b) => quantile(q, counts(a), counts(b))));
}

/** Return a quantile of what was counted between two histograms, as Prometheus estimates it. */
export function quantile(q, before, after) {
  const buckets = Object.entries(after).map(([bound, count]) => [bound === "+Inf" ? Infinity : Number(bound), count - (before[bound] ?? 0)]);
  buckets.sort((a, b) => a[0] - b[0]);
  const rank = q * (buckets.at(-1)?.[1] ?? 0);
  if (!rank) return NaN;
  const place = buckets.findIndex(([, count]) => count >= rank);
  const [low, below] = place ? buckets[place - 1] : [0, 0];
  const [high, upTo] = buckets[place];
  return high === Infinity ? low : low + ((high - low) * (rank - below)) / (upTo - below);
}

/** Draw one or two lines over the last minutes; the first one's last value stands above them. */
function plot(title, lines, write, legends, top = 0) {
  const [begin, end] = [lines[0][0][0], lines[0].at(-1)[0]];
  const span = Math.min(KEPT_S, Math.max(60, end - begin));
  const shown = lines.map((line) => line.filter(([time]) => time >= end - span));
  const values = shown.flat().map(([, value]) => value).filter(Number.isFinite);
  const most = top || Math.max(...values, 0);
  const last = shown.map((line) => line.at(-1)[1]);
  const said = (value) => (Number.isFinite(value) ? write(value) : "–");
  const label = `${title}, last minutes: now ${last.map(said).join(" and ")}, at most ${said(values.length ? Math.max(...values) : NaN)}`;
  const svg = element("svg", { viewBox: "0 0 300 60", preserveAspectRatio: "none", role: "img", "aria-label": label });
  shown.forEach((line, i) => svg.append(element("path", { class: `line-${i}`, d: path(line, { end, span, most }) })));
  const keys = legends.map((name, i) => h("span", { class: `key-${lines.length > 1 ? i : "none"}` }, i && lines.length > 1 ? `${name} ${said(last[i])}` : name));
  return h("figure", {},
    h("figcaption", {}, h("span", { class: "title" }, title), h("b", {}, said(last[0]))),
    h("div", { class: "drawing" }, svg, h("span", { class: "most" }, most ? write(most) : "")),
    h("p", { class: "axis" }, h("span", {}, `${span < 120 ? `${10 * Math.round(span / 10)} s` : duration(span)} ago`), h("span", { class: "keys" }, keys), h("span", {}, "now")));
}

/** Return the line's path, with a gap where nothing was measured. */
function path(line, { end, span, most }) {
  let pen = "M";
  return line.map(([time, value]) => {
    if (!Number.isFinite(value)) {
      pen = "M";
      return "";
    }
    const x = (300 * (time - end + span)) / span;
    const point = `${pen}${x.toFixed(1)} ${(58 - (56 * value) / (most || 1)).toFixed(1)}`;
    pen = "L";
    return point;
  }).join("");
}

function element(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// Figures of the instance that answers. The service sends counters; rates and quantiles are made of their differences.
import { $, amount, call, complaint, duration, facts, fill, h, scrolling, table } from "./api.js";

const EVERY_MS = 2000;
const KEPT_S = 300;
const RATE_OVER_S = 10;
const QUANTILES_OVER_S = 60;
const histories = new Map(); // by instance: the figures of its process in the last minutes
const badge = (state) => h(`span.badge.${{ ready: "good", dead: "bad" }[state] ?? "warn"}`, state);
let isOpen = false;
let timer;

/** Begin or stop to look: ask now, and again after a while, if anybody looks. */
export async function watch(open = isOpen) {
  isOpen = open;
  clearTimeout(timer);
  if (!isOpen || !$("look-live").checked || document.visibilityState !== "visible") return;
  try {
    keep((await call("ui/figures")).value);
    $("look-status").replaceChildren();
    draw();
  } catch (error) {
    if (error.status === 401) return; // until there is a key, which the notice asks for
    $("look-status").replaceChildren(complaint(error));
  }
  clearTimeout(timer);
  timer = setTimeout(watch, EVERY_MS);
}

document.addEventListener("visibilitychange", () => watch());
$("look-live").addEventListener("change", () => watch());
$("look-instance").addEventListener("change", draw);

/** Add figures to the history of their process; behind a balancer, answers come from several. */
function keep(figures) {
  const { instance, process, time } = figures;
  const isKept = (each) => each.process === process && each.time >= time - KEPT_S - QUANTILES_OVER_S;
  histories.set(instance, [...(histories.get(instance) ?? []).filter(isKept), figures]);
  if (histories.size !== $("look-instance").length) fill($("look-instance"), [...histories.keys()]);
  $("look-instances").hidden = histories.size < 2;
}

function draw() {
  const history = histories.get($("look-instance").value);
  $("look-result").replaceChildren(overview(history), ...history.at(-1).models.map((_, i) => modelCard(history, i)));
}

function overview(history) {
  const now = history.at(-1);
  const rate = (name) => series(history, RATE_OVER_S, (a, b, s) => (b[name] - a[name]) / s);
  const asked = ({ cache: { hits, misses } }) => hits + misses;
  const found = (a, b) => (b.cache.hits - a.cache.hits) / (asked(b) - asked(a));
  const cached = () => plot("Found in the cache", [series(history, QUANTILES_OVER_S, found)],
    (v) => `${amount(100 * v)} %`, [`${amount(now.cache.hits)} of ${amount(asked(now))} in all`], 1);
  return h("section.card", { "aria-label": "The instance" },
    facts([["Instance", now.instance], ["Status", badge(now.status)], ["Up for", duration(now.uptime_s)],
      ["In flight", amount(now.requests_in_flight)], ["Version", now.version]]),
    h("div.plots",
      plot("Requests", [rate("requests"), rate("errors")], (v) => `${amount(v, 1)}/s`, ["answered", "errors"]),
      plot("Median time of a request", quantiles(history, (each) => each.seconds), duration, ["median", "p99"]),
      now.cache ? cached() : h("p.note", "No cache is kept in memory.")));
}

function modelCard(history, i) {
  const of = (figures) => figures.models[i];
  const now = of(history.at(-1));
  const texts = series(history, RATE_OVER_S, (a, b, s) => (of(b).texts - of(a).texts) / s);
  const queue = history.map((each) => [each.time, of(each).queued_tokens]);
  const restarts = now.replicas.reduce((sum, each) => sum + each.restarts, 0);
  const about = [now.device, now.dtype, now.dimension && `${amount(now.dimension)} dimensions`,
    now.load_s && `loaded in ${duration(now.load_s)}`, restarts ? `${restarts} restarts` : "no restarts"];
  return h("section.card",
    h("div.heading", h("h2", now.name), badge(now.ready ? "ready" : "not ready")),
    h("p.note", about.filter(Boolean).join(" · ")),
    h("div.plots",
      plot("Texts", [texts], (v) => `${amount(v, 1)}/s`, [`${amount(now.texts)} in all`]),
      plot("Median time in the engine", quantiles(history, (each) => of(each).engine), duration, ["median", "p99"]),
      plot("Tokens in the queue", [queue], amount, [`of at most ${amount(now.queue_limit_tokens)}`])),
    replicas(history, of));
}

function replicas(history, of) {
  const after = history.at(-1);
  const before = history.find(({ time }) => time >= after.time - QUANTILES_OVER_S);
  const busy = (each, place) => each.busy_s - (of(before).replicas[place]?.busy_s ?? 0);
  const rows = of(after).replicas.map((each, place) => {
    const share = Math.min(1, Math.max(0, busy(each, place) / (after.time - before.time)));
    const counts = [each.restarts, each.outstanding_tokens, each.texts, each.steps].map((count) => amount(count));
    return [`${place}`, badge(each.state), ...counts, Number.isFinite(share) ? `${amount(100 * share)} %` : "–"];
  });
  const heads = ["Replica", "State", "Restarts", "Tokens in work", "Texts", "Steps", "Busy"];
  return scrolling(`Replicas of ${of(after).name}`, table("plain", heads, rows));
}

/** Return [time, value] for each of the figures: `f` of those some seconds before, and of them. */
function series(history, seconds, f) {
  return history.map((figures, i) => {
    const first = history.findLast(({ time }, j) => j < i && figures.time - time >= seconds) ?? history[0];
    const passed = figures.time - first.time;
    return [figures.time, passed > 0 ? f(first, figures, passed) : NaN];
  });
}

function quantiles(history, counts) {
  return [0.5, 0.99].map((q) => series(history, QUANTILES_OVER_S, (a, b) => quantile(q, counts(a), counts(b))));
}

/** Return a quantile of what was counted between two histograms, as Prometheus estimates it. */
export function quantile(q, before, after) {
  const counted = Object.entries(after).map(([bound, count]) => [bound, count - (before[bound] ?? 0)]);
  const buckets = counted.map(([bound, count]) => [Number(bound.replace("+Inf", "Infinity")), count]);
  buckets.sort((a, b) => a[0] - b[0]);
  const rank = q * (buckets.at(-1)?.[1] ?? 0);
  if (!rank) return NaN;
  const place = buckets.findIndex(([, count]) => count >= rank);
  const [low, below] = buckets[place - 1] ?? [0, 0];
  const [high, upTo] = buckets[place];
  return high === Infinity ? low : low + ((high - low) * (rank - below)) / (upTo - below);
}

/** Draw one or two lines over the last minutes; the first one's last value stands above them. */
function plot(title, lines, write, legends, top = 0) {
  const end = lines[0].at(-1)[0];
  const span = Math.min(KEPT_S, Math.max(60, end - lines[0][0][0]));
  const shown = lines.map((line) => line.filter(([time]) => time >= end - span));
  const values = shown.flat().map(([, value]) => value).filter(Number.isFinite);
  const most = top || Math.max(...values, 0);
  const [last, other] = shown.map((line) => (Number.isFinite(line.at(-1)[1]) ? write(line.at(-1)[1]) : "–"));
  const x = (time) => ((300 * (time - end + span)) / span).toFixed(1);
  const y = (value) => (58 - (56 * value) / (most || 1)).toFixed(1);
  const drawn = shown.map((line, i) => h(`path.line-${i}`, { d: path(line, x, y) }));
  const label = `${title}: now ${last}${other ? ` and ${other}` : ""}, at most ${write(Math.max(...values, 0))}`;
  const keys = legends.map((name, i) => h(`span.key-${lines.length > 1 ? i : "none"}`, i ? `${name} ${other}` : name));
  return h("figure",
    h("figcaption", h("span", title), h("b", last)),
    h("div.drawing",
      h("svg", { viewBox: "0 0 300 60", preserveAspectRatio: "none", role: "img", "aria-label": label }, ...drawn),
      h("span.most", most ? write(most) : "")),
    h("p.axis", h("span", `${duration(Math.round(span))} ago`), h("span.keys", keys), h("span", "now")));
}

/** Return the line's path, with a gap where nothing was measured. */
function path(line, x, y) {
  const isMeasured = (i) => Number.isFinite(line[i]?.[1]);
  const point = ([time, value], i) => `${isMeasured(i - 1) ? "L" : "M"}${x(time)} ${y(value)}`;
  return line.map((each, i) => (isMeasured(i) ? point(each, i) : "")).join("");
}

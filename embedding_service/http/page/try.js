// Embed a few texts and show all that comes back: similarity, tokens, weights, matches, code.
import {
  $, amount, call, complaint, dot, duration, facts, fill, h, lines, numbers, scrolling, shade, table, tokenText,
} from "./api.js";
import { code } from "./code.js";
import { matches } from "./matches.js";

const MOST_IN_MATRIX = 50;
const MOST_WITH_NUMBERS = 12;
const MOST_IN_MATCHES = 10_000; // characters: a token's vector of 1,024 numbers has 4 KB
const MOST_TOKENS_SHOWN = 400;
const MOST_WEIGHTS_SHOWN = 24;
const result = $("try-result");
const part = (title, ...content) => h("section", h("h2", title), ...content);
const chosen = () => models.find((model) => model.id === $("try-model").value);
let models = [];
let run = 0;

/** Offer these models, as `/v1/models` lists them. */
export function offer(listed) {
  models = listed.filter((model) => !model.outputs.includes("score"));
  fill($("try-model"), models.map((model) => model.id));
  describe();
}

function describe() {
  const model = chosen();
  $("try-types").disabled = !model?.input_types.length;
  $("try-instruction").disabled = !model?.instructions;
  const about = model && [
    model.dimension && `${amount(model.dimension)} dimensions`,
    `${amount(model.max_model_len)} tokens`,
    model.outputs.filter((kind) => kind !== "hidden_states").join(", "),
    !model.input_types.length && "no prompts",
  ];
  $("try-facts").textContent = about?.filter(Boolean).join(" · ") ?? "No model that embeds is loaded.";
}

$("try-model").addEventListener("change", describe);
$("try-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const mine = ++run;
  result.setAttribute("aria-busy", "true");
  const parts = await embed(chosen(), split($("try-texts").value)).catch((error) => [complaint(error)]);
  if (mine !== run) return;
  result.replaceChildren(...parts.filter(Boolean));
  result.removeAttribute("aria-busy");
});

/** Return the texts: blocks where there is an empty line, else lines. */
function split(value) {
  const blocks = value.replace(/\r/g, "").trim().split(/\n(?:[ \t]*\n)+/);
  return blocks.length > 1 ? blocks.map((block) => block.trim()) : lines(value);
}

async function embed(model, texts) {
  if (!model) throw new Error("No model that embeds is loaded; Status shows which ones are on their way.");
  if (!texts.length) throw new Error("Write a text first.");
  const fields = Object.fromEntries([...new FormData($("try-form"))].filter(([, value]) => value));
  const has = (kind) => model.outputs.includes(kind);
  const isLong = has("colbert") && texts.join("").length > MOST_IN_MATCHES;
  const kinds = ["sparse", "colbert"].filter((kind) => has(kind) && !(kind === "colbert" && isLong));
  const request = { model: model.id, input: texts, ...fields, ...(kinds.length && { return_dense: has("dense") }) };
  for (const kind of kinds) request[`return_${kind}`] = true;
  const [answer, tokenized] = await Promise.all([
    call("v1/embeddings", { ...request, truncate: "right", encoding_format: "base64" }),
    // Without its tokens a text still has a vector: some replaced systems have no such path.
    call("tokenize", { model: model.id, inputs: texts, ...fields }).catch(() => null),
  ]);
  if (answer.value.usage?.truncated_inputs?.length) request.truncate = "right";
  const all = (name) => answer.value.data.map((item) => item[name]).filter(Boolean);
  const [vectors, sparse, colbert] = [all("embedding").map(numbers), all("sparse_embedding"), all("colbert_embedding")];
  const tokens = tokenized?.value.map((each) => fitted(each, model.max_model_len));
  $("try-status").textContent = `Embedded ${amount(texts.length)} texts in ${duration(answer.ms / 1000)}.`;
  const left = h("p.note", `Left out for more than ${amount(MOST_IN_MATCHES)} characters.`);
  return [
    summary(answer, texts, vectors),
    vectors.length > 1 && part("Similarity", ...similarity(texts, vectors)),
    tokens && part("Tokens", h("ol.tokens", tokens.map((each) => tokenItem(each, model.max_model_len)))),
    sparse.length && part("Lexical weights", await weights(model, sparse, tokens ?? [])),
    colbert.length > 1 && part("Best matches of tokens", ...matches(texts, colbert, tokens)),
    isLong && part("Best matches of tokens", left),
    part("The same request", ...code(request)),
  ];
}

function summary({ value, headers, ms }, texts, vectors) {
  const inside = headers.get("openai-processing-ms");
  return facts([
    ["Texts", amount(texts.length)],
    ["Tokens", amount(value.usage?.prompt_tokens ?? 0)],
    ["Dimensions", vectors[0] && amount(vectors[0].length)],
    ["Round trip", duration(ms / 1000)],
    ["In the service", inside && duration(inside / 1000)],
    ["From the cache", headers.get("x-cache")],
    ["Vector space", headers.get("x-vector-space")],
    ["Ignored", headers.get("x-ignored-fields")],
  ]);
}

/** Return a table of all cosines: its cells are the picture, and their numbers what it says. */
function similarity(texts, vectors) {
  const shown = vectors.slice(0, MOST_IN_MATRIX);
  const cosines = shown.map((a) => shown.map((b) => dot(a, b)));
  const others = cosines.flatMap((row, i) => row.filter((_, j) => i !== j));
  const [low, high] = [Math.min(...others), Math.max(...others)];
  const isNumbered = shown.length <= MOST_WITH_NUMBERS;
  const cell = (value, i, j) => {
    const title = `${i + 1} and ${j + 1}: ${value.toFixed(4)}`;
    const text = h(isNumbered ? "span" : "span.hidden", value.toFixed(2));
    return h(i === j ? "td.self" : "td.heat", { title, ...shade((value - low) / (high - low || 1)) }, text);
  };
  const head = (i) => h("span", h("b", `${i + 1} `), h("span.of-row", { title: texts[i] }, texts[i].slice(0, 99)));
  const rows = cosines.map((row, i) => [head(i), ...row.map((value, j) => cell(value, i, j))]);
  const range = `from ${low.toFixed(2)} (pale) to ${high.toFixed(2)} (deep)`;
  const cut = shown.length < texts.length ? `; the first ${shown.length} of ${texts.length} texts` : "";
  const picture = table(isNumbered ? "matrix" : "matrix.dense", ["", ...shown.map((_, j) => `${j + 1}`)], rows);
  return [scrolling("Similarity of the texts", picture), h("p.note", `Cosine of each pair, ${range}${cut}.`)];
}

/** Part a text's tokens into those that the model reads and those that are cut off. */
function fitted(tokens, most) {
  const end = tokens.findLastIndex((token) => !token.special) + 1;
  const room = Math.min(end, most - (tokens.length - end));
  return { read: [...tokens.slice(0, room), ...tokens.slice(end)], cut: tokens.slice(room, end) };
}

function tokenItem({ read, cut }, most) {
  const mark = (token) => {
    const kind = token.special ? "span.token.special" : "span.token";
    return h(kind, { title: `id ${token.id}` }, tokenText(token));
  };
  const hidden = read.length - MOST_TOKENS_SHOWN;
  return h("li",
    h("span.count", `${amount(read.length + cut.length)} tokens`),
    h("span.strip", read.slice(0, MOST_TOKENS_SHOWN).map(mark)),
    hidden > 0 && h("span.note", ` … ${amount(hidden)} more`),
    cut.length > 0 && [
      h("span.cut", `cut after ${amount(most)} tokens`),
      h("s.strip", cut.slice(0, MOST_TOKENS_SHOWN / 10).map(mark)),
      h("span.note", ` ${amount(cut.length)} not read`),
    ]);
}

/** Show each text's heaviest tokens; those that are not in it are looked up by their ids. */
async function weights(model, sparse, tokens) {
  const read = tokens.flatMap((each) => each.read);
  const names = new Map(read.map((token) => [`${token.id}`, tokenText(token).trim() || "·"]));
  const heaviest = sparse.map((each) => Object.entries(each).sort((a, b) => b[1] - a[1]));
  const shown = heaviest.map((entries) => entries.slice(0, MOST_WEIGHTS_SHOWN));
  const unknown = [...new Set(shown.flat().map(([id]) => id))].filter((id) => !names.has(id));
  const ids = unknown.map((id) => [Number(id)]);
  const found = ids.length ? await call("decode", { model: model.id, ids }).catch(() => null) : null;
  found?.value.forEach((name, i) => names.set(unknown[i], name));
  const most = Math.max(...shown.flat().map(([, weight]) => weight), 1e-9);
  const chip = ([id, weight]) => h("span.weight.heat", { ...shade(weight / most), title: `id ${id}` },
    `${names.get(id) ?? `#${id}`} `, h("small", weight.toFixed(2)));
  return h("ol.weights", shown.map((entries, i) => {
    const lighter = heaviest[i].length - entries.length;
    const note = entries.length ? lighter && `and ${amount(lighter)} lighter ones` : "no token has a weight";
    return h("li", entries.map(chip), note && h("span.note", note));
  }));
}

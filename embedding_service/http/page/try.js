// Embed a few texts and show all that comes back: similarity, tokens, weights, matches, code.

import {
  Failure, amount, call, complaint, dot, duration, fill, h, numbers, scrolling, short, tokenText,
} from "./api.js";
import { code } from "./code.js";
import { matches } from "./matches.js";

const MOST_IN_MATRIX = 50;
const MOST_WITH_NUMBERS = 12;
const MOST_IN_MATCHES = 10_000; // a vector for each token: 4 KB with 1,024 numbers
const MOST_TOKENS_SHOWN = 400;
const MOST_WEIGHTS_SHOWN = 24;
const $ = (id) => document.getElementById(id);
const form = $("try-form");
const result = $("try-result");
let models = [];

/** Offer these models, as `/v1/models` lists them. */
export function offer(listed) {
  models = listed.filter((model) => !model.outputs.includes("score"));
  fill($("try-model"), models.map((model) => model.id));
  describe();
}

function chosen() {
  return models.find((model) => model.id === $("try-model").value);
}

function describe() {
  const model = chosen();
  const facts = model ? [
    model.dimension && `${amount(model.dimension)} dimensions`,
    `${amount(model.max_model_len)} tokens`,
    model.outputs.filter((kind) => kind !== "hidden_states").join(", "),
    !model.input_types.length && "no prompts",
  ] : [];
  $("try-types").disabled = !model?.input_types.length;
  $("try-instruction").disabled = !model?.instructions;
  $("try-facts").textContent = facts.filter(Boolean).join(" · ");
}

$("try-model").addEventListener("change", describe);
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const model = chosen();
  const texts = split($("try-texts").value);
  if (!model || !texts.length) {
    result.replaceChildren(complaint(new Failure(model ? "Write a text first." : "No model is loaded yet.")));
    return;
  }
  result.setAttribute("aria-busy", "true");
  try {
    result.replaceChildren(...(await embed(model, texts)));
  } catch (error) {
    result.replaceChildren(complaint(error));
  }
  result.removeAttribute("aria-busy");
});

/** Return the texts: blocks where there is an empty line, else lines. */
function split(value) {
  const text = value.replace(/\r/g, "").trim();
  const parts = /\n[ \t]*\n/.test(text) ? text.split(/\n(?:[ \t]*\n)+/) : text.split("\n");
  return parts.map((part) => part.trim()).filter(Boolean);
}

/** Return the fields of a request as this form has them. */
function fields() {
  const { input_type, instruction } = Object.fromEntries(new FormData(form));
  return { ...(input_type && { input_type }), ...(instruction && { instruction }) };
}

async function embed(model, texts) {
  const request = { model: model.id, input: texts, ...fields() };
  const dense = model.outputs.includes("dense");
  const isLong = texts.join("").length > MOST_IN_MATCHES;
  const has = (kind) => model.outputs.includes(kind) && !(kind === "colbert" && isLong);
  const kinds = ["sparse", "colbert"].filter(has).map((kind) => [`return_${kind}`, true]);
  const more = kinds.length ? { return_dense: dense, ...Object.fromEntries(kinds) } : {};
  const asked = { ...request, ...more, truncate: "right", encoding_format: "base64" };
  const [answer, read] = await Promise.all([
    call("v1/embeddings", asked),
    // Without its tokens a text still has a vector: some replaced systems have no such path.
    call("tokenize", { model: model.id, inputs: texts, ...fields() }).catch(() => null),
  ]);
  const tokens = read && texts.map((_, i) => fitted(read.value[i], model.max_model_len));
  const items = answer.value.data;
  const vectors = dense ? items.map((item) => numbers(item.embedding)) : [];
  const sparse = items.map((item) => item.sparse_embedding).filter(Boolean);
  const colbert = items.map((item) => item.colbert_embedding).filter(Boolean);
  const cut = answer.value.usage?.truncated_inputs?.length ? { truncate: "right" } : {};
  $("try-status").textContent = `Embedded ${amount(texts.length)} texts in ${duration(answer.ms / 1000)}.`;
  return [
    facts(answer, texts, vectors),
    vectors.length > 1 ? part("Similarity", similarity(texts, vectors)) : null,
    tokens && part("Tokens", tokenList(tokens, model.max_model_len)),
    sparse.length ? part("Lexical weights", await weights(model, sparse, tokens)) : null,
    colbert.length > 1 ? part("Best matches of tokens", matches(texts, colbert, tokens)) : null,
    isLong && model.outputs.includes("colbert")
      ? part("Best matches of tokens", h("p", { class: "note" }, `Left out for more than ${amount(MOST_IN_MATCHES)} characters.`))
      : null,
    part("The same request", code({ ...request, ...more, ...cut })),
  ].filter(Boolean);
}

function part(title, ...content) {
  return h("section", {}, h("h2", {}, title), ...content);
}

function facts({ value, headers, ms }, texts, vectors) {
  const inside = headers.get("openai-processing-ms");
  const rows = [
    ["Texts", amount(texts.length)],
    ["Tokens", amount(value.usage?.prompt_tokens ?? 0)],
    ["Dimensions", vectors.length ? amount(vectors[0].length) : null],
    ["Round trip", duration(ms / 1000)],
    ["In the service", inside && duration(inside / 1000)],
    ["From the cache", headers.get("x-cache")],
    ["Vector space", headers.get("x-vector-space")],
    ["Ignored", headers.get("x-ignored-fields")],
  ];
  const shown = rows.filter(([, content]) => content);
  return h("dl", { class: "facts" }, shown.map(([name, content]) => h("div", {}, h("dt", {}, name), h("dd", {}, content))));
}

/** Return a table of all cosines: its cells are the picture, and their numbers what it says. */
function similarity(texts, vectors) {
  const shown = vectors.slice(0, MOST_IN_MATRIX);
  const cosines = shown.map((a) => shown.map((b) => dot(a, b)));
  const others = cosines.flatMap((row, i) => row.filter((_, j) => i !== j));
  const [low, high] = [Math.min(...others), Math.max(...others)];
  const isFlat = high - low < 1e-4;
  const isNumbered = shown.length <= MOST_WITH_NUMBERS;
  const cell = (value, i, j) => {
    const share = isFlat ? Math.max(0, value) : (value - low) / (high - low);
    const text = value.toFixed(2);
    const content = isNumbered ? text : h("span", { class: "hidden" }, text);
    const title = `${i + 1} and ${j + 1}: ${value.toFixed(4)}`;
    return h("td", { class: i === j ? "self" : "heat", "--v": `${Math.round(100 * share)}%`, title }, content);
  };
  const head = shown.map((_, j) => h("th", { scope: "col" }, `${j + 1}`));
  const rows = cosines.map((row, i) => h("tr", {},
    h("th", { scope: "row" }, h("b", {}, `${i + 1}`), " ", h("span", { class: "of-row", title: short(texts[i], 300) }, short(texts[i], 60))),
    row.map((value, j) => cell(value, i, j))));
  const range = isFlat ? "" : `, from ${low.toFixed(2)} (pale) to ${high.toFixed(2)} (deep)`;
  const caption = `Cosine of each pair${range}`
    + (vectors.length > shown.length ? `; the first ${shown.length} of ${vectors.length} texts.` : ".");
  const table = h("table", { class: `matrix${isNumbered ? "" : " dense"}` },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, h("span", { class: "hidden" }, "Text")), head)),
    h("tbody", {}, rows));
  return h("div", {}, scrolling("Similarity of the texts", "", table), h("p", { class: "note" }, caption));
}

/** Part a text's tokens into those that the model reads and those that are cut off. */
function fitted(tokens, most) {
  const last = tokens.findLastIndex((token) => !token.special);
  const tail = last < 0 ? [] : tokens.slice(last + 1);
  const content = tokens.slice(0, tokens.length - tail.length);
  const room = most - tail.length;
  return { read: [...content.slice(0, room), ...tail], cut: content.slice(room), all: tokens.length };
}

function tokenList(texts, most) {
  return h("ol", { class: "tokens" }, texts.map(({ read, cut, all }) => {
    const shown = read.slice(0, MOST_TOKENS_SHOWN);
    const hidden = read.length - shown.length;
    const parts = [h("span", { class: "strip" }, shown.map((token) => tokenMark(token)))];
    if (hidden) parts.push(h("span", { class: "note" }, ` … ${amount(hidden)} more`));
    if (cut.length) {
      parts.push(h("span", { class: "cut" }, `cut after ${amount(most)} tokens`));
      parts.push(h("s", { class: "strip" }, cut.slice(0, MOST_TOKENS_SHOWN / 10).map((token) => tokenMark(token))));
      parts.push(h("span", { class: "note" }, ` ${amount(cut.length)} not read`));
    }
    return h("li", {}, h("span", { class: "count" }, `${amount(all)} tokens`), ...parts);
  }));
}

function tokenMark(token) {
  return h("span", { class: token.special ? "token special" : "token", title: `id ${token.id}` }, tokenText(token));
}

/** Show each text's heaviest tokens; those that are not in it are looked up by their ids. */
async function weights(model, sparse, tokens) {
  const names = new Map();
  for (const token of (tokens ?? []).flatMap(({ read }) => read)) names.set(`${token.id}`, tokenText(token).trim() || "·");
  const heaviest = sparse.map((each) => Object.entries(each).sort((a, b) => b[1] - a[1]));
  const shown = heaviest.map((entries) => entries.slice(0, MOST_WEIGHTS_SHOWN));
  const unknown = [...new Set(shown.flat().map(([id]) => id))].filter((id) => !names.has(id));
  if (unknown.length) {
    const ids = unknown.map((id) => [Number(id)]);
    const found = await call("decode", { model: model.id, ids }).catch(() => null);
    found?.value.forEach((name, i) => names.set(unknown[i], name));
  }
  const most = Math.max(...shown.flat().map(([, weight]) => weight), 1e-9);
  return h("ol", { class: "weights" }, shown.map((entries, i) => h("li", {},
    entries.map(([id, weight]) => h("span", { class: "weight heat", "--v": `${Math.round((100 * weight) / most)}%`, title: `id ${id}` },
      names.get(id) ?? `#${id}`, " ", h("small", {}, weight.toFixed(2)))),
    heaviest[i].length > entries.length ? h("span", { class: "note" }, ` and ${amount(heaviest[i].length - entries.length)} lighter ones`) : null,
    entries.length ? null : h("span", { class: "note" }, "no token has a weight"))));
}

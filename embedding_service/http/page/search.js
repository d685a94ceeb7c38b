// Rank passages by all that the served models can do, side by side.

import { Failure, amount, call, complaint, dot, duration, fill, h, lexical, numbers } from "./api.js";

const MOST_PASSAGES = 200;
const MOST_SHOWN = 10;
// Dense, sparse and ColBERT, as BGE-M3's authors weigh them.
const WEIGHTS = { Dense: 0.4, Sparse: 0.2, ColBERT: 0.4 };
const FIELDS = ["text", "passage", "content", "body", "document", "page_content"];
const $ = (id) => document.getElementById(id);
const box = $("search-passages");
let models = [];
let run = 0;

/** Offer these models, as `/v1/models` lists them. */
export function offer(listed) {
  models = listed;
  const names = (scores) => listed.filter((each) => each.outputs.includes("score") === scores).map((each) => each.id);
  fill($("search-model"), names(false));
  fill($("search-reranker"), names(true));
  $("search-reranker-field").hidden = !names(true).length;
}

for (const kind of ["dragover", "dragleave", "drop"]) {
  box.addEventListener(kind, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    box.classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files[0]);
  });
}
$("search-file").addEventListener("change", (event) => take(event.target.files[0]));

async function take(file) {
  if (!file) return;
  try {
    const lines = (await file.text()).split(/\r?\n/);
    const isJson = /\.(jsonl|ndjson|json)$/i.test(file.name);
    box.value = lines.map((line, i) => (isJson ? passage(line, i + 1) : line)).filter((line) => line.trim()).join("\n");
    say(`${file.name}: ${plural(passages().length)}.`);
  } catch (error) {
    say(complaint(error));
  }
}

/** Return the text of one of JSON's lines: a string, or an object's field that has a usual name. */
function passage(line, number) {
  if (!line.trim()) return "";
  let value;
  try {
    value = JSON.parse(line);
  } catch {
    throw new Failure(`Line ${number} is not JSON.`);
  }
  const text = typeof value === "string" ? value : FIELDS.map((name) => value?.[name]).find((each) => typeof each === "string");
  if (text === undefined) throw new Failure(`Line ${number} has no text: none of ${FIELDS.join(", ")}.`);
  return text.replace(/\s+/g, " ");
}

function passages() {
  return box.value.split("\n").map((line) => line.trim()).filter(Boolean);
}

function plural(count) {
  return `${amount(count)} passage${count === 1 ? "" : "s"}`;
}

function say(...content) {
  $("search-status").replaceChildren(...content);
}

$("search-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const all = passages();
  const texts = all.slice(0, MOST_PASSAGES);
  const question = $("search-question").value.trim();
  if (!texts.length || !question) {
    say("Paste some passages and ask a question.");
    return;
  }
  const rankings = plan(question, texts);
  if (!rankings.length) {
    say("No model is loaded yet.");
    return;
  }
  const mine = ++run;
  const cut = all.length > texts.length ? ` Only the first ${MOST_PASSAGES} of ${amount(all.length)} are ranked.` : "";
  say(`Ranking ${plural(texts.length)} …${cut}`);
  const columns = rankings.map(([title]) => column(title));
  $("search-result").replaceChildren(...columns);
  await Promise.all(rankings.map(async ([title, scores, note], i) => {
    const content = await scores.then(
      ({ values, ms }) => ranked(values, texts, ms, note),
      (error) => [complaint(error)],
    );
    columns[i].append(...content);
    columns[i].removeAttribute("aria-busy");
  }));
  if (mine === run) say(`Ranked ${plural(texts.length)}.${cut}`);
});

/** Return [title, promise of scores, note] for each way in which the served models can rank. */
function plan(question, texts) {
  const model = models.find((each) => each.id === $("search-model").value);
  const rankings = [];
  if (model) {
    const has = (kind) => model.outputs.includes(kind);
    const vectors = has("dense") || has("sparse") ? embedded(model, question, texts) : null;
    if (has("dense")) rankings.push(["Dense", compare(vectors, "dense", dot), model.id]);
    if (has("sparse")) rankings.push(["Sparse", compare(vectors, "sparse", lexical), model.id]);
    if (has("colbert")) rankings.push(["ColBERT", reranked(model.id, question, texts), model.id]);
    if (rankings.length > 1) rankings.push(["Hybrid", hybrid(rankings), note(rankings)]);
  }
  const reranker = $("search-reranker").value;
  if (reranker) rankings.push(["Reranker", reranked(reranker, question, texts), reranker]);
  return rankings;
}

async function embedded(model, question, texts) {
  const kinds = model.outputs.includes("sparse")
    ? { return_dense: model.outputs.includes("dense"), return_sparse: true }
    : {};
  const request = { model: model.id, truncate: "right", encoding_format: "base64", ...kinds };
  const [asked, given] = await Promise.all([
    call("v1/embeddings", { ...request, input: [question], input_type: "query" }),
    call("v1/embeddings", { ...request, input: texts, input_type: "document" }),
  ]);
  const read = (item) => ({ dense: item.embedding && numbers(item.embedding), sparse: item.sparse_embedding });
  return { question: read(asked.value.data[0]), texts: given.value.data.map(read), ms: given.ms };
}

async function compare(vectors, kind, similarity) {
  const { question, texts, ms } = await vectors;
  return { values: texts.map((text) => similarity(question[kind], text[kind])), ms };
}

async function reranked(model, query, documents) {
  const { value, ms } = await call("v1/rerank", { model, query, documents });
  const values = [];
  for (const { index, relevance_score } of value.results) values[index] = relevance_score;
  return { values, ms };
}

async function hybrid(rankings) {
  const parts = await Promise.all(rankings.map(async ([title, scores]) => ({ weight: WEIGHTS[title], ...(await scores) })));
  const total = parts.reduce((sum, { weight }) => sum + weight, 0);
  const mean = (i) => parts.reduce((sum, { weight, values }) => sum + weight * values[i], 0) / total;
  return { values: parts[0].values.map((_, i) => mean(i)), ms: Math.max(...parts.map(({ ms }) => ms)) };
}

function note(rankings) {
  const total = rankings.reduce((sum, [title]) => sum + WEIGHTS[title], 0);
  return rankings.map(([title]) => `${title} ${amount(WEIGHTS[title] / total, 2)}`).join(" + ");
}

function column(title) {
  return h("section", { class: "ranking", "aria-busy": "true" }, h("h2", {}, title));
}

function ranked(values, texts, ms, said) {
  const order = values.map((_, i) => i).sort((a, b) => values[b] - values[a]);
  const low = Math.min(...values);
  const high = values[order[0]];
  const item = (i, rank) => h("li", {
    class: "passage", tabindex: "0", "data-passage": i, onmouseenter: mark, onmouseleave: mark, onfocus: mark, onblur: mark,
  },
  h("span", { class: "score" }, h("b", {}, `${rank + 1}`), h("span", { class: "of" }, ` passage ${i + 1} `), values[i].toFixed(3)),
  h("span", { class: "bar-of", "aria-hidden": "true" }, h("i", { "--v": `${Math.round((100 * (values[i] - low)) / (high - low || 1))}%` })),
  h("span", { class: "words" }, texts[i]));
  const list = h("ol", {}, order.slice(0, MOST_SHOWN).map(item));
  const rest = order.slice(MOST_SHOWN);
  const more = rest.length ? h("button", { type: "button", onclick: () => { list.append(...rest.map((i, place) => item(i, MOST_SHOWN + place))); more.remove(); } }, `Show ${rest.length} more`) : null;
  return [h("p", { class: "note" }, `${said} · ${duration(ms / 1000)}`), list, ...(more ? [more] : [])];
}

/** Mark a passage in all rankings while it is pointed at or has the focus. */
function mark(event) {
  const isOn = event.type === "mouseenter" || event.type === "focus";
  const { passage: place } = event.currentTarget.dataset;
  for (const each of document.querySelectorAll(`[data-passage="${place}"]`)) each.classList.toggle("marked", isOn);
}

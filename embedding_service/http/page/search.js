// Rank passages by all that the served models can do, side by side.
import { $, amount, call, complaint, dot, duration, fill, h, lines, numbers, shade } from "./api.js";

const MOST_PASSAGES = 200;
const MOST_SHOWN = 10;
const WEIGHTS = { Dense: 0.4, Sparse: 0.2, ColBERT: 0.4 }; // as BGE-M3's authors weigh them
const FIELDS = ["text", "passage", "content", "body", "document", "page_content"];
const box = $("search-passages");
/** Return the sum over shared tokens of the product of their weights. */
const lexical = (a, b) => Object.entries(a).reduce((sum, [id, weight]) => sum + weight * (b[id] ?? 0), 0);
const passages = ({ length }) => `${amount(length)} passage${length === 1 ? "" : "s"}`;
const say = (content) => $("search-status").replaceChildren(content);
let models = [];
let run = 0;

/** Offer these models, as `/v1/models` lists them. */
export function offer(listed) {
  models = listed;
  const names = (scores) => models.filter((each) => each.outputs.includes("score") === scores).map((each) => each.id);
  fill($("search-model"), names(false));
  fill($("search-reranker"), names(true));
  $("search-reranker-field").hidden = !names(true).length;
}

$("search-file").addEventListener("change", (event) => take(event.target.files[0]));

async function take(file) {
  if (!file) return;
  try {
    const read = (await file.text()).split(/\r?\n/);
    const isJson = /\.(jsonl|ndjson|json)$/i.test(file.name);
    box.value = lines((isJson ? read.map(passage) : read).join("\n")).join("\n");
    say(`${file.name}: ${passages(lines(box.value))}.`);
  } catch (error) {
    say(complaint(error));
  }
}

/** Return the text of one of JSON's lines: a string, or an object's field that has a usual name. */
function passage(line, place) {
  let value = "";
  try {
    value = JSON.parse(line || '""');
  } catch {
    throw new Error(`Line ${place + 1} is not JSON.`);
  }
  const text = [value, ...FIELDS.map((name) => value?.[name])].find((each) => typeof each === "string");
  if (text === undefined) throw new Error(`Line ${place + 1} has no text: it needs one of ${FIELDS.join(", ")}.`);
  return text.replace(/\s+/g, " ");
}

$("search-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const all = lines(box.value);
  const texts = all.slice(0, MOST_PASSAGES);
  const question = $("search-question").value.trim();
  if (!texts.length || !question) return say("Paste some passages and ask a question.");
  const ways = plan(question, texts);
  if (!ways.length) return say("No model is loaded; Status shows which ones are on their way.");
  const mine = ++run;
  const cut = all.length > texts.length ? ` Only the first ${MOST_PASSAGES} of ${amount(all.length)} are ranked.` : "";
  say(`Ranking ${passages(texts)} …${cut}`);
  const columns = ways.map(([title]) => h("section.ranking", { "aria-busy": "true" }, h("h2", title)));
  $("search-result").replaceChildren(...columns);
  await Promise.all(ways.map(async ([, scores, note], i) => {
    const ranking = scores.then((given) => ranked(given, texts, note));
    columns[i].append(...(await ranking.catch((error) => [complaint(error)])));
    columns[i].removeAttribute("aria-busy");
  }));
  if (mine === run) say(`Ranked ${passages(texts)}.${cut}`);
});

/** Return [title, promise of scores, note] for each way in which the served models can rank. */
function plan(question, texts) {
  const model = models.find((each) => each.id === $("search-model").value);
  const reranker = $("search-reranker").value;
  const has = (kind) => model?.outputs.includes(kind);
  const vectors = has("dense") || has("sparse") ? embedded(model, question, texts) : null;
  const ways = [];
  if (has("dense")) ways.push(["Dense", compared(vectors, "dense", dot), model.id]);
  if (has("sparse")) ways.push(["Sparse", compared(vectors, "sparse", lexical), model.id]);
  if (has("colbert")) ways.push(["ColBERT", reranked(model.id, question, texts), model.id]);
  if (ways.length > 1) ways.push(hybrid(ways));
  if (reranker) ways.push(["Reranker", reranked(reranker, question, texts), reranker]);
  return ways;
}

async function embedded(model, question, texts) {
  const has = (kind) => model.outputs.includes(kind);
  const kinds = has("sparse") && { return_dense: has("dense"), return_sparse: true };
  const request = { model: model.id, truncate: "right", encoding_format: "base64", ...kinds };
  const [asked, given] = await Promise.all([
    call("v1/embeddings", { ...request, input: [question], input_type: "query" }),
    call("v1/embeddings", { ...request, input: texts, input_type: "document" }),
  ]);
  const read = (item) => ({ dense: numbers(item.embedding), sparse: item.sparse_embedding });
  return { asked: read(asked.value.data[0]), given: given.value.data.map(read), ms: given.ms };
}

async function compared(vectors, kind, similarity) {
  const { asked, given, ms } = await vectors;
  return { values: given.map((each) => similarity(asked[kind], each[kind])), ms };
}

async function reranked(model, query, documents) {
  const { value, ms } = await call("v1/rerank", { model, query, documents });
  const values = [];
  for (const { index, relevance_score } of value.results) values[index] = relevance_score;
  return { values, ms };
}

/** Return the way that is the mean of others, each with its weight. */
function hybrid(ways) {
  const total = ways.reduce((sum, [title]) => sum + WEIGHTS[title], 0);
  const shares = ways.map(([title]) => WEIGHTS[title] / total);
  const scores = Promise.all(ways.map(([, each]) => each)).then((parts) => ({
    values: parts[0].values.map((_, i) => parts.reduce((sum, { values }, part) => sum + shares[part] * values[i], 0)),
    ms: Math.max(...parts.map(({ ms }) => ms)),
  }));
  return ["Hybrid", scores, ways.map(([title], i) => `${title} ${amount(shares[i], 2)}`).join(" + ")];
}

function ranked({ values, ms }, texts, note) {
  const order = values.map((_, i) => i).sort((a, b) => values[b] - values[a]);
  const low = Math.min(...values);
  const span = Math.max(...values) - low || 1;
  const pointed = { onmouseenter: mark, onmouseleave: mark, onfocus: mark, onblur: mark };
  const items = order.map((i, rank) => h("li.passage", { tabindex: "0", "data-passage": i, ...pointed },
    h("span.score", h("b", `${rank + 1}`), h("span.of", ` passage ${i + 1} `), values[i].toFixed(3)),
    h("span.bar-of", shade((values[i] - low) / span)),
    h("span.words", texts[i])));
  const list = h("ol", items.slice(0, MOST_SHOWN));
  const rest = items.slice(MOST_SHOWN);
  const more = h("button", { type: "button" }, `Show ${rest.length} more`);
  more.addEventListener("click", () => list.append(...rest) ?? more.remove());
  return [h("p.note", `${note} · ${duration(ms / 1000)}`), list, rest.length ? more : ""];
}

/** Mark a passage in all rankings while it is pointed at or has the focus. */
function mark({ type, currentTarget }) {
  const isOn = type === "mouseenter" || type === "focus";
  const same = document.querySelectorAll(`[data-passage="${currentTarget.dataset.passage}"]`);
  for (const each of same) each.classList.toggle("marked", isOn);
}

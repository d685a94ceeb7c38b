// Where ColBERT's best matches lie: for each token of one text the nearest token of another.
import { dot, fill, h, numbers, scrolling, shade, table, tokenText } from "./api.js";

const MOST_ROWS = 40;
const MOST_COLUMNS = 60;

/** Show two of the texts, which can be chosen, token by token. */
export function matches(texts, colbert, tokens) {
  const picture = h("div", { "aria-live": "polite" });
  const [query, document_] = [0, 1].map((place) => {
    const select = h("select", { onchange: () => show() });
    fill(select, texts.map((text, i) => `${i + 1}  ${text.slice(0, 40)}`));
    select.selectedIndex = place;
    return select;
  });
  const side = ({ selectedIndex: i }) => named(colbert[i], tokens?.[i].read ?? []);
  const show = () => picture.replaceChildren(...grid(side(query), side(document_)));
  show();
  return [h("div.row", h("label", "of ", query), h("label", "in ", document_)), picture];
}

/** Return a text's token vectors, and what to call them: all tokens have one but the first. */
function named(sent, [, ...tokens]) {
  const flat = numbers(sent);
  const count = Array.isArray(sent) ? sent.length : tokens.length;
  const width = flat.length / count;
  if (!Number.isInteger(width)) return [];
  const name = (i) => (tokens[i] ? tokenText(tokens[i]) : `${i + 1}`);
  const vector = (i) => flat.subarray(i * width, (i + 1) * width);
  return Array.from({ length: count }, (_, i) => ({ vector: vector(i), name: name(i) }));
}

function grid(query, document_) {
  if (!query.length || !document_.length) return [h("p.note", "These vectors cannot be told apart by token.")];
  const all = query.map(({ vector }) => document_.map((other) => dot(vector, other.vector)));
  const best = all.map((row) => Math.max(...row));
  const score = best.reduce((a, b) => a + b) / best.length;
  const low = Math.min(...all.map((row) => Math.min(...row)));
  const span = Math.max(...best) - low || 1;
  const cell = (value, i, j) => {
    const title = `${query[i].name} – ${document_[j].name}: ${value.toFixed(3)}`;
    const content = [h("span.hidden", value.toFixed(2)), value === best[i] && "●"];
    return h("td.heat", { title, ...shade((value - low) / span) }, content);
  };
  const row = (row, i) => [query[i].name, ...row.slice(0, MOST_COLUMNS).map((value, j) => cell(value, i, j))];
  const heads = ["", ...document_.slice(0, MOST_COLUMNS).map(({ name }) => h("span", name))];
  const isWhole = query.length <= MOST_ROWS && document_.length <= MOST_COLUMNS;
  const cut = isWhole ? "" : ` The first ${MOST_ROWS} and ${MOST_COLUMNS} tokens are shown.`;
  return [
    scrolling("Matches of tokens", table("matrix.tokens-by-tokens", heads, all.slice(0, MOST_ROWS).map(row))),
    h("p.note", `MaxSim ${score.toFixed(3)}: the mean of each row's best match (●).${cut}`),
  ];
}

// Where ColBERT's best matches lie: for each token of one text the nearest token of another.

import { dot, fill, h, numbers, scrolling, short, tokenText } from "./api.js";

const MOST_ROWS = 40;
const MOST_COLUMNS = 60;

/** Show two of the texts, which can be chosen, token by token. */
export function matches(texts, colbert, tokens) {
  const names = texts.map((text, i) => `${i + 1}  ${short(text, 40)}`);
  const select = (place) => {
    const element = h("select", { onchange: () => show() });
    fill(element, names);
    element.selectedIndex = place;
    return element;
  };
  const [query, document_] = [select(0), select(1)];
  const picture = h("div", { "aria-live": "polite" });
  const show = () => {
    const [q, d] = [query.selectedIndex, document_.selectedIndex];
    picture.replaceChildren(...grid(side(colbert[q], tokens?.[q]), side(colbert[d], tokens?.[d])));
  };
  show();
  const labels = h("div", { class: "row" }, h("label", { class: "inline" }, "of ", query), h("label", { class: "inline" }, "in ", document_));
  return h("div", {}, labels, picture);
}

/** Return a text's token vectors, and what to call them: all tokens have one but the first. */
function side(sent, tokens) {
  const read = tokens?.read.slice(1) ?? [];
  const flat = numbers(sent);
  const count = Array.isArray(sent) ? sent.length : read.length;
  const width = flat.length / (count || 1);
  const isWhole = Number.isInteger(width) && width > 0;
  const vectors = isWhole ? Array.from({ length: count }, (_, i) => flat.subarray(i * width, (i + 1) * width)) : [];
  return vectors.map((vector, i) => ({ vector, name: read[i] ? tokenText(read[i]) : `${i + 1}` }));
}

function grid(query, document_) {
  if (!query.length || !document_.length) return [h("p", { class: "note" }, "These vectors cannot be told apart by token.")];
  const all = query.map(({ vector }) => document_.map((other) => dot(vector, other.vector)));
  const best = all.map((row) => Math.max(...row));
  const score = best.reduce((a, b) => a + b, 0) / best.length;
  const columns = document_.slice(0, MOST_COLUMNS);
  // Row by row: a million arguments are more than a call may have.
  const low = all.reduce((least, row) => Math.min(least, ...row), Infinity);
  const high = Math.max(...best);
  const row = (token, i) => h("tr", {}, h("th", { scope: "row", class: "mono" }, token.name), columns.map((other, j) => {
    const value = all[i][j];
    const isBest = value === best[i];
    const share = Math.round((100 * (value - low)) / (high - low || 1));
    const title = `${token.name} – ${other.name}: ${value.toFixed(3)}`;
    return h("td", { class: isBest ? "heat best" : "heat", "--v": `${share}%`, title }, h("span", { class: "hidden" }, value.toFixed(2)), isBest ? "●" : "");
  }));
  const isCut = query.length > MOST_ROWS || document_.length > MOST_COLUMNS;
  const caption = `MaxSim ${score.toFixed(3)}: the mean of each row's best match (●).${isCut ? ` The first ${MOST_ROWS} and ${MOST_COLUMNS} tokens are shown.` : ""}`;
  const head = columns.map((token) => h("th", { scope: "col", class: "mono" }, h("span", {}, token.name)));
  const table = h("table", { class: "matrix tokens-by-tokens" },
    h("thead", {}, h("tr", {}, h("td", {}), head)),
    h("tbody", {}, query.slice(0, MOST_ROWS).map(row)));
  return [scrolling("Matches of tokens", "", table), h("p", { class: "note" }, caption)];
}

// The same request as others write it: curl, and OpenAI's SDKs for Python and Node.

import { ROOT, h, key, scrolling } from "./api.js";

const OPENAI_FIELDS = new Set(["model", "input", "encoding_format", "dimensions", "user"]);
const LANGUAGES = { curl, Python: python, Node: node };

/** Show a request in the language that is chosen, with a button that copies it. */
export function code(request) {
  const source = h("code", {});
  const said = h("span", { class: "note", role: "status" });
  const button = h("button", { type: "button", onclick: () => copy(source, said) }, "Copy");
  const choose = (name) => {
    source.textContent = LANGUAGES[name](request);
    said.textContent = "";
  };
  const radios = Object.keys(LANGUAGES).map((name, i) => h("label", {},
    h("input", { type: "radio", name: "language", value: name, checked: i === 0, onchange: () => choose(name) }), ` ${name}`));
  choose("curl");
  const bar = h("div", { class: "row" }, h("fieldset", { class: "choice" }, h("legend", { class: "hidden" }, "Language"), radios), button, said);
  return h("div", {}, bar, scrolling("Code", "code", h("pre", {}, source)));
}

async function copy(source, said) {
  try {
    await navigator.clipboard.writeText(source.textContent);
    said.textContent = "Copied.";
  } catch {
    getSelection().selectAllChildren(source); // no clipboard over plain HTTP
    said.textContent = "Selected: press Ctrl+C.";
  }
}

function address() {
  return new URL("v1", ROOT).href;
}

function curl(request) {
  const body = JSON.stringify(request, null, 2).replaceAll("'", "'\\''");
  const lines = [`curl ${address()}/embeddings`, "-H 'Content-Type: application/json'"];
  if (key()) lines.push('-H "Authorization: Bearer $EMBEDDING_KEY"');
  return `${lines.join(" \\\n  ")} \\\n  -d '${body}'`;
}

function python(request) {
  const value = (given) => JSON.stringify(given, null, 4).replace(/\n/g, "\n    ");
  const literal = (given) => (typeof given === "boolean" ? (given ? "True" : "False") : value(given));
  const { own, extra } = parted(request);
  const lines = Object.entries(own).map(([name, given]) => `    ${name}=${literal(given)},`);
  const items = Object.entries(extra).map(([name, given]) => `"${name}": ${literal(given)}`);
  if (items.length) lines.push(`    extra_body={${items.join(", ")}},`);
  return `${key() ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${address()}", api_key=${key() ? 'os.environ["EMBEDDING_KEY"]' : '"unused"'})
answer = client.embeddings.create(
${lines.join("\n")}
)
print(len(answer.data), len(answer.data[0].embedding or []))
`;
}

function node(request) {
  const body = JSON.stringify(request, null, 2);
  return `import OpenAI from "openai";

const client = new OpenAI({
  baseURL: "${address()}",
  apiKey: ${key() ? "process.env.EMBEDDING_KEY" : '"unused"'},
});
const answer = await client.embeddings.create(${body});
console.log(answer.data.length, answer.data[0].embedding?.length);
`;
}

/** Part what OpenAI's SDK for Python knows from what it has to be told about. */
function parted(request) {
  const own = {};
  const extra = {};
  for (const [name, value] of Object.entries(request)) (OPENAI_FIELDS.has(name) ? own : extra)[name] = value;
  return { own, extra };
}

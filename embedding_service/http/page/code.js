// The same request as others write it: curl, and OpenAI's SDKs for Python and Node.
import { ROOT, h, key, scrolling } from "./api.js";

const ADDRESS = new URL("v1", ROOT).href;
const LANGUAGES = { curl, Python: python, Node: node };

/** Show a request in the language that is chosen, with a button that copies it. */
export function code(request) {
  const source = h("code");
  const said = h("span.note", { role: "status" });
  const choose = (name) => {
    source.textContent = LANGUAGES[name](request);
    said.textContent = "";
  };
  const languages = Object.keys(LANGUAGES).map((name) => {
    const input = h("input", { type: "radio", name: "language", onchange: () => choose(name) });
    input.checked = name === "curl";
    return h("label", input, name);
  });
  const button = h("button", { type: "button", onclick: () => copy(source, said) }, "Copy");
  choose("curl");
  return [
    h("div.row", h("fieldset", h("legend.hidden", "Language"), languages), button, said),
    scrolling("Code", h("pre", source)),
  ];
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

function curl(request) {
  const body = JSON.stringify(request, null, 2).replaceAll("'", "'\\''");
  const secret = key() ? '  -H "Authorization: Bearer $EMBEDDING_KEY" \\\n' : "";
  return `curl ${ADDRESS}/embeddings \\
  -H 'Content-Type: application/json' \\
${secret}  -d '${body}'`;
}

function python(request) {
  const { model, input, ...others } = request; // which OpenAI's SDK does not know
  const literal = (value) => ({ true: "True", false: "False" })[value] ?? JSON.stringify(value);
  const extra = Object.entries(others).map(([name, value]) => `"${name}": ${literal(value)}`).join(", ");
  return `${key() ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${ADDRESS}", api_key=${key() ? 'os.environ["EMBEDDING_KEY"]' : '"unused"'})
answer = client.embeddings.create(
    model=${JSON.stringify(model)},
    input=${JSON.stringify(input, null, 4).replaceAll("\n", "\n    ")},
${extra && `    extra_body={${extra}},\n`})
print(len(answer.data), len(answer.data[0].embedding or []))
`;
}

function node(request) {
  return `import OpenAI from "openai";

const client = new OpenAI({
  baseURL: "${ADDRESS}",
  apiKey: ${key() ? "process.env.EMBEDDING_KEY" : '"unused"'},
});
const answer = await client.embeddings.create(${JSON.stringify(request, null, 2)});
console.log(answer.data.length, answer.data[0].embedding?.length);
`;
}

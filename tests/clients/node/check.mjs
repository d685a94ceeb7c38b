// Speaks to the gateways through the openai SDK and prints what came back as one JSON object; test_openai_node.py judges it.
import OpenAI from "openai";

const { served, keyed, full, texts, ids, model } = JSON.parse(process.argv[2]);
const client = ({ base_url, api_key }) => new OpenAI({ baseURL: base_url, apiKey: api_key, maxRetries: 0 });
const open = client(served);

async function embed(sdk, fields) {
  const answer = await sdk.embeddings.create(fields);
  return {
    vectors: answer.data.map((item) => item.embedding),
    indices: answer.data.map((item) => item.index),
    isArray: Array.isArray(answer.data[0].embedding),
    model: answer.model,
    usage: answer.usage,
    requestId: answer._request_id,
  };
}

async function failure(request) {
  try {
    await request();
  } catch (error) {
    const { status, type, param, code, requestID } = error;
    return { class: error.constructor.name, status, type, param, code, requestId: requestID };
  }
  return null;
}

const listed = [];
for await (const entry of open.models.list()) listed.push(entry.id);

const report = {
  default: await embed(open, { model, input: texts }),
  float: await embed(open, { model, input: texts, encoding_format: "float" }),
  base64: await embed(open, { model, input: texts, encoding_format: "base64" }),
  string: await embed(open, { model, input: texts[0] }),
  ids: await embed(open, { model, input: ids }),
  idsOfOne: await embed(open, { model, input: ids[0] }),
  whole: await embed(client(keyed), { model: "fake", input: "w1 w2" }),
  cut: await embed(client(keyed), { model: "fake", input: "w1 w2", dimensions: 8 }),
  concurrent: (await Promise.all(texts.map((input) => embed(open, { model, input })))).map(({ vectors }) => vectors[0]),
  listed,
  retrieved: await open.models.retrieve(listed[0]),
  badRequest: await failure(() => open.embeddings.create({ model, input: [] })),
  authentication: await failure(() => client({ ...keyed, api_key: "sk-wrong" }).models.list()),
  notFound: await failure(() => open.embeddings.create({ model: "text-embedding-9", input: "a" })),
  noSuchModel: await failure(() => open.models.retrieve("text-embedding-9")),
  rateLimit: await failure(() => client(full).embeddings.create({ model: "fake", input: "w1 w2 w3" })),
};
console.log(JSON.stringify(report));

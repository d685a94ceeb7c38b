// Makes a batch through the openai SDK and prints what came back as one JSON object; test_openai_batches.py judges it.
import fs from "node:fs";
import OpenAI from "openai";

const { url, key, path, maxRetries } = JSON.parse(process.argv[2]);
const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries });

const file = await client.files.create({
  file: fs.createReadStream(path),
  purpose: "batch",
  expires_after: { anchor: "created_at", seconds: 3600 },
});
let batch = await client.batches.create({
  input_file_id: file.id,
  endpoint: "/v1/embeddings",
  completion_window: "24h",
  metadata: { from: "node" },
});
const made = batch;
while (!["completed", "failed"].includes(batch.status)) {
  await new Promise((resolve) => setTimeout(resolve, 100));
  batch = await client.batches.retrieve(batch.id);
}
const output = await (await client.files.content(batch.output_file_id)).text();
const errors =
  batch.error_file_id && (await (await client.files.content(batch.error_file_id)).text());
const files = [];
for await (const each of client.files.list({ limit: 1 })) files.push(each.id);
const batches = [];
for await (const each of client.batches.list({ limit: 1 })) batches.push(each.id);
let refused = null;
try {
  await client.batches.cancel(batch.id);
} catch (error) {
  refused = { class: error.constructor.name, status: error.status, code: error.code };
}
const deleted = await client.files.delete(file.id);
console.log(JSON.stringify({ file, made, batch, output, errors, files, batches, refused, deleted }));

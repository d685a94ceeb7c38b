// Speaks to a gateway through SDKs for Node.js and prints what came back as one JSON object; test_node_sdks.py judges it.
import { OpenAIEmbeddings } from "@langchain/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, embedMany } from "ai";
import { OpenAIEmbedding } from "@llamaindex/openai";
import { VectorStoreIndex, Document, Settings } from "llamaindex";
import { CohereClient, CohereClientV2 } from "cohere-ai";

const { url, key, texts, query, model, reranker } = JSON.parse(process.argv[2]);
const base = `${url}/v1`;
const report = {};

async function failure(request) {
  try {
    await request();
  } catch (error) {
    return { class: error.constructor.name, status: error.status ?? error.statusCode ?? null, message: String(error.message) };
  }
  return null;
}

const langchain = new OpenAIEmbeddings({ model, apiKey: key, batchSize: 2, configuration: { baseURL: base } });
report.langchain = {
  documents: await langchain.embedDocuments(texts),
  query: await langchain.embedQuery(query),
};

const provider = createOpenAICompatible({ name: "gateway", baseURL: base, apiKey: key });
const aiModel = (provider.embeddingModel ?? provider.textEmbeddingModel)(model);
const many = await embedMany({ model: aiModel, values: texts });
report.ai = {
  documents: many.embeddings,
  query: (await embed({ model: aiModel, value: query })).embedding,
  tokens: many.usage.tokens,
};

const llama = new OpenAIEmbedding({ model, apiKey: key, baseURL: base, embedBatchSize: 2 });
report.llamaindex = {
  documents: await llama.getTextEmbeddingsBatch(texts),
  query: await llama.getTextEmbedding(query),
};
Settings.embedModel = llama;
const index = await VectorStoreIndex.fromDocuments(texts.map((text, i) => new Document({ text, id_: String(i) })));
const found = await index.asRetriever({ similarityTopK: 1 }).retrieve({ query: texts[1] });
report.llamaindex.found = found.map(({ node }) => node.text);

const cohere = new CohereClientV2({ token: key, environment: url });
const embedded = await cohere.embed({ model, texts, inputType: "search_document", embeddingTypes: ["float", "int8"] });
const ranked = await cohere.rerank({ model: reranker, query, documents: texts, topN: 2 });
report.cohere = {
  documents: embedded.embeddings.float,
  int8: embedded.embeddings.int8,
  results: ranked.results.map(({ index, relevanceScore }) => [index, relevanceScore]),
  failure: await failure(() => cohere.embed({ model: "nobody", texts, inputType: "search_query", embeddingTypes: ["float"] })),
};

const first = new CohereClient({ token: key, environment: url });
const old = await first.embed({ model, texts, inputType: "search_document" });
const oldRanked = await first.rerank({ model: reranker, query, documents: texts, topN: 2, returnDocuments: true });
report.cohereV1 = {
  documents: old.embeddings,
  type: old.responseType,
  results: oldRanked.results.map(({ index, relevanceScore, document }) => [index, relevanceScore, document.text]),
};

console.log(JSON.stringify(report));

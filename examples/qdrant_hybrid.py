"""BGE-M3's three vectors in Qdrant: ingest, then a hybrid query with late-interaction reranking.

    python examples/qdrant_hybrid.py --base-url http://127.0.0.1:8890/v1 --model bge-m3

Needs `pip install openai qdrant-client`. The collection lives in memory; give a URL to use a
server.
"""

from __future__ import annotations

import argparse
import base64
from typing import Any

import numpy as np
from openai import OpenAI
from qdrant_client import QdrantClient, models

DOCUMENTS = [
    "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector interaction.",
    "BM25 is a bag-of-words retrieval function that ranks documents by the query terms they contain.",
    "The Eiffel Tower stands in Paris, on the left bank of the Seine.",
]


def embed(client: OpenAI, model: str, texts: list[str]) -> list[dict[str, Any]]:
    """Return each text's dense vector, sparse vector and ColBERT rows, from one request."""
    # The SDK asks for base64 and decodes the dense vectors itself; the ColBERT rows are left to us.
    answer = client.embeddings.create(
        model=model, input=texts, extra_body={"return_sparse": True, "return_colbert": True}
    )
    points = []
    for item in answer.data:
        more = item.model_extra or {}
        rows = np.frombuffer(base64.b64decode(more["colbert_embedding"]), "<f4").reshape(
            more["colbert_shape"]
        )
        weights = more["sparse_embedding"]
        sparse = models.SparseVector(
            indices=[int(i) for i in weights], values=list(weights.values())
        )
        points.append({"dense": item.embedding, "sparse": sparse, "colbert": rows.tolist()})
    return points


def create_collection(store: QdrantClient, name: str, dimension: int) -> None:
    """Create a collection with a dense, a sparse and a multi-vector index."""
    multivector = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    cosine = models.Distance.COSINE
    store.create_collection(
        name,
        vectors_config={
            "dense": models.VectorParams(size=dimension, distance=cosine),
            "colbert": models.VectorParams(
                size=dimension, distance=cosine, multivector_config=multivector
            ),
        },
        sparse_vectors_config={"sparse": models.SparseVectorParams()},
    )


def search(
    store: QdrantClient, name: str, query: dict[str, Any], *, limit: int = 3
) -> list[models.ScoredPoint]:
    """Fetch candidates by dense and sparse similarity, fuse them, and rank the rest by MaxSim."""
    fused = models.Prefetch(
        prefetch=[
            models.Prefetch(query=query["dense"], using="dense", limit=10 * limit),
            models.Prefetch(query=query["sparse"], using="sparse", limit=10 * limit),
        ],
        query=models.FusionQuery(fusion=models.Fusion.RRF),
        limit=5 * limit,
    )
    return store.query_points(
        name, prefetch=fused, query=query["colbert"], using="colbert", limit=limit
    ).points


def main(arguments: list[str] | None = None) -> list[models.ScoredPoint]:
    """Run the example; return the ranked points."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8890/v1")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--model", default="bge-m3")
    parser.add_argument("--qdrant", default=":memory:")
    parser.add_argument("--query", default="What is BGE M3?")
    options = parser.parse_args(arguments)
    client = OpenAI(base_url=options.base_url, api_key=options.api_key)
    store = QdrantClient(options.qdrant)
    vectors = embed(client, options.model, DOCUMENTS)
    create_collection(store, "documents", len(vectors[0]["dense"]))
    points = [
        models.PointStruct(id=i, vector=vector, payload={"text": text})
        for i, (text, vector) in enumerate(zip(DOCUMENTS, vectors, strict=True))
    ]
    store.upsert("documents", points)
    ranked = search(store, "documents", embed(client, options.model, [options.query])[0])
    for point in ranked:
        print(f"{point.score:.4f}  {point.payload['text'] if point.payload else ''}")
    return ranked


if __name__ == "__main__":
    main()

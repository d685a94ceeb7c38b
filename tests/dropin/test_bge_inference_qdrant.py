"""bge-inference-service's use: a hybrid search in Qdrant, from ingest to reranked answers."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embedding_service.service.late_interaction import lexical
from tests.calls import unit_vectors
from tests.dialects.test_bge import expected_sparse
from tests.dialects.test_rerank import score

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # qdrant-client's own
    from qdrant_client import QdrantClient, models

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.conftest import RunningGateway

TEXTS = [f"w{n} w{n % 7} w{n * 3 % 11}" for n in range(20, 60)]
QUERY = "w3 w21"


def hybrid(http: httpx.Client, texts: list[str]) -> list[dict[str, Any]]:
    """Return named vectors as Qdrant takes them, from one request."""
    body = http.post("/v1/hybrid-embeddings", json={"input": texts}).json()
    return [
        {
            "dense": item["dense"],
            "sparse": models.SparseVector(
                indices=item["sparse"]["indices"], values=item["sparse"]["values"]
            ),
        }
        for item in body["data"]
    ]


def ingest(http: httpx.Client) -> QdrantClient:
    """Return a collection in memory that holds all texts."""
    store = QdrantClient(":memory:")
    store.create_collection(
        "texts",
        vectors_config={"dense": models.VectorParams(size=32, distance=models.Distance.COSINE)},
        sparse_vectors_config={"sparse": models.SparseVectorParams()},
    )
    vectors = hybrid(http, TEXTS)
    points = [
        models.PointStruct(id=i, vector=vector, payload={"text": text})
        for i, (text, vector) in enumerate(zip(TEXTS, vectors, strict=True))
    ]
    store.upsert("texts", points)
    return store


@pytest.mark.parametrize("mapping", ["tokenizer", "hash"])
def test_from_ingest_to_reranked_answer(
    start_preset: Callable[..., RunningGateway], mapping: str
) -> None:
    """Both searches find their vectors; fused candidates come back in the reranker's order."""
    gateway = start_preset("bge-inference-service", environ={"SPARSE_TOKEN_MAPPING": mapping})
    with gateway.client() as http:
        store = ingest(http)
        (query,) = hybrid(http, [QUERY])

        by_words = store.query_points(
            "texts", query=query["sparse"], using="sparse", limit=5
        ).points
        expected = [lexical(expected_sparse(QUERY), expected_sparse(text)) for text in TEXTS]
        np.testing.assert_allclose(
            [p.score for p in by_words], sorted(expected, reverse=True)[:5], rtol=1e-4
        )

        by_meaning = store.query_points(
            "texts", query=query["dense"], using="dense", limit=5
        ).points
        cosines = unit_vectors(*TEXTS) @ unit_vectors(QUERY)[0]
        assert [point.id for point in by_meaning] == np.argsort(-cosines)[:5].tolist()

        both = [
            models.Prefetch(query=vector, using=name, limit=10) for name, vector in query.items()
        ]
        fused = models.FusionQuery(fusion=models.Fusion.RRF)
        candidates = store.query_points("texts", prefetch=both, query=fused, limit=8).points
        documents = [
            {"text": p.payload["text"], "id": p.id, "meta": {"rrf": p.score}}
            for p in candidates
            if p.payload
        ]
        body = http.post(
            "/v1/rerank",
            json={"query": QUERY, "documents": documents, "top_n": 3, "return_documents": True},
        ).json()
    logits = np.array([score(QUERY, document["text"]) for document in documents])
    best = np.argsort(-logits)[:3].tolist()
    assert [result["document"] for result in body["results"]] == [documents[i] for i in best]
    np.testing.assert_allclose(
        [result["relevance_score"] for result in body["results"]], logits[best], rtol=1e-5
    )
    gateway.stop()

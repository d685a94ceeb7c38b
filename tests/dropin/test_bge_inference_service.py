"""The preset bge-inference-service, request by request."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embedding_service.errors import BadConfiguration, ModelNotLoaded
from tests.calls import unit_vectors, vectors_of
from tests.dialects.test_bge import expected_sparse
from tests.dialects.test_rerank import score

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.conftest import RunningGateway

TEXTS = ["w1 w2 w3", "w4"]


PRESET = "bge-inference-service"


@pytest.mark.parametrize("model", [None, "bge-m3", "text-embedding-3-small"])
def test_dense_vectors(http: httpx.Client, model: str | None) -> None:
    """`/v1/embeddings` gives dense vectors under whatever name they were asked for."""
    answer = http.post(
        "/v1/embeddings", json={"input": TEXTS} | ({} if model is None else {"model": model})
    )
    np.testing.assert_allclose(vectors_of(answer), unit_vectors(*TEXTS), atol=1e-6)
    assert answer.json()["model"] == (model or "bge-m3")


def test_sparse_vectors_by_token_id(http: httpx.Client) -> None:
    """`/v1/sparse-embeddings` gives token ids and weights, and says how the indices are made."""
    body = http.post("/v1/sparse-embeddings", json={"input": TEXTS}).json()
    assert body["model"] == "BAAI/bge-m3"
    for index, (item, text) in enumerate(zip(body["data"], TEXTS, strict=True)):
        assert item["index"] == index
        assert item["sparse"].keys() == {"indices", "values", "mapping", "index_space"}
        expected = expected_sparse(text)
        assert item["sparse"]["indices"] == expected.indices.tolist()
        np.testing.assert_allclose(item["sparse"]["values"], expected.values, rtol=1e-5)
        assert (item["sparse"]["mapping"], item["sparse"]["index_space"]) == ("tokenizer", 1 << 20)


def test_sparse_vectors_by_hash(start_preset: Callable[..., RunningGateway]) -> None:
    """With SPARSE_TOKEN_MAPPING=hash an index is an id's hash, and colliding weights are summed."""
    gateway = start_preset(
        "bge-inference-service", environ={"SPARSE_TOKEN_MAPPING": "hash", "SPARSE_INDEX_SPACE": "3"}
    )
    with gateway.client() as http:
        body = http.post("/v1/sparse-embeddings", json={"input": TEXTS}).json()
    for item, text in zip(body["data"], TEXTS, strict=True):
        expected: dict[int, float] = {}
        sparse = expected_sparse(text)
        for token, weight in zip(sparse.indices.tolist(), sparse.values, strict=True):
            slot = int(hashlib.sha256(str(token).encode()).hexdigest()[:8], 16) % 3
            expected[slot] = expected.get(slot, 0) + float(weight)
        assert (item["sparse"]["mapping"], item["sparse"]["index_space"]) == ("hash", 3)
        assert item["sparse"]["indices"] == sorted(expected)
        np.testing.assert_allclose(
            item["sparse"]["values"], [expected[i] for i in sorted(expected)], rtol=1e-5
        )
    gateway.stop()


def test_hybrid_vectors(http: httpx.Client) -> None:
    """`/v1/hybrid-embeddings` gives both kinds, equal to those of the single routes."""
    hybrid = http.post("/v1/hybrid-embeddings", json={"input": TEXTS}).json()
    sparse = http.post("/v1/sparse-embeddings", json={"input": TEXTS}).json()
    np.testing.assert_allclose(
        [item["dense"] for item in hybrid["data"]], unit_vectors(*TEXTS), atol=1e-6
    )
    assert [item["sparse"] for item in hybrid["data"]] == [
        item["sparse"] for item in sparse["data"]
    ]
    assert [item["index"] for item in hybrid["data"]] == [0, 1]


def test_rerank_with_raw_scores(http: httpx.Client) -> None:
    """Scores are raw; where they are asked for, documents come back whole with ids and meta data."""
    documents: list[Any] = [
        {"text": "w2 w3", "id": "a", "meta": {"page": 3}},
        {"text": "w4", "id": 7},
        "w5 w6",
    ]
    asked = {"query": "w1", "documents": documents}
    bare = http.post("/v1/rerank", json=asked).json()
    assert [result["document"] for result in bare["results"]] == [None, None, None]
    body = http.post("/v1/rerank", json={**asked, "return_documents": True}).json()
    assert {"model", "results"} <= body.keys()
    assert body["model"] == "BAAI/bge-reranker-v2-m3"
    texts = ["w2 w3", "w4", "w5 w6"]
    logits = [score("w1", text) for text in texts]
    order = np.argsort(-np.array(logits)).tolist()
    assert [result["index"] for result in body["results"]] == order
    np.testing.assert_allclose(
        [r["relevance_score"] for r in body["results"]], [logits[i] for i in order], rtol=1e-5
    )
    whole = [*documents[:2], {"text": "w5 w6"}]
    assert [result["document"] for result in body["results"]] == [whole[i] for i in order]
    assert (
        len(
            http.post("/v1/rerank", json={"query": "w1", "documents": texts, "top_n": 1}).json()[
                "results"
            ]
        )
        == 1
    )


def test_a_long_query_is_cut(http: httpx.Client) -> None:
    """As the original's library did: to three quarters of the 512 tokens."""
    (result,) = http.post("/v1/rerank", json={"query": "w1 " * 600, "documents": ["w2"]}).json()[
        "results"
    ]
    assert result["relevance_score"] == pytest.approx(score("w1 " * 384, "w2"), rel=1e-5)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": ["w1", " "]}),
        ("/v1/sparse-embeddings", {"input": "\n"}),
        ("/v1/hybrid-embeddings", {"input": [""]}),
        ("/v1/rerank", {"query": " ", "documents": ["w1"]}),
        ("/v1/rerank", {"query": "w1", "documents": ["w1", "\t"]}),
        ("/v1/rerank", {"query": "w1", "documents": [{"text": "", "query": ""}]}),
    ],
)
def test_blank_texts_are_refused(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    """As in the original, which answered 500."""
    answer = http.post(path, json=body)
    assert (answer.status_code, list(answer.json())) == (400, ["detail"])
    assert "Cannot process empty text" in answer.json()["detail"]


def test_over_long_texts_are_cut(start_preset: Callable[..., RunningGateway]) -> None:
    """Texts, queries and documents of more than MAX_TEXT_CHARS characters are cut, and named."""
    gateway = start_preset("bge-inference-service", environ={"MAX_TEXT_CHARS": "6"})
    with gateway.client() as http:
        answer = http.post("/v1/embeddings", json={"input": ["w1", "w1 w2 w3 w4"]})
        np.testing.assert_allclose(vectors_of(answer), unit_vectors("w1", "w1 w2 "), atol=1e-6)
        assert answer.headers["x-truncated-inputs"] == "1"
        body = {"query": "w1 w2 w3", "documents": ["w4", "w5 w6 w7"]}
        ranked = http.post("/v1/rerank", json=body)
        assert ranked.status_code == 200
        expected = [score("w1 w2", "w4"), score("w1 w2", "w5 w6")]
        got = {r["index"]: r["relevance_score"] for r in ranked.json()["results"]}
        assert [got[0], got[1]] == pytest.approx(expected, rel=1e-5)
        assert ranked.headers["x-truncated-inputs"] == "0, 1"
    gateway.stop()


def test_health(http: httpx.Client) -> None:
    """Health tells which of the two models are loaded, and where."""
    assert http.get("/health").json() == {
        "status": "ok",
        "service": "bge-inference-service",
        "embedder_loaded": True,
        "reranker_loaded": True,
        "device": "cpu",
    }


def test_health_without_a_model(start_preset: Callable[..., RunningGateway]) -> None:
    """While a model is missing the status is `degraded`."""
    gateway = start_preset(
        "bge-inference-service", wait=False, reranker={"outputs": ["score"], "load_s": 3600}
    )
    gateway.wait_ready()
    with gateway.client() as http:
        health = http.get("/health")
        assert health.status_code == 200
        body = health.json()
        assert (body["status"], body["embedder_loaded"], body["reranker_loaded"]) == (
            "degraded",
            True,
            False,
        )
        assert http.post("/v1/embeddings", json={"input": "w1"}).status_code == 200
        assert http.post("/v1/rerank", json={"query": "w1", "documents": ["w2"]}).status_code == 503
    gateway.stop()


def test_a_wrong_size_of_vectors_ends_the_start(
    start_preset: Callable[..., RunningGateway],
) -> None:
    """EMBEDDING_SIZE is checked before anything is served."""
    gateway = start_preset("bge-inference-service", wait=False, environ={"EMBEDDING_SIZE": "1024"})
    with pytest.raises(ModelNotLoaded, match="1024"):
        gateway.wait_ready()


@pytest.mark.parametrize(
    "path", ["/v1/embeddings", "/v1/sparse-embeddings", "/v1/hybrid-embeddings"]
)
@pytest.mark.parametrize("given", [[], "", ["w1"] * 65, None, 7])
def test_wrong_input(http: httpx.Client, path: str, given: Any) -> None:
    """Nothing, 65 texts or no text are a 400 with a detail."""
    answer = http.post(path, json={"input": given})
    assert (answer.status_code, list(answer.json())) == (400, ["detail"])


def test_long_texts_are_cut(http: httpx.Client) -> None:
    """Texts over 512 tokens are cut without a word."""
    answer = http.post("/v1/embeddings", json={"input": "w1 " * 600})
    np.testing.assert_allclose(vectors_of(answer), unit_vectors("w1 " * 510), atol=1e-6)


def test_the_old_variables(start_preset: Callable[..., RunningGateway]) -> None:
    """The original's variables set what they set there."""
    environ = {
        "DEVICE": "cpu",
        "EMBEDDING_MODEL_NAME": "my/bge-m3",
        "RERANKER_MODEL_NAME": "my/reranker",
        "USE_FP16": "False",
        "SERVICE_NAME": "svc",
        "HOST": "127.0.0.1",
        "PORT": "0",
        "LOG_LEVEL": "WARNING",
        "MAX_BATCH_SIZE": "3",
        "MAX_TEXT_CHARS": "99",
        "EMBEDDING_SIZE": "32",
        "OPENAI_DEFAULT_MODEL_ALIAS": "alias",
        "EMBEDDING_MICROBATCH_ENABLED": "true",
        "EMBEDDING_MICROBATCH_MAX_WAIT_MS": "5",
        "EMBEDDING_MICROBATCH_MAX_BATCH_TEXTS": "6",
        "EMBEDDING_MICROBATCH_QUEUE_MAXSIZE": "8",
    }
    gateway = start_preset("bge-inference-service", environ=environ)
    settings, (embedder, reranker) = gateway.settings, gateway.settings.served_models
    assert (embedder.model_name, reranker.model_name) == ("my/bge-m3", "my/reranker")
    assert (embedder.device, embedder.dtype, list(embedder.aliases)) == (
        "cpu",
        "float32",
        ["alias"],
    )
    assert (embedder.batch_timeout_ms, embedder.max_batch_size) == (5, 6)
    assert (
        settings.max_inputs,
        settings.max_text_characters,
        settings.max_concurrent_requests,
    ) == (3, 99, 8)
    assert (settings.log_level, settings.service_name) == ("warning", "svc")
    with gateway.client() as http:
        assert http.get("/health").json()["service"] == "svc"
    gateway.stop()
    with pytest.raises(BadConfiguration, match="USE_FP16"):
        start_preset("bge-inference-service", environ={"USE_FP16": "maybe"})

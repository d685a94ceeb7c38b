"""BGE-M3's vectors over HTTP, with the fake engine's numbers."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embedding_service.families.lexical import largest
from embedding_service.service.vectors import hash_indices
from embedding_service.types import Output, Sparse
from embedding_service.worker.fake import DIMENSION, fake_tokenizer, fake_vectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from tests.conftest import RunningGateway

TEXTS = ["w1 w2 w2 w3", "w4", "something unknown w5 w5"]
THREE = {
    "engine": "fake",
    "port": 0,
    "model_name": "m3",
    "engine_args": {"outputs": ["dense", "sparse", "colbert"]},
}


@pytest.fixture(scope="module")
def m3(start_gateway: Callable[..., RunningGateway]) -> Iterator[httpx.Client]:
    """Return a client of a gateway whose fake model gives all three vectors."""
    with start_gateway(**THREE).client() as http:
        yield http


def expected_sparse(text: str) -> Sparse:
    """Return the lexical weights that the fake engine means for a text."""
    rows = fake_vectors(fake_tokenizer().encode(text).ids, Output.SPARSE)
    indices, values = largest(rows).T
    return Sparse(indices.astype(np.int64), values)


def expected_colbert(text: str) -> np.ndarray:
    """Return the token vectors that the fake engine means for a text."""
    return fake_vectors(fake_tokenizer().encode(text).ids, Output.COLBERT)


def embed(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    """Post an embeddings request for TEXTS and return its answer."""
    answer = http.post("/v1/embeddings", json={"model": "m3", "input": TEXTS, **fields})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_plain_request_keeps_openais_shape(m3: httpx.Client) -> None:
    """Without a return_* field nothing tells that the model could do more."""
    body = embed(m3)
    assert body.keys() == {"object", "data", "model", "usage"}
    assert body["data"][0].keys() == {"object", "index", "embedding"}


def test_all_three_in_one_answer(m3: httpx.Client) -> None:
    """Every kind asked for is there, in order, with the model's very numbers."""
    body = embed(m3, return_dense=True, return_sparse=True, return_colbert=True)
    plain = embed(m3)
    assert body["embedding_types"] == ["dense", "sparse", "colbert"]
    for item, other, text in zip(body["data"], plain["data"], TEXTS, strict=True):
        assert item["dense_embedding"] == item["embedding"] == other["embedding"]
        sparse = expected_sparse(text)
        assert item["sparse_embedding"] == {
            str(i): pytest.approx(float(v), rel=1e-6)
            for i, v in zip(sparse.indices, sparse.values, strict=True)
        }
        np.testing.assert_allclose(item["colbert_embedding"], expected_colbert(text), rtol=1e-6)


def test_kinds_not_asked_for_are_null(m3: httpx.Client) -> None:
    """Only what was asked for is sent; dense stays on unless it is switched off."""
    item = embed(m3, return_sparse=True)["data"][0]
    assert item["dense_embedding"] is not None
    assert item["colbert_embedding"] is None
    item = embed(m3, return_dense=False, return_colbert=True)["data"][0]
    assert item["embedding"] is None
    assert item["sparse_embedding"] is None


def test_all_false_is_refused(m3: httpx.Client) -> None:
    """A request for nothing is a 400 that says what to ask for."""
    answer = m3.post("/v1/embeddings", json={"model": "m3", "input": "w1", "return_dense": False})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(
        "At least one vector type must be requested"
    )


@pytest.mark.parametrize(
    ("dtype", "numpy_dtype"), [("float32", "<f4"), ("float16", "<f2"), ("int8", "i1")]
)
def test_base64_colbert_comes_with_its_shape(
    m3: httpx.Client, dtype: str, numpy_dtype: str
) -> None:
    """base64 and embed_dtype apply to ColBERT too, and the shape is told."""
    body = embed(m3, return_colbert=True, encoding_format="base64", embed_dtype=dtype)
    for item, text in zip(body["data"], TEXTS, strict=True):
        rows = np.frombuffer(base64.b64decode(item["colbert_embedding"]), numpy_dtype).reshape(
            item["colbert_shape"]
        )
        scale = 127 if dtype == "int8" else 1
        np.testing.assert_allclose(
            rows / scale, expected_colbert(text), atol=1e-2 if dtype != "float32" else 1e-6
        )


def test_too_large_an_answer_is_refused_with_advice(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """ColBERT of many tokens is refused from the token counts, before the engine works."""
    gateway = start_gateway(**THREE, max_response_bytes=20_000)
    request = {"model": "m3", "input": ["w1 " * 60], "return_colbert": True}
    with gateway.client() as http:
        answer = http.post("/v1/embeddings", json=request)
        assert answer.status_code == 400
        assert "base64" in answer.json()["error"]["message"]
        assert "float16" in answer.json()["error"]["message"]
        assert (
            http.post("/v1/embeddings", json={**request, "encoding_format": "base64"}).status_code
            == 200
        )


def test_missing_heads_are_named(client: httpx.Client) -> None:
    """A model with dense vectors alone says which kind it lacks."""
    answer = client.post(
        "/v1/embeddings", json={"model": "fake", "input": "w1", "return_sparse": True}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "return_sparse"
    assert answer.json()["error"]["message"].startswith("fake gives dense and no sparse; ask")


@pytest.mark.parametrize("text", TEXTS)
def test_sparse_embeddings_by_token_id(m3: httpx.Client, text: str) -> None:
    """Indices are sorted, unique token ids, with the largest weight of each."""
    body = m3.post("/v1/sparse-embeddings", json={"model": "m3", "input": text}).json()
    sparse = body["data"][0]["sparse"]
    assert (
        sparse["indices"]
        == expected_sparse(text).indices.tolist()
        == sorted(set(sparse["indices"]))
    )
    np.testing.assert_allclose(sparse["values"], expected_sparse(text).values, rtol=1e-6)
    assert sparse["mapping"] == "tokenizer"
    assert sparse["index_space"] == 1 << 20


def test_sparse_embeddings_hashed(start_gateway: Callable[..., RunningGateway]) -> None:
    """With the hash mapping the indices are those of an existing hashed index, collisions summed."""
    gateway = start_gateway(**THREE, sparse_token_mapping="hash", sparse_index_space=7)
    with gateway.client() as http:
        body = http.post("/v1/sparse-embeddings", json={"model": "m3", "input": TEXTS}).json()
    for item, text in zip(body["data"], TEXTS, strict=True):
        hashed = hash_indices(expected_sparse(text), space=7)
        assert item["sparse"]["indices"] == hashed.indices.tolist()
        np.testing.assert_allclose(item["sparse"]["values"], hashed.values, rtol=1e-6)
        assert (item["sparse"]["mapping"], item["sparse"]["index_space"]) == ("hash", 7)


def test_hybrid_embeddings_have_both(m3: httpx.Client) -> None:
    """Dense and sparse come together, equal to what the single calls give."""
    hybrid = m3.post("/v1/hybrid-embeddings", json={"model": "m3", "input": TEXTS}).json()
    sparse = m3.post("/v1/sparse-embeddings", json={"model": "m3", "input": TEXTS}).json()
    for item, other, plain in zip(hybrid["data"], sparse["data"], embed(m3)["data"], strict=True):
        assert item["sparse"] == other["sparse"]
        assert item["dense"] == plain["embedding"]
        assert len(item["dense"]) == DIMENSION
    assert hybrid["usage"]["prompt_tokens"] > 0

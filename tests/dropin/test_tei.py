"""The preset tei, request by request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embedding_service.errors import BadConfiguration
from embedding_service.types import Output
from embedding_service.worker.fake import fake_vectors
from tests.calls import ids_of, unit_vectors
from tests.dialects.test_bge import expected_sparse
from tests.dialects.test_rerank import score

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from tests.conftest import RunningGateway

MODEL = "BAAI/bge-small-en-v1.5"
TEXTS = ["w1 w2", "w3"]


@pytest.fixture(scope="module")
def http(start_preset: Callable[..., RunningGateway]) -> Iterator[httpx.Client]:
    """Return a client of the preset."""
    with start_preset("tei", max_model_len=64).client() as client:
        yield client


def answer(http: httpx.Client, path: str, **fields: Any) -> Any:
    """Post a request and return its answer."""
    response = http.post(path, json=fields)
    assert response.status_code == 200, response.text
    return response.json()


def test_embed(http: httpx.Client) -> None:
    """Texts become unit vectors, at `/embed` and at `/`; a text on its own is a list of one."""
    for path in ("/embed", "/"):
        np.testing.assert_allclose(
            answer(http, path, inputs=TEXTS), unit_vectors(*TEXTS), atol=1e-6
        )
        np.testing.assert_allclose(answer(http, path, inputs="w3"), unit_vectors("w3"), atol=1e-6)


def test_embed_all_and_sparse(http: httpx.Client) -> None:
    """Every token's last hidden state, as it is, and every token's weight."""
    for rows, text in zip(answer(http, "/embed_all", inputs=TEXTS), TEXTS, strict=True):
        np.testing.assert_allclose(
            rows, fake_vectors(ids_of(text), Output.HIDDEN_STATES), rtol=1e-6
        )
    for weights, text in zip(answer(http, "/embed_sparse", inputs=TEXTS), TEXTS, strict=True):
        assert [weight["index"] for weight in weights] == expected_sparse(text).indices.tolist()


def test_similarity(http: httpx.Client) -> None:
    """Cosines of a sentence with others."""
    source, other = unit_vectors("w1", "w3")
    body = {"source_sentence": "w1", "sentences": ["w1", "w3"]}
    np.testing.assert_allclose(
        answer(http, "/similarity", inputs=body), [1, source @ other], atol=1e-6
    )


def test_tokenize_and_decode(http: httpx.Client) -> None:
    """Tokens of a text, and back."""
    (tokens,) = answer(http, "/tokenize", inputs="w1 w2")
    assert [token["text"] for token in tokens] == ["[CLS]", "w1", "w2", "[SEP]"]
    assert answer(http, "/decode", ids=[token["id"] for token in tokens[1:-1]]) == ["w1 w2"]


def test_rerank(start_preset: Callable[..., RunningGateway]) -> None:
    """A reranker ranks `texts`; `documents` are another system's, and refused in TEI's words."""
    with start_preset("tei", engine_args={"outputs": ["score"]}).client() as http:
        ranks = answer(
            http, "/rerank", query="w1", texts=["w2", "w3 w4"], raw_scores=True, return_text=True
        )
        scores = {text: score("w1", text) for text in ("w2", "w3 w4")}
        assert [rank["text"] for rank in ranks] == sorted(
            scores, key=scores.__getitem__, reverse=True
        )
        assert [rank["score"] for rank in ranks] == pytest.approx(
            sorted(scores.values(), reverse=True), rel=1e-5
        )
        refused = http.post("/rerank", json={"query": "w1", "documents": ["w2"]})
        assert (refused.status_code, refused.json()["error_type"]) == (422, "Validation")
        assert "texts" in refused.json()["error"]
        for path in ("/embed", "/embed_all", "/embed_sparse"):
            cannot = http.post(path, json={"inputs": "w1"})
            assert (cannot.status_code, cannot.json()["error_type"]) == (424, "Backend")
        openai = http.post("/v1/embeddings", json={"input": "w1"})
        assert openai.status_code == openai.json()["code"] == 424


def test_a_model_that_cannot_is_424(start_preset: Callable[..., RunningGateway]) -> None:
    """An embedding model neither reranks nor gives weights that it does not have."""
    with start_preset("tei", engine_args={"outputs": ["dense"]}).client() as http:
        for path, body in (
            ("/rerank", {"query": "w1", "texts": ["w2"]}),
            ("/embed_sparse", {"inputs": "w1"}),
        ):
            cannot = http.post(path, json=body)
            assert (cannot.status_code, cannot.json()["error_type"]) == (424, "Backend")


@pytest.mark.parametrize(("dimensions", "status"), [(1, 200), (7, 200), (32, 200), (33, 422)])
def test_dimensions_cut_any_vector(http: httpx.Client, dimensions: int, status: int) -> None:
    """Vectors are cut, then normalised; more than there are is refused, and 0."""
    response = http.post("/embed", json={"inputs": "w1", "dimensions": dimensions})
    assert response.status_code == status
    if status == 200:
        cut = unit_vectors("w1")[:, :dimensions]
        expected = cut / np.linalg.norm(cut)
        np.testing.assert_allclose(response.json(), expected, atol=1e-6)
    assert http.post("/embed", json={"inputs": "w1", "dimensions": 0}).status_code == 422


def test_openai(http: httpx.Client) -> None:
    """OpenAI's route is as it was, whatever the model is called; its errors are TEI's."""
    body = answer(http, "/v1/embeddings", input=TEXTS, model="text-embeddings-inference")
    np.testing.assert_allclose(
        [item["embedding"] for item in body["data"]], unit_vectors(*TEXTS), atol=1e-6
    )
    for given, status, kind in ((7, 422, "Validation"), ([], 400, "Empty"), ("", 400, "Empty")):
        refused = http.post("/v1/embeddings", json={"input": given})
        body = refused.json()
        assert body.keys() == {"message", "code", "type"}
        assert (refused.status_code, body["code"], body["type"]) == (status, status, kind)
    assert http.get("/v1/embeddings").json().keys() == {"message", "code", "type"}
    headers = http.post("/v1/embeddings", json={"input": ["w1", "w22"]}).headers
    assert (headers["x-compute-characters"], headers["x-compute-tokens"]) == ("5", "6")


def test_over_long_texts_are_cut(
    http: httpx.Client, start_preset: Callable[..., RunningGateway]
) -> None:
    """Without `truncate` over-long texts are cut; AUTO_TRUNCATE=false refuses, unless sent."""
    text = "w1 " * 62 + "w2 " * 62
    kept = unit_vectors("w1 " * 62)
    np.testing.assert_allclose(answer(http, "/embed", inputs=text), kept, atol=1e-6)
    with start_preset(
        "tei", max_model_len=64, environ={"AUTO_TRUNCATE": "false"}
    ).client() as strict:
        refused = strict.post("/embed", json={"inputs": text})
        assert (refused.status_code, refused.json()["error_type"]) == (422, "Validation")
        np.testing.assert_allclose(
            answer(strict, "/embed", inputs=text, truncate=True), kept, atol=1e-6
        )
        assert strict.get("/info").json()["auto_truncate"] is False


def test_limits(http: httpx.Client) -> None:
    """32 texts are served and 33 refused; a body may have 2 MB."""
    assert len(answer(http, "/embed", inputs=["w1"] * 32)) == 32
    refused = http.post("/embed", json={"inputs": ["w1"] * 33})
    assert (refused.status_code, refused.json()["error_type"]) == (422, "Validation")
    sentences = {"source_sentence": "w1", "sentences": ["w1"] * 32}
    assert len(answer(http, "/similarity", inputs=sentences)) == 32
    assert http.post("/embed", json={"inputs": "w1 " * 700_000}).status_code == 413


@pytest.mark.parametrize("path", ["/", "/health", "/ping"])
def test_probes(http: httpx.Client, start_preset: Callable[..., RunningGateway], path: str) -> None:
    """Probes are an empty 200, and 503 Unhealthy while the model loads."""
    healthy = http.get(path)
    assert (healthy.status_code, healthy.content) == (200, b"")
    gateway = start_preset("tei", wait=False, engine_args={"load_s": 3600})
    with gateway.client() as loading:
        response = loading.get(path)
    assert (response.status_code, response.json()["error_type"]) == (503, "Unhealthy")
    gateway.stop()


def test_info(http: httpx.Client) -> None:
    """`/info` has TEI's fields and tells its limits."""
    info = http.get("/info").json()
    expected = {
        "model_id": MODEL,
        "served_model_name": MODEL,
        "max_input_length": 64,
        "max_client_batch_size": 32,
        "max_concurrent_requests": 512,
        "auto_truncate": True,
    }
    assert {name: info[name] for name in expected} == expected
    assert http.get("/metrics").status_code == 200


def test_a_key_may_be_asked_for(start_preset: Callable[..., RunningGateway]) -> None:
    """With API_KEY a bearer token is needed; probes stay open."""
    with start_preset("tei", environ={"API_KEY": "k1"}).client() as http:
        assert (
            http.post(
                "/embed", json={"inputs": "w1"}, headers={"authorization": "Bearer k1"}
            ).status_code
            == 200
        )
        refused = http.post("/embed", json={"inputs": "w1"})
        assert (refused.status_code, refused.json().keys()) == (401, {"error", "error_type"})
        assert http.get("/").status_code == http.get("/health").status_code == 200


def test_old_variables(start_preset: Callable[..., RunningGateway]) -> None:
    """TEI's variables set what they did, and a wrong value ends the start with the variable's name."""
    environ = {
        "MODEL_ID": "intfloat/e5-small-v2",
        "REVISION": "main",
        "SERVED_MODEL_NAME": "e5",
        "DTYPE": "float32",
        "MAX_CLIENT_BATCH_SIZE": "2",
        "MAX_CONCURRENT_REQUESTS": "7",
        "MAX_BATCH_REQUESTS": "16",
        "PAYLOAD_LIMIT": "5000",
        "CORS_ALLOW_ORIGIN": "https://a.example",
        "JSON_OUTPUT": "true",
    }
    gateway = start_preset("tei", environ=environ)
    settings = gateway.settings
    assert (settings.model_name, settings.revision, settings.dtype) == (
        "intfloat/e5-small-v2",
        "main",
        "float32",
    )
    assert list(settings.aliases) == ["e5"]
    assert (settings.max_inputs, settings.max_concurrent_requests, settings.max_batch_size) == (
        2,
        7,
        16,
    )
    assert (settings.max_body_bytes, settings.cors_origins) == (5000, ("https://a.example",))
    assert settings.log_format == "json"
    gateway.stop()
    with pytest.raises(BadConfiguration, match="AUTO_TRUNCATE"):
        start_preset("tei", environ={"AUTO_TRUNCATE": "perhaps"})

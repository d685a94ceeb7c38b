"""The preset embed, request by request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.calls import raw_vector, unit_vectors

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.conftest import RunningGateway

MODEL = "BAAI/bge-m3"


PRESET = "embed"


@pytest.mark.parametrize("normalize", [None, True, False])
def test_embed(http: httpx.Client, normalize: bool | None) -> None:
    """Texts become vectors of length 1, or as the model made them."""
    fields: dict[str, Any] = {} if normalize is None else {"normalize": normalize}
    answer = http.post("/embed", json={"texts": ["w1", "w2 w3"], **fields})
    assert answer.status_code == 200
    body = answer.json()
    assert body.keys() == {"embeddings", "model", "dimension"}
    assert (body["model"], body["dimension"]) == (MODEL, 32)
    raw = np.stack([raw_vector("w1"), raw_vector("w2 w3")])
    expected = raw if normalize is False else unit_vectors("w1", "w2 w3")
    np.testing.assert_allclose(body["embeddings"], expected, atol=1e-6)


def test_a_models_own_scaling_stays(start_preset: Callable[..., RunningGateway]) -> None:
    """`normalize: false` is sentence-transformers' argument, beside which a Normalize works on."""
    body = {"texts": ["w1"], "normalize": False}
    with start_preset("embed", engine_args={"normalizes": True}).client() as http:
        (vector,) = http.post("/embed", json=body).json()["embeddings"]
        openai = {"model": MODEL, "input": "w1", "normalize": False}
        (item,) = http.post("/v1/embeddings", json=openai).json()["data"]
    np.testing.assert_allclose([vector], unit_vectors("w1"), atol=1e-6)
    np.testing.assert_allclose(item["embedding"], raw_vector("w1"), atol=1e-6)


def test_a_hundred_texts_and_no_more(http: httpx.Client) -> None:
    """100 texts are served, 101 are a 400 that says so."""
    assert len(http.post("/embed", json={"texts": ["w1"] * 100}).json()["embeddings"]) == 100
    answer = http.post("/embed", json={"texts": ["w1"] * 101})
    assert answer.status_code == 400
    assert "101" in answer.json()["detail"]
    assert "100" in answer.json()["detail"]


@pytest.mark.parametrize(
    "body", [{}, {"texts": []}, {"texts": "w1"}, {"texts": [1]}, {"texts": [None]}, {"text": "w1"}]
)
def test_wrong_requests(http: httpx.Client, body: dict[str, Any]) -> None:
    """A wrong request is a 400 with a detail that names the field."""
    answer = http.post("/embed", json=body)
    assert (answer.status_code, list(answer.json())) == (400, ["detail"])
    assert "texts" in answer.json()["detail"]


@pytest.mark.parametrize("flag", ["true", "True", 1, "1", "yes", True, None])
def test_normalize_may_be_a_word(http: httpx.Client, flag: object) -> None:
    """Values that pydantic took for true are taken."""
    answer = http.post("/embed", json={"texts": ["w1"], "normalize": flag})
    np.testing.assert_allclose(answer.json()["embeddings"], unit_vectors("w1"), atol=1e-6)
    assert http.post("/embed", json={"texts": ["w1"], "normalize": "maybe"}).status_code == 400


def test_an_empty_string_is_a_text(http: httpx.Client) -> None:
    """It has the vector of its special tokens."""
    answer = http.post("/embed", json={"texts": ["", "w1", " "]})
    expected = unit_vectors("", "w1", "")
    np.testing.assert_allclose(answer.json()["embeddings"], expected, atol=1e-6)


def test_a_models_own_normalize_stays(start_preset: Callable[..., RunningGateway]) -> None:
    """As in sentence-transformers, false leaves the model's last module in place."""
    gateway = start_preset("embed", engine_args={"normalizes": True})
    with gateway.client() as http:
        answer = http.post("/embed", json={"texts": ["w1"], "normalize": False})
        np.testing.assert_allclose(answer.json()["embeddings"], unit_vectors("w1"), atol=1e-6)
    gateway.stop()


def test_over_long_texts_are_cut(http: httpx.Client) -> None:
    """A text's end beyond the model's length is left out without a word."""
    answer = http.post("/embed", json={"texts": ["w1 " * 600]})
    np.testing.assert_allclose(answer.json()["embeddings"], unit_vectors("w1 " * 510), atol=1e-6)


def test_the_models_tokenizer_says_which_end_is_cut(
    start_preset: Callable[..., RunningGateway],
) -> None:
    """As in sentence-transformers, which has it cut."""
    gateway = start_preset("embed", engine_args={"cuts_left": True})
    with gateway.client() as http:
        answer = http.post("/embed", json={"texts": ["w1 " * 300 + "w2 " * 510]})
        expected = unit_vectors("w2 " * 510)
        np.testing.assert_allclose(answer.json()["embeddings"], expected, atol=1e-6)
    gateway.stop()


def test_health(http: httpx.Client) -> None:
    """Health tells the model, where it runs and the size of its vectors."""
    health = http.get("/health")
    expected = {"status": "healthy", "model": MODEL, "device": "cpu", "dimension": 32}
    assert (health.status_code, health.json()) == (200, expected)


def test_a_key_may_be_asked_for(start_preset: Callable[..., RunningGateway]) -> None:
    """With a key configured, `X-API-Key` has to hold it; health stays open."""
    gateway = start_preset("embed", environ={"API_KEY": "k1,k2", "DEVICE": "CPU"})
    body = {"texts": ["w1"]}
    with gateway.client() as http:
        assert http.post("/embed", json=body, headers={"x-api-key": "k1,k2"}).status_code == 200
        refused = http.post("/embed", json=body, headers={"x-api-key": "k1"})
        assert (refused.status_code, list(refused.json())) == (401, ["detail"])
        assert http.post("/embed", json=body).status_code == 401
        assert http.get("/health").status_code == 200
    assert gateway.settings.device == "cpu"
    gateway.stop()

"""vLLM's `/score`, and its `truncate_prompt_tokens` at the other operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.calls import error_of, unit_vectors
from tests.conftest import client_of
from tests.dialects.test_rerank import MODELS, score

if TYPE_CHECKING:
    import httpx


http = client_of(**MODELS)


def post(http: httpx.Client, path: str = "/score", **body: Any) -> dict[str, Any]:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def scores(http: httpx.Client, **body: Any) -> list[float]:
    data = post(http, **body)["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return [item["score"] for item in data]


def sigmoid(raw: float) -> float:
    return float(1 / (1 + np.exp(-raw)))


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(
    "names", [("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")]
)
def test_one_text_is_scored_with_many(
    http: httpx.Client, path: str, names: tuple[str, str]
) -> None:
    """The answer has vLLM's shape, with the probability of each pair in the order sent."""
    body = post(http, path, model="cross", **{names[0]: "w1", names[1]: ["w2", "w3 w4"]})
    assert body.keys() == {"id", "object", "created", "model", "data", "usage"}
    assert body["object"] == "list"
    assert body["model"] == "cross"
    expected = [sigmoid(score("w1", text)) for text in ("w2", "w3 w4")]
    assert body["data"] == [
        {"index": i, "object": "score", "score": pytest.approx(value, abs=1e-6)}
        for i, value in enumerate(expected)
    ]
    assert body["usage"] == {"prompt_tokens": 11, "total_tokens": 11}
    assert type(body["created"]) is int


def test_lists_of_one_length_go_in_pairs(http: httpx.Client) -> None:
    """Two lists are scored text by text; a single one of each is a pair."""
    got = scores(http, model="cross", text_1=["w1", "w2"], text_2=["w3", "w4"])
    assert got == pytest.approx([sigmoid(score("w1", "w3")), sigmoid(score("w2", "w4"))], abs=1e-6)
    raw = scores(http, model="cross", text_1="w1", text_2="w3", use_activation=False)
    assert raw == pytest.approx([score("w1", "w3")], abs=1e-6)


def test_an_embedding_model_gives_cosines(http: httpx.Client) -> None:
    """As in vLLM, the score of two vectors is their cosine; every text is embedded once."""
    got = scores(http, model="m3", text_1="w1", text_2=["w1", "w2"])
    first, second = unit_vectors("w1", "w2")
    assert got == pytest.approx([1.0, float(first @ second)], abs=1e-6)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text_1"),
        ({"text_1": "w1"}, "text_2"),
        ({"documents": ["w1"]}, "queries"),
        ({"text_1": ["w1", "w2"], "text_2": ["w1", "w2", "w3"]}, "text_1"),
        ({"text_1": "w1", "text_2": []}, "text_2"),
        ({"text_1": "w1", "text_2": "w2 " * 100}, "text_2[0]"),
        ({"text_1": "w1", "text_2": "w2", "truncate_prompt_tokens": 3}, "truncate_prompt_tokens"),
        ({"text_1": "w1", "text_2": "w2", "truncate_prompt_tokens": 65}, "truncate_prompt_tokens"),
    ],
)
def test_refusals_name_the_field(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    """Every wrong request says which field is at fault."""
    answer = http.post("/score", json={"model": "cross", **body})
    assert error_of(answer, 400)["param"] == param


@pytest.mark.parametrize(("tokens", "kept"), [(-1, 30), (64, 30), (11, 4), (12, 4), (13, 5)])
def test_pairs_are_cut_longest_first(http: httpx.Client, tokens: int, kept: int) -> None:
    """A token is taken from the longer text until both fit, as tokenizers do it."""
    query, document = "w1 " * 40, "w2 " * 50
    room = (64 if tokens == -1 else tokens) - 3
    expected = score("w1 " * kept, "w2 " * (room - kept))
    got = scores(
        http,
        model="cross",
        text_1=query,
        text_2=document,
        truncate_prompt_tokens=tokens,
        use_activation=False,
    )
    assert got == pytest.approx([expected], abs=1e-6)


def test_the_named_end_is_cut_off(http: httpx.Client) -> None:
    """`truncation_side` keeps the ends of both texts, at `/score` and `/v1/rerank`."""
    query, document = "w1 " * 30 + "w2 " * 30, "w3 " * 31 + "w4 " * 31
    cut = {"model": "cross", "truncate_prompt_tokens": -1, "truncation_side": "left"}
    expected = score("w2 " * 30, "w4 " * 31)
    got = scores(http, text_1=query, text_2=document, use_activation=False, **cut)
    assert got == pytest.approx([expected], abs=1e-6)
    body = {"query": query, "documents": [document], "raw_scores": True, **cut}
    (result,) = post(http, "/v1/rerank", **body)["results"]
    assert result["relevance_score"] == pytest.approx(expected, abs=1e-6)


def test_rerank_takes_it_too(http: httpx.Client) -> None:
    """At `/v1/rerank` a short document stays whole, and the query is cut."""
    body = {"model": "cross", "query": "w1 " * 40, "documents": ["w2"], "raw_scores": True}
    got = post(http, "/v1/rerank", truncate_prompt_tokens=10, **body)
    expected = score("w1 " * 6, "w2")
    assert got["results"][0]["relevance_score"] == pytest.approx(expected, abs=1e-6)


def test_a_limit_on_documents_holds_too(http: httpx.Client) -> None:
    """`max_tokens_per_doc` cuts a document before the pair is cut."""
    body = {"model": "cross", "query": "w1", "documents": ["w2 " * 30], "raw_scores": True}
    got = post(http, "/v1/rerank", truncate_prompt_tokens=20, max_tokens_per_doc=5, **body)
    expected = score("w1", "w2 " * 5)
    assert got["results"][0]["relevance_score"] == pytest.approx(expected, abs=1e-6)


def test_late_interaction_has_no_pairs_to_cut(http: httpx.Client) -> None:
    """BGE-M3 reads queries and documents one by one, so a limit on pairs is refused."""
    body = {"model": "m3", "query": "w1", "documents": ["w2"], "truncate_prompt_tokens": 20}
    error = error_of(http.post("/v1/rerank", json=body), 400)
    assert error["param"] == "truncate_prompt_tokens"
    assert http.post("/v1/rerank", json={**body, "truncate_prompt_tokens": -1}).status_code == 200


def embedded(http: httpx.Client, **more: Any) -> Any:
    answer = http.post("/v1/embeddings", json={"model": "m3", "input": "w1 " * 5 + "w2", **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"][0]["embedding"], answer.headers.get("x-truncated-inputs")


@pytest.mark.parametrize(
    ("more", "text", "cut"),
    [
        ({"truncate_prompt_tokens": 4}, "w1 w1", "0"),
        ({"truncate_prompt_tokens": 4, "truncate": "left"}, "w1 w2", "0"),
        ({"truncate_prompt_tokens": 4, "truncation_side": "left"}, "w1 w2", "0"),
        ({"truncation_side": "left"}, "w1 w1 w1 w1 w1 w2", None),
        ({"truncate_prompt_tokens": -1}, "w1 w1 w1 w1 w1 w2", None),
        ({"truncate_prompt_tokens": 64}, "w1 w1 w1 w1 w1 w2", None),
        ({"truncate_prompt_tokens": None}, "w1 w1 w1 w1 w1 w2", None),
    ],
)
def test_inputs_are_cut_to_so_many_tokens(
    http: httpx.Client, more: dict[str, Any], text: str, cut: str | None
) -> None:
    """`/v1/embeddings` reads the first tokens, special ones included, and says what it cut."""
    vector, header = embedded(http, **more)
    np.testing.assert_allclose(vector, unit_vectors(text)[0], atol=1e-6)
    assert header == cut


def test_over_long_inputs_are_cut_to_the_models_length(http: httpx.Client) -> None:
    """-1 is the model's length, which without the field is an error."""
    body = {"model": "m3", "input": "w1 " * 100}
    answer = http.post("/v1/embeddings", json={**body, "truncate_prompt_tokens": -1})
    assert answer.json()["usage"]["prompt_tokens"] == 64
    error_of(http.post("/v1/embeddings", json=body), 400)

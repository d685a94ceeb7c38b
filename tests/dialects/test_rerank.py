"""Reranking over HTTP, in every shape, with the fake engine's scores."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embedding_service.service import late_interaction, slices
from embedding_service.service.late_interaction import lexical, max_sim, weighted
from embedding_service.types import Embeddings, Output, RerankJob
from embedding_service.worker.fake import fake_tokenizer, fake_vectors
from tests.conftest import client_of
from tests.dialects.test_bge import expected_colbert, expected_sparse

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from embedding_service.types import Floats
    from tests.conftest import RunningGateway

DOCUMENTS = ["w2 w3", "w4", "w5 w6 w7", "w8"]
MODELS = {
    "engine": "fake",
    "port": 0,
    "gpu_memory_utilization": 0.3,
    "max_model_len": 64,
    "models": [
        {
            "model_name": "m3",
            "engine_args": {"outputs": ["dense", "sparse", "colbert", "hidden_states"]},
        },
        {"model_name": "cross", "engine_args": {"outputs": ["score"]}},
    ],
}


http = client_of(**MODELS)


def score(query: str, document: str) -> float:
    """Return the raw score that the fake engine means for a pair."""
    return float(fake_vectors(fake_tokenizer().encode(query, document).ids, Output.SCORE)[0, 0])


def post(http: httpx.Client, path: str = "/v1/rerank", **fields: Any) -> dict[str, Any]:
    """Post a reranking request and return its answer."""
    request = {"model": "cross", "query": "w1", "documents": DOCUMENTS, **fields}
    answer = http.post(
        path, json={name: value for name, value in request.items() if value is not None}
    )
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
def test_best_first_with_sigmoid_scores(http: httpx.Client, path: str) -> None:
    """Results are sorted by score, which is the logit's sigmoid unless asked otherwise."""
    body = post(http, path)
    logits = np.array([score("w1", document) for document in DOCUMENTS])
    assert [result["index"] for result in body["results"]] == np.argsort(-logits).tolist()
    shown = [result["relevance_score"] for result in body["results"]]
    np.testing.assert_allclose(shown, np.sort(1 / (1 + np.exp(-logits)))[::-1], rtol=1e-5)
    raw = [result["relevance_score"] for result in post(http, path, raw_scores=True)["results"]]
    np.testing.assert_allclose(raw, np.sort(logits)[::-1], rtol=1e-5)
    assert body["model"] == "cross"
    assert body["usage"]["total_tokens"] == sum(
        len(fake_tokenizer().encode("w1", d).ids) for d in DOCUMENTS
    )


def test_top_n(http: httpx.Client) -> None:
    """`top_n` keeps the best, and may be larger than the list."""
    best = post(http)["results"]
    assert post(http, top_n=2)["results"] == best[:2]
    assert post(http, top_n=99)["results"] == best
    assert post(http, top_n=0)["results"] == best  # vLLM's default


@pytest.mark.parametrize(("sent", "given"), [("true", True), ("false", False), (True, True)])
def test_return_documents_may_be_a_word(http: httpx.Client, sent: object, given: bool) -> None:
    """RAGFlow sends the word for true, and is understood."""
    results = post(http, return_documents=sent)["results"]
    assert all((result["document"] is not None) is given for result in results)


def test_documents_come_back_as_sent(http: httpx.Client) -> None:
    """`return_documents` returns texts as objects and objects whole; otherwise the field is null."""
    documents = ["w2", {"text": "w3", "id": 7, "meta": {"a": None}}]
    returned = {
        r["index"]: r["document"]
        for r in post(http, documents=documents, return_documents=True)["results"]
    }
    assert returned == {0: {"text": "w2"}, 1: documents[1]}
    assert all(result["document"] is None for result in post(http, documents=documents)["results"])


def test_version_2_takes_strings_only(http: httpx.Client) -> None:
    """Cohere's second version has no objects and sends no documents back."""
    assert all(
        "document" not in result
        for result in post(http, "/v2/rerank", return_documents=True)["results"]
    )
    answer = http.post(
        "/v2/rerank", json={"model": "cross", "query": "w1", "documents": [{"text": "w2"}]}
    )
    assert (answer.status_code, answer.json()) == (
        400,
        {"message": "documents must be a list of strings in version 2"},
    )


def test_pairs_keep_their_order(http: httpx.Client) -> None:
    """Pairs are scored one by one and answered in the order sent."""
    pairs = [
        {"query": "w1", "document": "w2"},
        {"query": "w9", "document": "w2 w3"},
        {"query": "w1", "document": "w4"},
    ]
    began = time.monotonic()
    body = post(http, query=None, documents=None, pairs=pairs, raw_scores=True)
    took_s = time.monotonic() - began
    assert [{"query": r["query"], "document": r["document"]} for r in body["results"]] == pairs
    assert [r["index"] for r in body["results"]] == [0, 1, 2]
    expected = [score(pair["query"], pair["document"]) for pair in pairs]
    np.testing.assert_allclose([r["relevance_score"] for r in body["results"]], expected, rtol=1e-5)
    assert 0 < body["processing_time"] <= took_s


def test_long_documents_are_cut_and_told(http: httpx.Client) -> None:
    """An over-long pair loses the end of its document, never of its query, and says so."""
    long = " ".join(f"w{i}" for i in range(100))
    kept = " ".join(f"w{i}" for i in range(64 - 4))
    answer = http.post(
        "/v1/rerank",
        json={"model": "cross", "query": "w1", "documents": ["w2", long], "raw_scores": True},
    )
    assert answer.headers["x-truncated-inputs"] == "1"
    scores = {r["index"]: r["relevance_score"] for r in answer.json()["results"]}
    assert scores[1] == pytest.approx(score("w1", kept), rel=1e-5)
    limited = post(http, documents=[long], max_tokens_per_doc=2, raw_scores=True)["results"][0]
    assert limited["relevance_score"] == pytest.approx(score("w1", "w0 w1"), rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"documents": []}, "documents"),
        ({"documents": None}, "documents"),
        ({"documents": ["w1", ""]}, "documents[1]"),
        ({"documents": ["w1", {"body": "w2"}]}, "documents[1]"),
        ({"query": None}, "query"),
        ({"query": "w1 " * 100}, "query"),
        ({"top_n": -1}, "top_n"),
        ({"return_documents": "yes"}, "return_documents"),
        ({"instruction": "find"}, "instruction"),
        ({"pairs": [{"query": "a", "document": "b"}]}, "pairs"),
        ({"weights": [1, 0, 0]}, "weights"),
        ({"model": "m3", "instruction": "find"}, "instruction"),
        ({"model": "nobody"}, "model"),
        ({"documents": ["w1"] * 2049}, "documents"),
    ],
)
def test_refusals_name_the_field(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    """Every wrong request says which field is at fault."""
    request = {"model": "cross", "query": "w1", "documents": DOCUMENTS, **fields}
    answer = http.post(
        "/v1/rerank", json={name: value for name, value in request.items() if value is not None}
    )
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("model", ["cross", "m3"])
@pytest.mark.parametrize("field", ["documents", "pairs"])
def test_failures_name_what_was_sent(http: httpx.Client, model: str, field: str) -> None:
    """A document that cannot be scored is named by its place, with late interaction too."""
    documents = ["w1", "fault-nan"]
    request: dict[str, Any] = {"query": "w7", "documents": documents}
    if field == "pairs":
        request = {
            "pairs": [{"query": f"w{8 + i}", "document": text} for i, text in enumerate(documents)]
        }
    answer = http.post("/v1/rerank", json={"model": model, **request})
    assert (answer.status_code, answer.json()["error"]["param"]) == (500, f"{field}[1]")


def test_queries_do_not_count_as_documents(start_gateway: Callable[..., RunningGateway]) -> None:
    """Late interaction scores as many documents as a request may have, each with its own query."""
    gateway = start_gateway(**MODELS, max_inputs=4)
    gateway.wait_loaded()
    with gateway.client() as client:
        for model in ("cross", "m3"):
            for documents, status in ((["w1"] * 4, 200), (["w1"] * 5, 400)):
                one = {"model": model, "query": "w2", "documents": documents}
                assert client.post("/v1/rerank", json=one).status_code == status
                pairs = [{"query": f"w{i}", "document": text} for i, text in enumerate(documents)]
                answer = client.post("/v1/rerank", json={"model": model, "pairs": pairs})
                assert answer.status_code == status
        assert answer.json()["error"]["message"].startswith("pairs has 5 items")
    gateway.stop()


def test_late_interaction_rests_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long documents are compared in blocks and with rests, and score as in one piece."""
    random = np.random.default_rng(7)
    rows = [random.normal(size=(count, 4)).astype(np.float32) for count in (600, 40, 1500)]
    found = Embeddings("a", [0] * 3, {Output.COLBERT: rows})
    job = RerankJob(None, [("q", "a"), ("q", "b")])
    steps = late_interaction.score_pairs(job, ["q"], found)
    monkeypatch.setattr(late_interaction, "_PRODUCTS_AT_ONCE", 1 << 16)
    advance, rests = slices.stepper(steps), 0
    while isinstance(step := advance(), bool):
        rests += 1
    expected = [(rows[2] @ rows[i].T).max(axis=1).mean() for i in (0, 1)]
    assert np.asarray(step) == pytest.approx(expected, rel=1e-5)
    assert rests == 5  # two within each document, one after the first


def best_matches(query: Floats, document: str) -> float:
    return slices.finish(max_sim(query, expected_colbert(document)))


def test_late_interaction_without_a_second_model(http: httpx.Client) -> None:
    """A model with ColBERT vectors scores by MaxSim, or by the weighted sum of similarities."""
    body = post(http, model="m3", query="w1 w2")
    scores = {r["index"]: r["relevance_score"] for r in body["results"]}
    query = expected_colbert("w1 w2")
    for i, document in enumerate(DOCUMENTS):
        assert scores[i] == pytest.approx(best_matches(query, document), rel=1e-5)
    weighted = post(http, model="m3", query="w1 w2", weights=[0.4, 0.2, 0.4])["results"]
    dense = {
        item["index"]: np.array(item["embedding"])
        for item in http.post(
            "/v1/embeddings", json={"model": "m3", "input": ["w1 w2", *DOCUMENTS]}
        ).json()["data"]
    }
    for result in weighted:
        i = result["index"]
        parts = (
            float(dense[0] @ dense[i + 1]),
            lexical(expected_sparse("w1 w2"), expected_sparse(DOCUMENTS[i])),
            best_matches(query, DOCUMENTS[i]),
        )
        assert result["relevance_score"] == pytest.approx(
            float(np.dot([0.4, 0.2, 0.4], parts)), rel=1e-4
        )


def test_a_reranker_does_not_embed(http: httpx.Client) -> None:
    """Asking the wrong model is a 400 that names the right address."""
    answer = http.post("/v1/embeddings", json={"model": "cross", "input": "w1"})
    assert answer.status_code == 400
    assert "/v1/rerank" in answer.json()["error"]["message"]


@pytest.mark.parametrize("size", [1.0, 1e308, 5e-324])
def test_weights_of_any_size_weigh(size: float) -> None:
    """However large or small weights are, it is their shares that count."""
    assert weighted((1.0, 0.0, 0.5), (size, size, 0.0)) == pytest.approx(0.5)

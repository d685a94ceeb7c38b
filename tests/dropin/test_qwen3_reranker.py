"""The preset qwen3-reranker, request by request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import httpx

    from tests.conftest import RunningGateway

PATHS = ["/v1/rerank", "/rerank"]
PAIRS = [{"query": "w1", "document": f"w{n}"} for n in (5, 3, 9, 3)]


PRESET = "qwen3-reranker"


def test_it_has_its_own_port(gateway: RunningGateway) -> None:
    """It is a second service beside the embeddings, with its own default instruction."""
    assert gateway.gateway.settings.preset == "qwen3-reranker"
    (model,) = gateway.gateway.service.models
    assert model.pairs is not None
    task = "Given a web search query, retrieve relevant passages that answer the query"
    assert model.pairs.default_instruction == task


@pytest.mark.parametrize("path", PATHS)
def test_pairs_in_the_order_sent(http: httpx.Client, path: str) -> None:
    """Every pair has a probability, in the order sent and with its texts."""
    body = http.post(path, json={"pairs": PAIRS}).json()
    assert body.keys() == {"results", "model", "processing_time"}
    assert [{name: r[name] for name in ("query", "document")} for r in body["results"]] == PAIRS
    assert [r["index"] for r in body["results"]] == [0, 1, 2, 3]
    assert all(0 < r["relevance_score"] < 1 for r in body["results"])
    assert all(r["score"] == r["relevance_score"] for r in body["results"])
    assert body["results"][1]["relevance_score"] == body["results"][3]["relevance_score"]
    assert body["model"] == "Qwen/Qwen3-Reranker-0.6B"


def test_an_instruction_changes_the_scores(http: httpx.Client) -> None:
    """The task is part of what the model reads; the default one is the documented one."""

    def scores(**fields: str) -> list[float]:
        body = http.post("/v1/rerank", json={"pairs": PAIRS, **fields}).json()
        return [result["relevance_score"] for result in body["results"]]

    task = "Given a web search query, retrieve relevant passages that answer the query"
    assert scores() == scores(instruction=task)
    assert scores() != scores(instruction="w7 w8")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [{"query": "w1"}],
        [{"query": "", "document": "w1"}],
        [{"query": "w1", "document": " "}],
        "w1",
        None,
    ],
)
def test_wrong_pairs(http: httpx.Client, path: str, pairs: object) -> None:
    """Wrong pairs are a 400 with a detail."""
    answer = http.post(path, json={"pairs": pairs})
    assert (answer.status_code, list(answer.json())) == (400, ["detail"])


def test_info_and_health(http: httpx.Client) -> None:
    """It has its own `/` and `/health`."""
    assert http.get("/").json()["status"] == "running"
    health = http.get("/health").json()
    assert (health["status"], health["model"], health["device"]) == (
        "healthy",
        "Qwen/Qwen3-Reranker-0.6B",
        "cpu",
    )

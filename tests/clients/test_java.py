"""The JDK's own `HttpClient`, as it is: it offers `Upgrade: h2c` with every plain request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from tests.calls import unit_vectors
from tests.clients.conftest import requires, run
from tests.dialects.test_rerank import score

if TYPE_CHECKING:
    from tests.clients.conftest import Address

pytestmark = [pytest.mark.server, requires("java")]

FOLDER = Path(__file__).parent / "java"
TEXTS = ["w1 w2", "w3"]
REQUESTS: list[tuple[str, Any]] = [
    ("/v1/embeddings", {"model": "m3", "input": TEXTS}),
    ("/v1/models", None),
    ("/v1/rerank", {"model": "cross", "query": "w1", "documents": TEXTS, "top_n": 1}),
    ("/embed", {"inputs": "w1 " * 60, "normalize": None}),
    ("/v1/embeddings", {"model": "m3", "input": ["w1 w2"] * 1000}),  # in several pieces
    ("/v1/embeddings", {"model": "m3", "input": []}),
]
CONCURRENT = 20


class Line(NamedTuple):
    """One answer, as the client saw it."""

    status: str
    version: str
    body: str


@pytest.fixture(scope="module")
def answers(pair: Address) -> list[Line]:
    """Return the answers to `REQUESTS` in turn, and to the first one many times at once."""
    arguments: list[str] = []
    for path, body in REQUESTS:
        arguments += [path, "" if body is None else json.dumps(body)]
    output = run("java", "Check.java", pair.base_url, pair.api_key, *arguments, folder=FOLDER)
    return [Line(*line.split("\t", 2)) for line in output.splitlines()]


def test_every_request_is_answered(answers: list[Line]) -> None:
    """GET and POST, small and large, one after another and at once: over HTTP/1.1, as JSON."""
    statuses = [line.status for line in answers]
    assert statuses == ["200"] * 5 + ["400"] + ["200"] * CONCURRENT
    assert {line.version for line in answers} == {"HTTP_1_1"}
    assert all(json.loads(line.body) for line in answers)


def test_the_numbers_arrive(answers: list[Line]) -> None:
    """Vectors and scores are those that other clients get."""
    for line in [answers[0], *answers[-CONCURRENT:]]:
        vectors = [item["embedding"] for item in json.loads(line.body)["data"]]
        np.testing.assert_allclose(vectors, unit_vectors(*TEXTS), atol=1e-6)
    assert [model["id"] for model in json.loads(answers[1].body)["data"]] == ["m3", "cross"]
    (best,) = json.loads(answers[2].body)["results"]
    logit = max(score("w1", text) for text in TEXTS)
    assert best["relevance_score"] == pytest.approx(1 / (1 + np.exp(-logit)))
    np.testing.assert_allclose(json.loads(answers[3].body), unit_vectors("w1 " * 60), atol=1e-6)
    assert len(json.loads(answers[4].body)["data"]) == 1000
    assert json.loads(answers[5].body)["error"]["param"] == "input"

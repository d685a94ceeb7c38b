"""SDKs for Node.js, unmodified: LangChain's, Vercel's AI SDK, LlamaIndex's and Cohere's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.calls import unit_vectors
from tests.clients.conftest import requires, run
from tests.dialects.test_rerank import score

if TYPE_CHECKING:
    from pathlib import Path

    from tests.clients.conftest import Address

pytestmark = [pytest.mark.server, requires("npm")]

TEXTS = ["w1 w2", "w3", "w4 w5"]
QUERY = "w1"


@pytest.fixture(scope="module")
def report(node_project: Path, pair: Address) -> dict[str, Any]:
    """Return what the SDKs made of the gateway's answers."""
    task = {"url": pair.base_url, "key": pair.api_key, "texts": TEXTS, "query": QUERY}
    task |= {"model": "m3", "reranker": "cross"}
    answer: dict[str, Any] = json.loads(
        run("node", "sdks.mjs", json.dumps(task), folder=node_project)
    )
    return answer


@pytest.mark.parametrize("sdk", ["langchain", "ai", "llamaindex", "cohere", "cohereV1"])
def test_texts_have_their_vectors(report: dict[str, Any], sdk: str) -> None:
    """Each SDK gives the texts' own vectors, in their order, across its batches."""
    documents = np.array(report[sdk]["documents"], np.float32)
    np.testing.assert_allclose(documents, unit_vectors(*TEXTS), atol=1e-6)
    if "query" in report[sdk]:
        query = np.array(report[sdk]["query"], np.float32)
        np.testing.assert_allclose(query, unit_vectors(QUERY)[0], atol=1e-6)


def test_usage_and_search(report: dict[str, Any]) -> None:
    """Vercel's SDK counts the tokens, and LlamaIndex' index finds a text by itself."""
    assert report["ai"]["tokens"] == 11
    assert report["llamaindex"]["found"] == [TEXTS[1]]


def test_cohere_ranks(report: dict[str, Any]) -> None:
    """Both versions of Cohere's client rank, and the errors have their classes."""
    chances = {i: 1 / (1 + np.exp(-score(QUERY, text))) for i, text in enumerate(TEXTS)}
    best = sorted(chances, key=lambda i: -chances[i])[:2]
    for sdk in ("cohere", "cohereV1"):
        results = report[sdk]["results"]
        assert [result[0] for result in results] == best
        assert [result[1] for result in results] == pytest.approx([chances[i] for i in best])
    assert [result[2] for result in report["cohereV1"]["results"]] == [TEXTS[i] for i in best]
    assert report["cohereV1"]["type"] == "embeddings_floats"
    assert len(report["cohere"]["int8"][0]) == 32
    assert report["cohere"]["failure"]["class"] == "NotFoundError"

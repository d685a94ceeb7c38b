"""The originals' own answers, recorded once: the text of a record, an index, a vector.

`recorded.json` has the documented records and 250 random ones with the text that matching-service
made of them, 30 texts' lexical weights with the indices that bge-inference-service hashed them to,
and 50 odd texts with the first numbers that sentence-transformers, and with it `embed`, gave for
all-MiniLM-L6-v2.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embedding_service.service.vectors import hash_indices
from embedding_service.types import Sparse
from tests.conftest import MINILM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from tests.conftest import RunningGateway

RECORDED = json.loads(Path(__file__).with_name("recorded.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def matching(start_preset: Callable[..., RunningGateway]) -> Iterator[httpx.Client]:
    """Return a client of matching-service without its rates."""
    rates = dict.fromkeys(("RATE_LIMIT", "RATE_LIMIT_BATCH"), "100000/minute")
    with start_preset("matching-service", environ=rates).client() as client:
        yield client


def test_records_have_the_originals_text(matching: httpx.Client) -> None:
    """All records become the very text that they became, and empty ones a 400."""
    for record, text in RECORDED["documented"] + RECORDED["records"]:
        answer = matching.post("/prepare-and-embed", json=record)
        got = answer.json().get("prepared_text", "") if answer.status_code == 200 else ""
        assert (got, answer.status_code) == (text, 200 if text else 400), record


def test_batches_have_the_same_vectors(matching: httpx.Client) -> None:
    """A batch embeds the same texts, and says of the same records that they are empty."""
    records = RECORDED["records"][:100]
    items = [{"entity_id": str(i), **record} for i, (record, _) in enumerate(records)]
    results = matching.post("/batch", json={"items": items}).json()["results"]
    for result, (record, text) in zip(results, records, strict=True):
        assert result["success"] is bool(text)
        single = matching.post("/prepare-and-embed", json=record).json()
        assert result["embedding"] == single.get("embedding", [])


@pytest.mark.parametrize("case", RECORDED["weights"])
def test_indices_are_hashed_alike(case: dict[str, Any]) -> None:
    """A collection that was filled in `hash` mode keeps matching, collisions summed."""
    tokens = sorted(case["tokens"].items(), key=lambda item: int(item[0]))
    indices = np.array([int(token) for token, _ in tokens], np.int64)
    values = np.array([weight for _, weight in tokens], np.float32)
    hashed = hash_indices(Sparse(indices, values), space=case["space"])
    assert hashed.indices.tolist() == [int(index) for index in case["hashed"]]
    np.testing.assert_allclose(hashed.values, list(case["hashed"].values()), rtol=1e-5)


@pytest.mark.engine
def test_texts_have_the_originals_vectors(start_gateway: Callable[..., RunningGateway]) -> None:
    """50 odd texts, with `normalize` and without: MiniLM's own Normalize stays in place."""
    gateway = start_gateway(**MINILM, preset="embed", default_truncate="right", max_inputs=100)
    texts = [case["text"] for case in RECORDED["embed"]]
    with gateway.client() as http:
        for normalize, name in ((True, "unit"), (False, "plain")):
            answer = http.post("/embed", json={"texts": texts, "normalize": normalize})
            vectors = np.array(answer.json()["embeddings"], np.float32)
            expected = np.array([case[name] for case in RECORDED["embed"]], np.float32)
            np.testing.assert_allclose(vectors[:, :6], expected, atol=2e-5)
            lengths = [case["length"] for case in RECORDED["embed"]]
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), lengths, atol=1e-5)
    gateway.stop()

"""The `openai` package for Node.js, unmodified, against the running server."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from tests.clients.conftest import MINILM_NAME, requires, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.clients.conftest import Address

pytestmark = [pytest.mark.engine, pytest.mark.server, requires("npm")]

MODEL = "text-embedding-3-small"
TEXTS = [
    "The capital of France is Paris.",
    "Die Hauptstadt von Deutschland ist Berlin.",
    "日本の首都は東京です。",
]


@pytest.fixture
def report(node_project: Path, served: Address, keyed: Address, full: Address) -> dict[str, Any]:
    """Return what the SDK made of every kind of request."""
    import bpe_openai

    ids = [bpe_openai.get_encoding("cl100k_base").encode(text) for text in TEXTS]
    addresses = {"served": served._asdict(), "keyed": keyed._asdict(), "full": full._asdict()}
    task = {**addresses, "texts": TEXTS, "ids": ids, "model": MODEL}
    answer: dict[str, Any] = json.loads(
        run("node", "check.mjs", json.dumps(task), folder=node_project)
    )
    return answer


def test_the_node_sdk_gets_what_it_asks_for(report: dict[str, Any], served: Address) -> None:
    """Vectors in every encoding, ids, `dimensions`, models, error classes arrive as OpenAI's do."""
    body = {"model": MODEL, "input": TEXTS}
    answer = httpx.post(f"{served.base_url}/embeddings", json=body).json()
    expected = np.array([item["embedding"] for item in answer["data"]], np.float32)

    for name in ("default", "float", "ids"):
        _check(report[name], expected)
    _check(report["string"], expected[:1])
    _check(report["idsOfOne"], expected[:1])
    assert np.abs(np.array(report["concurrent"]) - expected).max() <= 1e-5
    raw = [np.frombuffer(base64.b64decode(text), "<f4") for text in report["base64"]["vectors"]]
    assert np.abs(np.stack(raw) - expected).max() <= 1e-5
    assert report["default"]["model"] == MINILM_NAME
    assert report["default"]["usage"] == answer["usage"]
    assert report["default"]["requestId"]

    whole, cut = np.array(report["whole"]["vectors"][0]), np.array(report["cut"]["vectors"][0])
    assert cut == pytest.approx(whole[:8] / np.linalg.norm(whole[:8]), abs=1e-6)

    assert report["listed"] == [MINILM_NAME, MODEL, "text-embedding-ada-002"]
    assert report["retrieved"]["id"] == MINILM_NAME

    wrong, missing = (
        "invalid_request_error",
        {"class": "NotFoundError", "status": 404, "code": "model_not_found"},
    )
    _includes(
        report["badRequest"],
        {"class": "BadRequestError", "status": 400, "type": wrong, "param": "input"},
    )
    _includes(
        report["authentication"],
        {"class": "AuthenticationError", "status": 401, "code": "invalid_api_key"},
    )
    _includes(report["notFound"], missing)
    _includes(report["noSuchModel"], missing)
    _includes(
        report["rateLimit"], {"class": "RateLimitError", "status": 429, "code": "engine_overloaded"}
    )


def _check(answer: dict[str, Any], expected: np.ndarray) -> None:
    assert answer["isArray"]
    assert answer["indices"] == list(range(len(expected)))
    assert np.abs(np.array(answer["vectors"], np.float32) - expected).max() <= 1e-5


def _includes(failure: dict[str, Any], expected: dict[str, Any]) -> None:
    assert expected.items() <= failure.items()
    assert failure["requestId"]

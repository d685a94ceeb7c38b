"""LiteLLM, as it routes to OpenAI-compatible servers, vLLM and rerankers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.calls import unit_vectors
from tests.dialects.test_rerank import MODELS, score

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningGateway

pytestmark = pytest.mark.process
KEY = "ll-only-for-tests"
TEXTS = ["w1 w2", "w3", "w4 w5"]


@pytest.fixture(scope="module")
def found(start_gateway: Callable[..., RunningGateway]) -> dict[str, Any]:
    """Return what LiteLLM made of the answers of a gateway that wants a key."""
    gateway = start_gateway(**MODELS, api_keys=[KEY])
    gateway.wait_loaded()
    script = str(Path(__file__).with_name("litellm_check.py"))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, gateway.url, KEY, *TEXTS],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_embedding(found: dict[str, Any], provider: str) -> None:
    """Both providers give the vectors and the token counts."""
    vectors, tokens = found[provider]
    np.testing.assert_allclose(vectors, unit_vectors(*TEXTS), atol=1e-6)
    assert tokens == 11


@pytest.mark.parametrize("provider", ["hosted_vllm", "cohere", "jina_ai"])
def test_rerank(found: dict[str, Any], provider: str) -> None:
    """Reranking works through vLLM's, Cohere's and Jina's shapes."""
    logits = np.array([score("w1", text) for text in TEXTS])
    best = np.argsort(-logits)[:2].tolist()
    assert [index for index, _ in found[f"{provider}/rerank"]] == best
    expected = 1 / (1 + np.exp(-logits[best]))
    np.testing.assert_allclose(
        [value for _, value in found[f"{provider}/rerank"]], expected, rtol=1e-5
    )


def test_errors(found: dict[str, Any]) -> None:
    """An unknown model and a wrong key are LiteLLM's own exceptions."""
    assert found["nobody, right key"] == "NotFoundError"
    assert found["m3, wrong key"] == "AuthenticationError"

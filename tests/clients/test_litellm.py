"""LiteLLM, as it routes to OpenAI-compatible servers, vLLM and rerankers."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.api.calls import unit_vectors
from tests.api.test_rerank import MODELS, score

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks the network for prices
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # LiteLLM's own
    import litellm

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningGateway

pytestmark = pytest.mark.filterwarnings("ignore")  # LiteLLM's own

KEY = "ll-only-for-tests"
TEXTS = ["w1 w2", "w3", "w4 w5"]


@pytest.fixture(scope="module")
def gateway(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    """Return a gateway with an embedder and a cross-encoder that wants a key."""
    gateway = start_gateway(**MODELS, api_keys=[KEY])
    while gateway.gateway.service.models.find("cross")[0].facts is None:
        pass
    return gateway


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_embedding(gateway: RunningGateway, provider: str) -> None:
    """Both providers give the vectors and the token counts."""
    answer = litellm.embedding(
        model=f"{provider}/m3", input=TEXTS, api_base=f"{gateway.url}/v1", api_key=KEY, encoding_format="float"
    )
    np.testing.assert_allclose([item["embedding"] for item in answer.data], unit_vectors(*TEXTS), atol=1e-6)
    assert answer.usage.prompt_tokens == 11


@pytest.mark.parametrize(
    ("provider", "base"), [("hosted_vllm", ""), ("cohere", "/v2/rerank"), ("jina_ai", "/v1/rerank")]
)
def test_rerank(gateway: RunningGateway, provider: str, base: str) -> None:
    """Reranking works through vLLM's, Cohere's and Jina's shapes."""
    answer = litellm.rerank(
        model=f"{provider}/cross", query="w1", documents=TEXTS, top_n=2, api_base=gateway.url + base, api_key=KEY
    )
    logits = np.array([score("w1", text) for text in TEXTS])
    best = np.argsort(-logits)[:2].tolist()
    assert [result["index"] for result in answer.results] == best
    expected = 1 / (1 + np.exp(-logits[best]))
    np.testing.assert_allclose([result["relevance_score"] for result in answer.results], expected, rtol=1e-5)


def test_errors(gateway: RunningGateway) -> None:
    """An unknown model and a wrong key are LiteLLM's own exceptions."""
    base = {"input": TEXTS, "api_base": f"{gateway.url}/v1", "num_retries": 0}
    with pytest.raises(litellm.NotFoundError):
        litellm.embedding(model="openai/nobody", api_key=KEY, **base)
    with pytest.raises(litellm.AuthenticationError):
        litellm.embedding(model="openai/m3", api_key="wrong", **base)

"""The `cohere` package's `ClientV2`, unmodified but for its base URL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cohere
import httpx
import numpy as np
import pytest

from tests.calls import unit_vectors
from tests.dialects.test_rerank import MODELS, score

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningGateway

KEY = "co-only-for-tests"
TEXTS = ["w1 w2", "w3", "w4 w5"]


@pytest.fixture(scope="module")
def gateway(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    """Return a gateway with an embedder and a cross-encoder that wants a key."""
    gateway = start_gateway(**MODELS, api_keys=[KEY])
    gateway.wait_loaded()
    return gateway


@pytest.fixture(scope="module")
def sdk(gateway: RunningGateway) -> Iterator[cohere.ClientV2]:
    """Return Cohere's client of that gateway."""
    with httpx.Client() as http:  # given only so that it is closed
        yield cohere.ClientV2(api_key=KEY, base_url=gateway.url, httpx_client=http)


def test_embed_in_all_types(sdk: cohere.ClientV2) -> None:
    """Every embedding type arrives under its name, made of the same vectors."""
    kinds = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    answer = sdk.embed(model="m3", texts=TEXTS, input_type="search_document", embedding_types=kinds)
    units = unit_vectors(*TEXTS)
    np.testing.assert_allclose(answer.embeddings.float_, units, atol=1e-6)
    np.testing.assert_array_equal(answer.embeddings.int8, np.rint(units * np.float32(127)))
    np.testing.assert_array_equal(np.array(answer.embeddings.uint8) - 128, answer.embeddings.int8)
    np.testing.assert_array_equal(answer.embeddings.ubinary, np.packbits(units > 0, axis=-1))
    np.testing.assert_array_equal(
        np.array(answer.embeddings.ubinary) - 128, answer.embeddings.binary
    )
    assert len(answer.embeddings.base64) == 3
    assert answer.texts == TEXTS
    assert answer.meta.billed_units.input_tokens == 11


def test_large_requests_are_batched_by_the_sdk(sdk: cohere.ClientV2) -> None:
    """The SDK sends 96 texts at a time and joins the answers."""
    texts = [f"w{n}" for n in range(200)]
    answer = sdk.embed(
        model="m3", texts=texts, input_type="search_query", embedding_types=["float"]
    )
    np.testing.assert_allclose(answer.embeddings.float_, unit_vectors(*texts), atol=1e-6)


def test_rerank(sdk: cohere.ClientV2) -> None:
    """Documents come back best first."""
    answer = sdk.rerank(model="cross", query="w1", documents=TEXTS, top_n=2)
    logits = np.array([score("w1", text) for text in TEXTS])
    best = np.argsort(-logits)[:2].tolist()
    assert [result.index for result in answer.results] == best
    np.testing.assert_allclose(
        [r.relevance_score for r in answer.results], 1 / (1 + np.exp(-logits[best])), rtol=1e-5
    )


def test_errors_become_the_sdks_exceptions(gateway: RunningGateway, sdk: cohere.ClientV2) -> None:
    """The SDK tells a wrong key, a wrong model and a wrong request apart, with our message."""
    with pytest.raises(cohere.NotFoundError, match="nobody"):
        sdk.embed(model="nobody", texts=["w1"], input_type="clustering", embedding_types=["float"])
    with pytest.raises(cohere.BadRequestError, match="output_dimension must be 32"):
        sdk.embed(
            model="m3",
            texts=["w1"],
            input_type="clustering",
            embedding_types=["float"],
            output_dimension=7,
        )
    with httpx.Client() as http, pytest.raises(cohere.UnauthorizedError, match="Incorrect API key"):
        cohere.ClientV2(api_key="wrong", base_url=gateway.url, httpx_client=http).rerank(
            model="cross", query="w1", documents=["w2"]
        )

"""llama-index's packages for text-embeddings-inference and for OpenAI-like servers."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.calls import unit_vectors
from tests.dialects.test_rerank import MODELS, score

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningGateway

# These clients never close their sockets.
pytestmark = [
    pytest.mark.usefixtures("leaky"),
    pytest.mark.filterwarnings(
        "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
]

KEY = "li-only-for-tests"
TEXTS = ["w1 w2", "w3", "w4 w5"]


@pytest.fixture(scope="module", autouse=True)
def _quiet_imports() -> None:
    """Import what the tests use, without llama-index's own warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import llama_index.embeddings.openai_like
        import llama_index.embeddings.text_embeddings_inference
        import llama_index.postprocessor.tei_rerank  # noqa: F401


@pytest.fixture(scope="module")
def gateway(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    """Return a gateway with an embedder and a cross-encoder that wants a key."""
    gateway = start_gateway(**MODELS, api_keys=[KEY])
    gateway.wait_loaded()
    return gateway


async def test_tei_embeddings(gateway: RunningGateway) -> None:
    """Queries and texts are embedded, in batches and without waiting."""
    from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

    embedding = TextEmbeddingsInference(
        model_name="m3",
        base_url=gateway.url,
        auth_token=KEY,
        embed_batch_size=2,
        query_instruction="",
        text_instruction="",
    )
    np.testing.assert_allclose(
        embedding.get_text_embedding_batch(TEXTS), unit_vectors(*TEXTS), atol=1e-6
    )
    np.testing.assert_allclose(
        embedding.get_query_embedding("w3"), unit_vectors("w3")[0], atol=1e-6
    )
    embedding.auth_token = f"Bearer {KEY}"  # only its synchronous calls add the word themselves
    np.testing.assert_allclose(
        await embedding.aget_text_embedding("w3"), unit_vectors("w3")[0], atol=1e-6
    )


def test_tei_rerank(gateway: RunningGateway) -> None:
    """Every score arrives; this version of the package has them by position, not by `index`."""
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference as TeiRerank

    reranker = TeiRerank(
        model_name="cross", base_url=gateway.url, top_n=2, auth_token=f"Bearer {KEY}"
    )
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
    best = reranker.postprocess_nodes(nodes, query_bundle=QueryBundle("w1"))
    logits = np.array([score("w1", text) for text in TEXTS])
    np.testing.assert_allclose(
        [node.score for node in best], 1 / (1 + np.exp(-np.sort(logits)[::-1][:2])), rtol=1e-5
    )


def test_openai_like(gateway: RunningGateway) -> None:
    """The OpenAI-like embedding works with any model name, key and size of batch."""
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    embedding = OpenAILikeEmbedding(
        model_name="m3",
        api_base=f"{gateway.url}/v1",
        api_key=KEY,
        embed_batch_size=2,
        max_retries=0,
    )
    np.testing.assert_allclose(
        embedding.get_text_embedding_batch(TEXTS), unit_vectors(*TEXTS), atol=1e-6
    )
    np.testing.assert_allclose(
        embedding.get_query_embedding("w3"), unit_vectors("w3")[0], atol=1e-6
    )

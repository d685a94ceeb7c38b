"""Haystack's OpenAI embedders."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.calls import unit_vectors

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")
if TYPE_CHECKING:
    from types import ModuleType

    from tests.clients.conftest import Address

# These clients never close their sockets.
pytestmark = [
    pytest.mark.usefixtures("leaky"),
    pytest.mark.filterwarnings(
        "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
]

TEXTS = ["w1 w2", "w3", "w4 w5"]


@pytest.fixture(scope="module")
def haystack() -> ModuleType:
    """Return Haystack, which imports torch, with its embedders."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Haystack's own
        import haystack
        import haystack.components.embedders
        import haystack.utils
    return haystack


def test_documents(haystack: ModuleType, keyed: Address) -> None:
    """Documents get their vectors, batch by batch, and the model is told."""
    embedder = haystack.components.embedders.OpenAIDocumentEmbedder(
        model="fake",
        api_base_url=keyed.base_url,
        api_key=haystack.utils.Secret.from_token(keyed.api_key),
        batch_size=2,
    )
    done = embedder.run([haystack.Document(content=text) for text in TEXTS])
    np.testing.assert_allclose(
        [d.embedding for d in done["documents"]], unit_vectors(*TEXTS), atol=1e-6
    )
    assert done["meta"]["model"] == "fake"
    assert done["meta"]["usage"]["prompt_tokens"] == 11


@pytest.mark.parametrize("dimensions", [None, 8])
def test_a_query(haystack: ModuleType, keyed: Address, dimensions: int | None) -> None:
    """A query gets its vector, shorter if asked for."""
    embedder = haystack.components.embedders.OpenAITextEmbedder(
        model="fake",
        api_base_url=keyed.base_url,
        api_key=haystack.utils.Secret.from_token(keyed.api_key),
        dimensions=dimensions,
    )
    vector = np.array(embedder.run("w3")["embedding"])
    expected = unit_vectors("w3")[0][:dimensions]
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)

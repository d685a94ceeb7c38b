"""huggingface_hub's `InferenceClient`, as it talks to text-embeddings-inference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

if TYPE_CHECKING:
    from tests.clients.conftest import Address

pytestmark = pytest.mark.engine

TEXTS = ["A cat sits on the mat.", "Ein Hund schläft.", "Stock prices fell."]


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client send requests at all, which other tests forbid it."""
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)


@pytest.fixture(scope="module")
def client(served: Address) -> InferenceClient:
    """Return a client whose model is the address of the gateway."""
    return InferenceClient(model=served.base_url.removesuffix("/v1"))


def test_feature_extraction_is_what_openais_sdk_gets(
    client: InferenceClient, served: Address
) -> None:
    """A text and several give the vectors of `/v1/embeddings`."""
    with openai.OpenAI(**served._asdict()) as sdk:
        answer = sdk.embeddings.create(model="text-embedding-3-small", input=TEXTS)
    expected = np.array([item.embedding for item in answer.data], np.float32)
    np.testing.assert_allclose(client.feature_extraction(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(
        client.feature_extraction(TEXTS[0], normalize=True), expected[:1], atol=1e-5
    )


def test_options_arrive(client: InferenceClient) -> None:
    """`normalize` and truncation are understood as TEI does."""
    raw = np.asarray(client.feature_extraction(TEXTS[0], normalize=False))
    assert abs(np.linalg.norm(raw) - 1) > 1e-3
    cut = client.feature_extraction("cat " * 5000, truncate=True, truncation_direction="left")
    assert np.asarray(cut).shape == (1, 384)


def test_sentence_similarity(client: InferenceClient) -> None:
    """A sentence is nearest to itself, and nearer to its like."""
    scores = client.sentence_similarity(
        "A cat is on a mat.", other_sentences=["A cat is on a mat.", *TEXTS]
    )
    assert scores[0] == pytest.approx(1, abs=1e-4)
    assert scores[1] > scores[3]


def test_errors(client: InferenceClient) -> None:
    """A wrong request is the client's own exception, with our message."""
    with pytest.raises(HfHubHTTPError, match="prompt_name"):
        client.feature_extraction("cat", prompt_name="nobody")

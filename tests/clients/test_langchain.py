"""LangChain's `OpenAIEmbeddings`, with its defaults."""

from __future__ import annotations

import warnings
from importlib.metadata import distribution
from typing import TYPE_CHECKING

import numpy as np
import openai
import pytest

from tests import texts

if TYPE_CHECKING:
    from tests.clients.conftest import Address

pytestmark = pytest.mark.engine

MODEL = "text-embedding-3-small"


def test_defaults_give_the_vectors_of_plain_strings(
    served: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LangChain posts cl100k_base token ids, and gets what the strings themselves would get."""
    # tiktoken downloads its ranks unless it finds them in this folder, where llama-index-core ships
    # them.
    ranks = distribution("llama-index-core").locate_file("llama_index/core/_static/tiktoken_cache")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(ranks))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LangChain's own
        from langchain_openai import OpenAIEmbeddings

    chosen = texts.varied(240)[40::6]
    embeddings = OpenAIEmbeddings(model=MODEL, base_url=served.base_url, api_key=served.api_key)
    documents = np.array(embeddings.embed_documents(chosen), np.float32)
    query = np.array(embeddings.embed_query(chosen[7]), np.float32)
    with openai.OpenAI(**served._asdict()) as sdk:
        plain = np.array(
            [item.embedding for item in sdk.embeddings.create(model=MODEL, input=chosen).data],
            np.float32,
        )
    assert np.abs(documents - plain).max() <= 1e-5
    assert np.abs(query - plain[7]).max() <= 1e-5

"""qwen3-embedding, whose words for empty input differ, and its reranker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedding_service.dialects import openai
from embedding_service.dialects.errors import DETAIL
from embedding_service.dropin.preset import Preset
from embedding_service.errors import InvalidRequest

if TYPE_CHECKING:
    from embedding_service.dialects.dialect import Tree


def refuse_blank(tree: Tree) -> None:
    """Refuse empty input in qwen3-embedding's words. Raises `InvalidRequest`."""
    given = tree.get("input")
    if given == []:
        raise InvalidRequest("Input cannot be empty", param="input")
    texts = given if isinstance(given, list) else [given]
    for index, text in enumerate(texts):
        if isinstance(text, str) and not text.strip():
            raise InvalidRequest(f"Text at index {index} is empty", param=f"input[{index}]")


EMBEDDING = Preset(
    name="qwen3-embedding",
    errors=DETAIL,
    instead={"OpenAI": openai.dialect(check=refuse_blank)},
)
RERANKER = Preset(name="qwen3-reranker", errors=DETAIL)

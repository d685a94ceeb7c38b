"""qwen3-embedding, whose words for empty input differ, and its reranker."""

from __future__ import annotations

from embedding_service.dialects.errors import DETAIL
from embedding_service.dropin.blank import refuse_blank
from embedding_service.dropin.preset import Preset

_INPUT = refuse_blank(
    "input", message="Text at index {index} is empty", empty="Input cannot be empty"
)
_TEXTS = refuse_blank("query", "documents", "pairs", message="{place} is empty")
EMBEDDING = Preset(
    name="qwen3-embedding", errors=DETAIL, checks={"/v1/embeddings": _INPUT, "/embeddings": _INPUT}
)
RERANKER = Preset(
    name="qwen3-reranker", errors=DETAIL, checks={"/v1/rerank": _TEXTS, "/rerank": _TEXTS}
)

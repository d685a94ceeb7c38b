"""Our own architectures by name, and which checkpoints they serve; classes are in `models/`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

BGE_M3: Final = "EmbeddingServiceBgeM3Model"
SPLADE: Final = "EmbeddingServiceSpladeModel"
ROBERTA: Final = "EmbeddingServiceRobertaModel"
ROBERTA_PAIRS: Final = "EmbeddingServiceRobertaForSequenceClassification"
# Loaded in place of vLLM's own class, whatever the model's name.
_REPLACED: Final[Mapping[str, str]] = {
    "RobertaModel": ROBERTA,
    "RobertaForMaskedLM": ROBERTA,
    "XLMRobertaModel": ROBERTA,
    "RobertaForSequenceClassification": ROBERTA_PAIRS,
    "XLMRobertaForSequenceClassification": ROBERTA_PAIRS,
}


def replacement(config: Mapping[str, Any], family: Mapping[str, str]) -> str | None:
    """Return which of our architectures serves a checkpoint with this config.json, if any does.

    `family` says what the model's profile replaces beyond what is replaced for all. Models with
    rotary positions (jina-embeddings-v3 calls itself XLMRobertaModel) are left to vLLM.
    """
    if config.get("position_embedding_type", "absolute") != "absolute":
        return None
    replaced = {**_REPLACED, **family}
    ours = map(replaced.get, config.get("architectures") or ())
    return next(filter(None, ours), None)

"""Encoders whose checkpoint also has the head of another task, which is left out.

Loaded by vLLM only, through `plugin.register`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm.model_executor.models.transformers import TransformersEmbeddingModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

# By transformers' names, as they begin.
HEADS: Final = (
    "classifier.", "cls.", "discriminator_predictions.", "generator_lm_head.",
    "generator_predictions.", "lm_head.", "pre_classifier.", "qa_outputs.", "vocab_",
)  # fmt: skip


def without_heads(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of the encoder."""
    return (pair for pair in weights if not pair[0].startswith(HEADS))


class HeadlessWrapper(TransformersEmbeddingModel):
    """An encoder of transformers' own in vLLM's wrapper."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the encoder."""
        loaded: set[str] = super().load_weights(without_heads(weights))
        return loaded

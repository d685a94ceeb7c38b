"""RoBERTa and XLM-RoBERTa for vLLM, with positions numbered as transformers numbers them.

Loaded by vLLM only, through `plugin.register`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vllm.model_executor.models.bert import BertModel
from vllm.model_executor.models.roberta import (
    RobertaEmbedding,
    RobertaEmbeddingModel,
    RobertaForSequenceClassification,
)

from embedding_service.families.models.heads import without_heads

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor
    from vllm.config import VllmConfig


class PaddingAwareEmbedding(RobertaEmbedding):
    """Numbers positions as transformers does, where a `<pad>` written inside a text takes none.

    Without it such a text's results are far from the reference: 0.1 to 0.2 in the dense vector of
    a tiny model, 0.03 to 0.2 in a cross-encoder's score. Inside the compiled encoder, since what
    goes into that must lie at a fixed address.
    """

    padding_idx: int

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        """Return the input embeddings (tokens, hidden) of a batch of prompts laid end to end."""
        last = input_ids.shape[0] - 1
        rows = torch.arange(input_ids.shape[0], device=input_ids.device)
        # The first row of each token's prompt; unused rows hold anything.
        first = (rows - position_ids).clamp(0, last)
        is_token = (input_ids != self.padding_idx).long()
        seen = is_token.cumsum(0)
        position_ids = (seen - seen[first] + is_token[first]) * is_token - 1
        return super().forward(input_ids, position_ids, inputs_embeds)


class PaddingAwareModel(RobertaEmbeddingModel):
    """RoBERTa that embeds."""

    def _build_model(self, vllm_config: VllmConfig, prefix: str = "") -> BertModel:
        return BertModel(
            vllm_config=vllm_config, prefix=prefix, embedding_class=PaddingAwareEmbedding
        )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the encoder, and leave out the head of another task."""
        return super().load_weights(without_heads(weights))


class PaddingAwareReranker(RobertaForSequenceClassification):
    """RoBERTa that scores pairs."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        # 0.26 has no way to choose the class; this one adds no state of its own.
        self.roberta.embeddings.__class__ = PaddingAwareEmbedding

"""Encoders with rotary positions in transformers' own layout: jina-embeddings-v3, GTE's reranker.

Loaded by vLLM only, through `plugin.register`. vLLM's classes are the same encoders; they expect
the authors' configuration classes, for which it works out the rotary embedding.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vllm.model_executor.models.bert_with_rope import GteNewForSequenceClassification
from vllm.model_executor.models.roberta import RobertaEmbeddingModel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor
    from transformers import PreTrainedConfig
    from vllm.config import VllmConfig

# vLLM's own figure: kernels of compiled models take positions in eights.
_POSITIONS_MULTIPLE = 8


class JinaModel(RobertaEmbeddingModel):
    """RoBERTa with rotary positions, without the adapters of the authors' repository."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        _add_rotary(config)
        # Of adapters that are merged into the weights; here there are none.
        config.lora_alpha = config.lora_rank = 1
        super().__init__(vllm_config=vllm_config, prefix=prefix)


class GteReranker(GteNewForSequenceClassification):
    """GTE that scores pairs."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        _add_rotary(config)
        config.hidden_act = "geglu"  # vLLM's name of a gated GELU
        super().__init__(vllm_config=vllm_config, prefix=prefix)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load encoder and head; transformers calls the encoder `gte`, its authors `new`."""
        return super().load_weights(
            (re.sub(r"^gte\.", "new.", name), weight) for name, weight in weights
        )


def _add_rotary(config: PreTrainedConfig) -> None:
    positions = config.max_position_embeddings
    config.rotary_kwargs = {
        "head_size": config.hidden_size // config.num_attention_heads,
        "max_position": positions + -positions % _POSITIONS_MULTIPLE,
        "rope_parameters": {**config.rope_parameters, "partial_rotary_factor": 1.0},
    }

"""SPLADE for vLLM: one weight for each entry of the vocabulary, from BERT's masked-LM head.

Loaded by vLLM only, through `plugin.register`. Formula: https://arxiv.org/abs/2109.10086,
max over tokens of log(1 + relu(logit)), the special tokens included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from vllm.model_executor.layers.activation import get_act_fn
from vllm.model_executor.models.bert import BertEmbeddingModel, BertMLMHead
from vllm.model_executor.models.utils import AutoWeightsLoader

from embedding_service.families.models.sentence_pooler import WholePooler

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor
    from transformers import PreTrainedConfig
    from vllm.config import PoolerConfig
    from vllm.model_executor.layers.pooler import Pooler
    from vllm.v1.outputs import PoolerOutput
    from vllm.v1.pool.metadata import PoolingMetadata

_WORDS: Final = "embeddings.word_embeddings.weight"
_HEAD: Final = "cls.predictions."
# The weights of vLLM's head, as checkpoints call them.
_HEAD_NAMES: Final = {
    "dense.weight": f"{_HEAD}transform.dense.weight",
    "dense.bias": f"{_HEAD}transform.dense.bias",
    "layer_norm.weight": f"{_HEAD}transform.LayerNorm.weight",
    "layer_norm.bias": f"{_HEAD}transform.LayerNorm.bias",
    "decoder.weight": f"{_HEAD}decoder.weight",
    "decoder.bias": f"{_HEAD}decoder.bias",
}


class SpladePooler(WholePooler):
    """Gives each prompt its (vocabulary,) weights in fp32, all ≥ 0.

    `pooling` over the tokens is `max` or `sum`; with the `activation` `log1p_relu` the logarithm is
    taken twice. Names and formulas: sentence-transformers 6.2, `SpladePooling`.
    """

    def __init__(self, head: nn.Module, *, pooling: str = "max", activation: str = "relu") -> None:
        super().__init__()
        self.head = head
        self.sums = pooling == "sum"
        self.twice = activation == "log1p_relu"

    def forward(self, hidden_states: Tensor, pooling_metadata: PoolingMetadata) -> PoolerOutput:
        """Return each prompt's weights, from the hidden states (tokens, hidden) of the batch."""
        cursor = self.cursor(pooling_metadata)
        # One prompt at a time: its logits are (tokens, vocabulary), 60 MB for 512 tokens.
        prompts = torch.split(hidden_states, cursor.num_scheduled_tokens_cpu.tolist())
        if self.sums:
            return torch.stack([self._weights(self.head(prompt)).sum(dim=0) for prompt in prompts])
        # The largest logit has the largest weight, so only that needs the logarithm.
        return self._weights(torch.stack([self.head(prompt).amax(dim=0) for prompt in prompts]))

    def _weights(self, logits: Tensor) -> Tensor:
        weights = torch.log1p(torch.relu(logits.float()))
        return torch.log1p(weights) if self.twice else weights


def splade_pooler(head: nn.Module, config: PreTrainedConfig) -> SpladePooler:
    """Return the pooler that the checkpoint's files ask for; see `plan.py`."""
    pooling, activation = getattr(config, "splade", ("max", "relu"))
    return SpladePooler(head, pooling=pooling, activation=activation)


class SpladeModel(BertEmbeddingModel):
    """BERT with the masked-LM head that was trained to weigh the vocabulary."""

    def _build_pooler(self, pooler_config: PoolerConfig) -> Pooler:  # noqa: ARG002
        config = self.model.config
        head = BertMLMHead(config.hidden_size, config.vocab_size, config.layer_norm_eps)
        head.activation = get_act_fn(config.hidden_act)  # vLLM always takes gelu
        return splade_pooler(head, config)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load encoder and head; a decoder that the checkpoint lacks is the word embeddings."""
        found = {name.removeprefix("bert."): weight for name, weight in weights}
        found.setdefault(f"{_HEAD}decoder.weight", found[_WORDS])
        if f"{_HEAD}bias" in found:
            found.setdefault(f"{_HEAD}decoder.bias", found[f"{_HEAD}bias"])
        head = {f"pooler.head.{ours}": found[theirs] for ours, theirs in _HEAD_NAMES.items()}
        encoder = {f"model.{name}": found[name] for name in found if not name.startswith("cls.")}
        return AutoWeightsLoader(self).load_weights((encoder | head).items())

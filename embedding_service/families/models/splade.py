"""SPLADE for vLLM: one weight for each entry of the vocabulary, from BERT's masked-LM head.

Loaded by vLLM only, through `plugin.register`. Formula: https://arxiv.org/abs/2109.10086,
max over tokens of log(1 + relu(logit)), the special tokens included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from vllm.model_executor.layers.pooler import Pooler
from vllm.model_executor.models.bert import BertEmbeddingModel, BertMLMHead
from vllm.model_executor.models.utils import AutoWeightsLoader

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from vllm.config import PoolerConfig
    from vllm.tasks import PoolingTask
    from vllm.v1.outputs import PoolerOutput
    from vllm.v1.pool.metadata import PoolingMetadata

_HEAD: Final = "cls.predictions."
_WORDS: Final = "embeddings.word_embeddings.weight"
_HEAD_NAMES: Final = {
    "transform.dense": "dense",
    "transform.LayerNorm": "layer_norm",
    "decoder": "decoder",
}


class SpladePooler(Pooler):
    """Gives each prompt its (vocabulary,) weights in fp32, all ≥ 0."""

    def __init__(self, head: BertMLMHead) -> None:
        super().__init__()
        self.head = head

    def get_supported_tasks(self) -> AbstractSet[PoolingTask]:
        """Return the one task whose prompts reach this pooler."""
        return {"embed"}

    def forward(
        self, hidden_states: torch.Tensor, pooling_metadata: PoolingMetadata
    ) -> PoolerOutput:
        """Return each prompt's weights, from the hidden states (tokens, hidden) of the whole batch."""
        cursor = pooling_metadata.get_pooling_cursor()
        if cursor.is_partial_prefill():
            raise RuntimeError("SPLADE reads whole prompts: chunked prefill must be off")
        # One prompt at a time: its logits are (tokens, vocabulary), 60 MB for 512 tokens. The largest
        # logit has the largest weight, so only that needs the logarithm.
        prompts = torch.split(hidden_states, cursor.num_scheduled_tokens_cpu.tolist())
        highest = torch.stack([self.head(prompt).amax(dim=0) for prompt in prompts])
        return torch.log1p(torch.relu(highest.float()))


class SpladeModel(BertEmbeddingModel):
    """BERT with the masked-LM head that was trained to weigh the vocabulary."""

    def _build_pooler(self, pooler_config: PoolerConfig) -> Pooler:  # noqa: ARG002
        config = self.model.config
        return SpladePooler(
            BertMLMHead(config.hidden_size, config.vocab_size, config.layer_norm_eps)
        )

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load encoder and head; the decoder is the word embeddings where the checkpoint has none of its own."""
        by_name = {name.removeprefix("bert."): weight for name, weight in weights}
        by_name.setdefault(f"{_HEAD}decoder.weight", by_name[_WORDS])
        if f"{_HEAD}bias" in by_name:
            by_name.setdefault(f"{_HEAD}decoder.bias", by_name[f"{_HEAD}bias"])
        encoder = [
            (f"model.{name}", weight)
            for name, weight in by_name.items()
            if not name.startswith("cls.")
        ]
        return AutoWeightsLoader(self).load_weights([*encoder, *_head_weights(by_name)])


def _head_weights(by_name: dict[str, torch.Tensor]) -> Iterable[tuple[str, torch.Tensor]]:
    for theirs, ours in _HEAD_NAMES.items():
        for kind in ("weight", "bias"):
            yield f"pooler.head.{ours}.{kind}", by_name[f"{_HEAD}{theirs}.{kind}"]

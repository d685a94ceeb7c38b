"""BERT saved with its masked-LM head, and DistilBERT, which is BERT under other names.

Loaded by vLLM only, through `plugin.register`. `plan.py` gives DistilBERT's config.json the keys
that BERT's has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from vllm.model_executor.models.bert import BertEmbeddingModel

from embedding_service.families.models.heads import without_heads
from embedding_service.families.models.splade import SpladeModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

# From DistilBERT's names to BERT's, in the order in which they are looked for.
_BERT_NAMES: Final = {
    "transformer.layer.": "encoder.layer.",
    ".attention.q_lin.": ".attention.self.query.",
    ".attention.k_lin.": ".attention.self.key.",
    ".attention.v_lin.": ".attention.self.value.",
    ".attention.out_lin.": ".attention.output.dense.",
    ".sa_layer_norm.": ".attention.output.LayerNorm.",
    ".ffn.lin1.": ".intermediate.dense.",
    ".ffn.lin2.": ".output.dense.",
    ".output_layer_norm.": ".output.LayerNorm.",
    "vocab_transform.": "cls.predictions.transform.dense.",
    "vocab_layer_norm.": "cls.predictions.transform.LayerNorm.",
    "vocab_projector.": "cls.predictions.decoder.",
}


class HeadlessBertModel(BertEmbeddingModel):
    """BERT whose checkpoint has the head of another task."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the encoder, and leave out the head."""
        bare = ((name.removeprefix("bert."), weight) for name, weight in weights)
        kept = (pair for pair in bare if not pair[0].startswith("pooler."))
        return super().load_weights(without_heads(kept))


class DistilBertModel(HeadlessBertModel):
    """DistilBERT that embeds."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the encoder by BERT's names."""
        return super().load_weights(_as_bert(weights))


class DistilSpladeModel(SpladeModel):
    """DistilBERT that weighs the vocabulary."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load encoder and head by BERT's names."""
        return super().load_weights(_as_bert(weights))


def _as_bert(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield DistilBERT's weights as BERT's; of its token types it has one, which adds nothing."""
    for name, weight in weights:
        bert = name.removeprefix("distilbert.")
        for theirs, berts in _BERT_NAMES.items():
            bert = bert.replace(theirs, berts)
        yield bert, weight
        if bert == "embeddings.word_embeddings.weight":
            yield "embeddings.token_type_embeddings.weight", torch.zeros_like(weight[:1])

"""Attention of encoders on CPUs through PyTorch's flash kernel.

vLLM's own kernel is made for decoding: it copies keys and values into a paged cache first, which
an encoder never reads again. It is left with decoders, ALiBi, sliding windows, soft caps, and
machines where it has something better (AMX, zentorch). Loaded by vLLM only, through
`families/models/plugin.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

from torch.nn.functional import scaled_dot_product_attention
from vllm import _custom_ops as ops
from vllm.config import get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from vllm.v1.attention.backend import AttentionLayer, CommonAttentionMetadata

    Run = tuple[int, int, int]
    Metadata: TypeAlias = "CPUAttentionMetadata | EncoderMetadata"
    Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], object]


@dataclass
class EncoderMetadata:
    """Runs of neighbouring texts of one length: (first token, texts, tokens of each)."""

    runs: list[Run]


class Implementation(CPUAttentionBackendImpl):
    """One layer's attention."""

    @property
    def is_plain_encoder(self) -> bool:
        """Every token sees all of its text, and nothing else bears on it."""
        return (
            self.attn_type == AttentionType.ENCODER_ONLY
            and self.sliding_window == -1
            and self.alibi_slopes is None
            and not self.logits_soft_cap
            and self.sinks is None
            and self.kv_cache_dtype == "auto"
            and not getattr(self, "use_zentorch_sdpa", False)  # 0.26 does not know it
        )

    def forward(
        self,
        layer: AttentionLayer,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Metadata | None,
        output: Tensor,
        *more: Any,
        **options: Any,
    ) -> Tensor:
        """Do what vLLM asks of a backend, here or in its own way."""
        if not isinstance(attn_metadata, EncoderMetadata):
            return super().forward(
                layer, query, key, value, kv_cache, attn_metadata, output, *more, **options
            )
        return self._by_runs(attn_metadata, query, key, value, output)

    def of_step(self, layer: AttentionLayer, metadata: Metadata) -> Attend:
        """Return a function of query, key and value that fills the output, its fourth argument.

        All four are (tokens, heads, head size). The layers of a plain encoder can share it, since
        they differ in nothing that it looks up: vLLM does so in each layer, in 26 us of its 400.
        """
        if isinstance(metadata, EncoderMetadata):
            return partial(self._by_runs, metadata)
        return _through_cache(self, layer, metadata)

    def _by_runs(
        self, metadata: EncoderMetadata, query: Tensor, key: Tensor, value: Tensor, output: Tensor
    ) -> Tensor:
        grouped = self.num_kv_heads != self.num_heads
        for start, texts, length in metadata.runs:
            q, k, v, found = (
                tensor[start : start + texts * length].unflatten(0, (texts, length)).transpose(1, 2)
                for tensor in (query, key, value, output)
            )
            found.copy_(scaled_dot_product_attention(q, k, v, scale=self.scale, enable_gqa=grouped))
        return output


def _through_cache(
    impl: Implementation, layer: AttentionLayer, metadata: CPUAttentionMetadata
) -> Attend:
    """Return vLLM's kernels, as its own `forward` calls them for a plain encoder."""
    cache = metadata.encoder_cache
    keys, values = cache.view(*cache.shape[:2], -1, impl.head_size).chunk(2, dim=2)
    write = partial(
        ops.cpu_attn_reshape_and_cache,
        slot_mapping=metadata.slot_mapping,
        key_cache=keys,
        value_cache=values,
        isa=layer.isa,
    )
    read = partial(
        ops.cpu_attention_with_kv_cache,
        key_cache=keys,
        value_cache=values,
        query_start_loc=metadata.query_start_loc,
        seq_lens=metadata.seq_lens,
        scale=impl.scale,
        causal=metadata.causal,
        alibi_slopes=None,
        sliding_window=-1,
        block_table=metadata.block_table,
        softcap=0.0,
        scheduler_metadata=metadata.scheduler_metadata,
        s_aux=None,
    )

    def attend(query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
        write(key, value)
        read(query, output=output)

    return attend


class MetadataBuilder(CPUAttentionMetadataBuilder):
    """Prepares a step."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        layers = get_layers_from_vllm_config(self.vllm_config, Attention, self.layer_names).values()
        kinds = [layer.impl for layer in layers]
        self._plain = self.isa != "amx" and all(
            isinstance(i, Implementation) and i.is_plain_encoder for i in kinds
        )

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        *more: Any,
        **options: Any,
    ) -> Metadata:
        """Return what `forward` of this step's layers needs."""
        if not self._plain:
            return super().build(common_prefix_len, common_attn_metadata, *more, **options)
        return EncoderMetadata(_runs(common_attn_metadata.query_start_loc.tolist()))


def _runs(bounds: list[int]) -> list[Run]:
    runs, start = [], 0
    for length, run in groupby(end - begin for begin, end in pairwise(bounds)):
        texts = len(list(run))
        runs.append((start, texts, length))
        start += texts * length
    return runs


class Backend(CPUAttentionBackend):
    """vLLM's backend for CPUs, with ours for encoders."""

    @staticmethod
    def get_impl_cls() -> type[Implementation]:
        """Return the class of which each layer gets an object."""
        return Implementation

    @staticmethod
    def get_builder_cls() -> type[MetadataBuilder]:
        """Return the class of which each group of layers gets an object."""
        return MetadataBuilder

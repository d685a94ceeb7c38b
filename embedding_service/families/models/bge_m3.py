"""BGE-M3 for vLLM: dense, sparse and ColBERT vectors of a text from one forward pass.

Loaded by vLLM only, through `plugin.register`; written against the pooler interface that
0.26 and 0.32 share. Formulas: https://arxiv.org/abs/2402.03216 and FlagEmbedding's `M3Embedder`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from embedding_service.families.bge_m3 import HEADLESS, PARTS, head_files
from embedding_service.families.models.roberta import PaddingAwareModel
from embedding_service.families.models.sentence_pooler import WholePooler
from embedding_service.types import Output

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from torch import Tensor
    from vllm.config import PoolerConfig, VllmConfig
    from vllm.model_executor.layers.pooler import Pooler
    from vllm.pooling_params import PoolingParams
    from vllm.v1.outputs import PoolerOutput
    from vllm.v1.pool.metadata import PoolingMetadata


class BgeM3Pooler(WholePooler):
    """Gives each prompt one flat fp32 tensor: those of `PARTS` that it asked for, in that order.

    A prompt that names nothing gets all there is, so vLLM's memory profile sees the largest
    answer. One that names a head the checkpoint lacks goes without: an exception here would end
    the engine, while `bge_m3.unpack` refuses that answer alone.
    """

    def __init__(self, *, hidden: int, heads: Collection[Output], dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.available = HEADLESS.union(heads)
        widths = {head: PARTS[head].width or hidden for head in heads}
        layers = {head: nn.Linear(hidden, width, dtype=dtype) for head, width in widths.items()}
        self.heads = nn.ModuleDict(layers)

    def forward(self, hidden_states: Tensor, pooling_metadata: PoolingMetadata) -> PoolerOutput:
        """Return each prompt's vectors, from the hidden states (tokens, hidden) of the batch."""
        cursor = self.cursor(pooling_metadata)
        wanted = [self._wanted(params) for params in pooling_metadata.pooling_params]
        if all(outputs == {Output.DENSE} for outputs in wanted):
            # One tensor is one copy to the host, not one for each prompt.
            return hidden_states[cursor.first_token_indices_gpu].float()
        prompts = torch.split(hidden_states, cursor.num_scheduled_tokens_cpu.tolist())
        flat: list[list[Tensor]] = [[] for _ in prompts]
        for output in PARTS:
            asking = [row for row, outputs in enumerate(wanted) if output in outputs]
            vectors = self._vectors(output, [prompts[row] for row in asking])
            for row, part in zip(asking, vectors, strict=True):
                flat[row].append(part.flatten())
        return [torch.cat(parts) if parts else hidden_states.new_empty(0) for parts in flat]

    def _wanted(self, params: PoolingParams) -> frozenset[Output]:
        return self.available.intersection(
            (params.extra_kwargs or {}).get("outputs", self.available)
        )

    def _vectors(self, output: Output, prompts: list[Tensor]) -> Sequence[Tensor]:
        """Return one part of the prompts that want it; a head is one matrix product for all."""
        if not prompts:
            return ()
        part = PARTS[output]
        tokens = [prompt[part.tokens] for prompt in prompts]
        vectors = torch.cat(tokens)
        if part.head is not None:
            vectors = self.heads[output](vectors.to(self.dtype)).float()
            vectors = functional.normalize(vectors, dim=-1) if part.unit else torch.relu(vectors)
        return torch.split(vectors.float(), [len(rows) for rows in tokens])


class BgeM3Model(PaddingAwareModel):
    """XLM-RoBERTa with BGE-M3's heads; a head that the checkpoint lacks is not built."""

    pooler: BgeM3Pooler

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        model = vllm_config.model_config
        self.hidden: int = model.hf_config.hidden_size
        self.head_dtype: torch.dtype = model.head_dtype
        self.head_files = head_files(
            model.model, revision=model.revision, cache_dir=vllm_config.load_config.download_dir
        )
        super().__init__(vllm_config=vllm_config, prefix=prefix)

    def _build_pooler(self, pooler_config: PoolerConfig) -> Pooler:  # noqa: ARG002
        return BgeM3Pooler(hidden=self.hidden, heads=self.head_files, dtype=self.head_dtype)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the encoder, in any of vLLM's formats, and the heads from their own files."""
        loaded: set[str] = super().load_weights(weights)
        for head, path in self.head_files.items():
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.pooler.heads[head].load_state_dict(state)
            loaded |= {f"pooler.heads.{head}.{name}" for name in state}
        return loaded

"""Steps of an encoder on CPUs: the model is called with the tensors of a step's inputs.

vLLM's runner keeps its requests in tables between the steps, with copies for a device. It took 0.5
to 1 ms of a lone text's 5 to 7 ms (docs/notebook/experiments.md).
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.pool.metadata import PoolingMetadata, PoolingStates

from embedding_service.worker.steps import BOUNDARY, AllThatWaits, Input

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt
    from torch import Tensor
    from vllm import PoolingParams
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from embedding_service.types import TokenIds
    from embedding_service.worker.steps import Step

    Integers: TypeAlias = npt.NDArray[np.int32]


class Direct(AllThatWaits):
    """The model itself is called, on this thread, with what the runner would hand to it."""

    def __init__(self, engine: EngineCore, runner: GPUModelRunner) -> None:
        super().__init__(engine)
        self._config = engine.vllm_config
        self._model: Any = runner.model
        self._attention = list(chain.from_iterable(runner.attn_groups))

    def add(self, key: str, ids: TokenIds, params: PoolingParams) -> None:
        """Queue an input, with what the pooler wants to know of it."""
        self._model.pooler.get_pooling_updates(params.task).apply(params)
        super().add(key, ids, params)

    @torch.inference_mode()
    def launch(self) -> Step:
        """Compute a step."""
        taken = self._take()
        results = self._compute(taken) if taken else ()
        return partial(zip, [each.key for each in taken], results, strict=True)

    def _compute(self, inputs: list[Input]) -> Iterable[Tensor]:
        """Return the pooler's result for each input."""
        lengths = np.array([len(each.ids) for each in inputs], np.int32)
        bounds = np.zeros(len(inputs) + 1, np.int32)
        np.cumsum(lengths, out=bounds[1:])
        positions = torch.from_numpy(np.arange(bounds[-1]) - bounds[:-1].repeat(lengths))
        ids = torch.from_numpy(np.concatenate([each.ids for each in inputs]))
        more = _token_types(inputs, positions, lengths)
        attention = self._by_layer(_attention(bounds, lengths, positions))
        with set_forward_context(attention, self._config, num_tokens=len(ids)):
            hidden = self._model(ids, positions, **more)
        results: Iterable[Tensor] = self._model.pooler(hidden, _pooling(inputs, lengths))
        return results

    def _by_layer(self, attention: CommonAttentionMetadata) -> dict[str, AttentionMetadata]:
        found: dict[str, AttentionMetadata] = {}
        for group in self._attention:
            found |= dict.fromkeys(group.layer_names, group.build_metadata(attention))
        return found


def _attention(bounds: Integers, lengths: Integers, positions: Tensor) -> CommonAttentionMetadata:
    """Say which tokens belong together; the tables of a cache, which encoders lack, are empty."""
    starts, longest = torch.from_numpy(bounds), int(lengths.max())
    return CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=torch.from_numpy(lengths),
        num_reqs=len(lengths),
        num_actual_tokens=len(positions),
        max_query_len=longest,
        max_seq_len=longest,
        block_table_tensor=torch.zeros((len(lengths), 1), dtype=torch.int32),
        slot_mapping=torch.zeros(len(positions), dtype=torch.int64),
        positions=positions,
    )


def _token_types(inputs: list[Input], positions: Tensor, lengths: Integers) -> dict[str, Tensor]:
    """Number the tokens of a pair's second text 1, if an input has a boundary."""
    given = [(each.params.extra_kwargs or {}).get(BOUNDARY) for each in inputs]
    if not any(boundary is not None for boundary in given):
        return {}
    bounds = [len(each.ids) if at is None else at for each, at in zip(inputs, given, strict=True)]
    types = positions >= torch.from_numpy(np.repeat(bounds, lengths))
    return {"token_type_ids": types.int()}


def _pooling(inputs: list[Input], lengths: Integers) -> PoolingMetadata:
    params, sizes, ids = [each.params for each in inputs], torch.from_numpy(lengths), None
    if any(each.requires_token_ids for each in params):
        ids = pad_sequence([torch.from_numpy(each.ids).long() for each in inputs], batch_first=True)
    states = [PoolingStates() for _ in inputs]
    metadata = PoolingMetadata(sizes, None, ids, params, states)
    metadata.build_pooling_cursor(lengths, sizes, torch.device("cpu"))
    return metadata

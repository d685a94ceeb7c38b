"""The steps in which vLLM computes inputs, in one of three ways, each shorter than the one before.

vLLM's scheduler shares out the blocks of a cache and follows each request from step to step. An
encoder has no cache and is done after one step, and the worker's loop gives it no more than a step
holds, so that nothing is left to decide: the scheduler took more than half of the 67 us a text that
a small model on a GPU waits for Python (docs/performance.md).

vLLM's runner keeps its requests in tables, with copies for a device, between the steps. On CPUs an
encoder gets the tensors of one step, made from its inputs, and the runner is left out as well: it
took 1 ms of a lone text's 6 ms.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from vllm.forward_context import set_forward_context
from vllm.platforms import current_platform
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.pool.metadata import PoolingMetadata, PoolingStates
from vllm.v1.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future

    import numpy.typing as npt
    from torch import Tensor
    from vllm import PoolingParams
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from embedding_service.types import TokenIds

    Finished: TypeAlias = Iterable[tuple[str, Tensor]]
    Step: TypeAlias = Callable[[], Finished]
    Integers: TypeAlias = npt.NDArray[np.int32]

# The key under which vLLM's runner looks for the number of tokens of a pair's first text.
BOUNDARY = "compressed_token_type_ids"


class Steps(Protocol):
    """The way in which a pooling model is fed and computed."""

    def add(self, key: str, ids: TokenIds, params: PoolingParams) -> None:
        """Queue an input. Raises `ValueError` with vLLM's reason."""

    def abort(self, keys: list[str]) -> None:
        """Forget inputs, whether or not a step has begun with them."""

    def launch(self) -> Step:
        """Start computing a step; called, it waits for the step and returns what it finished."""


def steps(engine: EngineCore) -> Steps:
    """Return the shortest way that a model allows."""
    if engine.scheduler.kv_cache_config.kv_cache_groups:
        return _ByScheduler(engine)
    if current_platform.is_cpu() and engine.vllm_config.parallel_config.world_size == 1:
        (runner,) = engine.collective_rpc(_runner)
        if _takes_token_ids_alone(runner):
            return _Direct(engine, runner)
    return _ByRunner(engine)


class _ByScheduler:
    """vLLM's scheduler decides, and its runner computes."""

    def __init__(self, engine: EngineCore) -> None:
        self._engine = engine

    def add(self, key: str, ids: TokenIds, params: PoolingParams) -> None:
        hasher = self._engine.request_block_hasher
        self._engine.add_request(Request(key, ids.tolist(), None, params, block_hasher=hasher))

    def abort(self, keys: list[str]) -> None:
        self._engine.abort_requests(keys)

    def launch(self) -> Step:
        step = self._engine.scheduler.schedule()
        computed = self._engine.model_executor.execute_model(step, non_block=True)
        return partial(self._finish, step, computed)

    def _finish(self, step: SchedulerOutput, computed: Future[ModelRunnerOutput]) -> Finished:
        outputs = self._engine.scheduler.update_from_output(step, computed.result())
        results = outputs[0].outputs if outputs else ()
        return [(result.request_id, result.pooling_output) for result in results]


class _Input(NamedTuple):
    """An input of an encoder."""

    key: str
    ids: TokenIds
    params: PoolingParams


class _AllThatWaits:
    """All inputs that wait make a step, as far as it holds them."""

    def __init__(self, engine: EngineCore) -> None:
        batch = engine.vllm_config.scheduler_config
        self._texts, self._tokens = batch.max_num_seqs, batch.max_num_batched_tokens
        self._waiting: list[_Input] = []

    def add(self, key: str, ids: TokenIds, params: PoolingParams) -> None:
        self._waiting.append(_Input(key, ids, params))

    def abort(self, keys: list[str]) -> None:
        gone = set(keys)
        self._waiting = [waiting for waiting in self._waiting if waiting.key not in gone]

    def _take(self) -> list[_Input]:
        taken: list[_Input] = []
        room = self._tokens
        for waiting in self._waiting[: self._texts]:
            room -= len(waiting.ids)
            if room < 0:
                break
            taken.append(waiting)
        del self._waiting[: len(taken)]
        return taken


class _ByRunner(_AllThatWaits):
    """vLLM's runner computes, and is told what its scheduler would tell it."""

    def __init__(self, engine: EngineCore) -> None:
        super().__init__(engine)
        self._executor = engine.model_executor
        self._before: set[str] = set()  # of the step before, which the runner still keeps

    def launch(self) -> Step:
        taken = self._take()
        step = SchedulerOutput.make_empty()
        step.scheduled_new_reqs = list(map(_request, taken))
        step.num_scheduled_tokens = {each.key: len(each.ids) for each in taken}
        step.total_num_scheduled_tokens = sum(step.num_scheduled_tokens.values())
        step.finished_req_ids, self._before = self._before, set(step.num_scheduled_tokens)
        return partial(_read, self._executor.execute_model(step, non_block=True))


def _request(each: _Input) -> NewRequestData:
    tokens = each.ids.tolist()
    request = NewRequestData(each.key, tokens, [], None, each.params, (), 0, None)
    request.prefill_token_ids = tokens  # for vLLM's second runner, 0.32's usual one on GPUs
    return request


def _read(computed: Future[ModelRunnerOutput]) -> Finished:
    output = computed.result()
    return zip(output.req_ids, output.pooler_output or (), strict=True)


class _Direct(_AllThatWaits):
    """The model itself is called, on this thread, with what the runner would hand to it."""

    def __init__(self, engine: EngineCore, runner: GPUModelRunner) -> None:
        super().__init__(engine)
        self._config = engine.vllm_config
        self._model: Any = runner.model
        self._attention = list(chain.from_iterable(runner.attn_groups))

    def add(self, key: str, ids: TokenIds, params: PoolingParams) -> None:
        self._model.pooler.get_pooling_updates(params.task).apply(params)
        super().add(key, ids, params)

    @torch.inference_mode()
    def launch(self) -> Step:
        taken = self._take()
        results = self._compute(taken) if taken else ()
        return partial(zip, [each.key for each in taken], results, strict=True)

    def _compute(self, inputs: list[_Input]) -> Iterable[Tensor]:
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


def _token_types(inputs: list[_Input], positions: Tensor, lengths: Integers) -> dict[str, Tensor]:
    """Number the tokens of a pair's second text 1, if an input has a boundary."""
    given = [(each.params.extra_kwargs or {}).get(BOUNDARY) for each in inputs]
    if not any(boundary is not None for boundary in given):
        return {}
    bounds = [len(each.ids) if at is None else at for each, at in zip(inputs, given, strict=True)]
    types = positions >= torch.from_numpy(np.repeat(bounds, lengths))
    return {"token_type_ids": types.int()}


def _pooling(inputs: list[_Input], lengths: Integers) -> PoolingMetadata:
    params, sizes, ids = [each.params for each in inputs], torch.from_numpy(lengths), None
    if any(each.requires_token_ids for each in params):
        ids = pad_sequence([torch.from_numpy(each.ids).long() for each in inputs], batch_first=True)
    states = [PoolingStates() for _ in inputs]
    metadata = PoolingMetadata(sizes, None, ids, params, states)
    metadata.build_pooling_cursor(lengths, sizes, torch.device("cpu"))
    return metadata


def _runner(worker: Any) -> GPUModelRunner:
    return worker.model_runner


def _takes_token_ids_alone(runner: GPUModelRunner) -> bool:
    """Whether there is nothing else that vLLM's runner would hand to the model."""
    more = (runner.supports_mm_inputs, runner.enable_prompt_embeds, runner.uses_mrope)
    return not any(more) and runner.lora_config is None and runner.lookback_token_ids is None

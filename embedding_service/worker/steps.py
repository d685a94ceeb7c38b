"""Which inputs vLLM's runner computes in a step: as vLLM's scheduler decides, or all that wait.

The scheduler shares out the blocks of a cache and follows each request from step to step. An
encoder has no cache and is done after one step, and the worker's loop gives it no more than a step
holds, so that for encoders nothing is left to decide. A small model on a GPU computes faster than
Python can keep those books: they took more than half of a step's 67 us a text
(docs/performance.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.request import Request

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Future

    from torch import Tensor
    from vllm import PoolingParams
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.outputs import ModelRunnerOutput

    from embedding_service.types import TokenIds

    Launched: TypeAlias = tuple[SchedulerOutput, Future[ModelRunnerOutput]]


class Steps(Protocol):
    """The two halves of `EngineCore.step` for a pooling model, and what feeds them."""

    def add(self, key: str, ids: TokenIds, params: PoolingParams) -> None:
        """Queue an input. Raises `ValueError` with vLLM's reason."""

    def abort(self, keys: list[str]) -> None:
        """Forget inputs, whether or not a step has begun with them."""

    def launch(self) -> Launched:
        """Start computing a step."""

    def collect(self, step: Launched) -> Iterable[tuple[str, Tensor]]:
        """Wait for a step; return what it finished."""


def steps(engine: EngineCore) -> Steps:
    """Return what a model needs."""
    cached = engine.scheduler.kv_cache_config.kv_cache_groups
    return _Scheduled(engine) if cached else _Unscheduled(engine)


class _Scheduled:
    """vLLM's scheduler decides."""

    def __init__(self, engine: EngineCore) -> None:
        self._engine = engine

    def add(self, key: str, ids: TokenIds, params: PoolingParams) -> None:
        hasher = self._engine.request_block_hasher
        self._engine.add_request(Request(key, ids.tolist(), None, params, block_hasher=hasher))

    def abort(self, keys: list[str]) -> None:
        self._engine.abort_requests(keys)

    def launch(self) -> Launched:
        step = self._engine.scheduler.schedule()
        return step, self._engine.model_executor.execute_model(step, non_block=True)

    def collect(self, step: Launched) -> Iterable[tuple[str, Tensor]]:
        scheduled, future = step
        outputs = self._engine.scheduler.update_from_output(scheduled, future.result())
        results = outputs[0].outputs if outputs else ()
        return [(result.request_id, result.pooling_output) for result in results]


class _Unscheduled:
    """All that waits is computed at once, as far as a step holds it, and then forgotten."""

    def __init__(self, engine: EngineCore) -> None:
        self._executor = engine.model_executor
        batch = engine.vllm_config.scheduler_config
        self._texts, self._tokens = batch.max_num_seqs, batch.max_num_batched_tokens
        self._waiting: list[NewRequestData] = []
        self._before: set[str] = set()  # of the step before, which the runner still keeps

    def add(self, key: str, ids: TokenIds, params: PoolingParams) -> None:
        tokens = ids.tolist()
        request = NewRequestData(key, tokens, [], None, params, (), 0, None)
        request.prefill_token_ids = tokens  # for vLLM's second runner, 0.32's usual one on GPUs
        self._waiting.append(request)

    def abort(self, keys: list[str]) -> None:
        gone = set(keys)
        self._waiting = [request for request in self._waiting if request.req_id not in gone]

    def launch(self) -> Launched:
        step = SchedulerOutput.make_empty()
        for request in self._waiting[: self._texts]:
            size = len(request.prompt_token_ids)
            if step.total_num_scheduled_tokens + size > self._tokens:
                break
            step.scheduled_new_reqs.append(request)
            step.num_scheduled_tokens[request.req_id] = size
            step.total_num_scheduled_tokens += size
        del self._waiting[: len(step.scheduled_new_reqs)]
        step.finished_req_ids, self._before = self._before, set(step.num_scheduled_tokens)
        return step, self._executor.execute_model(step, non_block=True)

    def collect(self, step: Launched) -> Iterable[tuple[str, Tensor]]:
        _, future = step
        output = future.result()
        return zip(output.req_ids, output.pooler_output or (), strict=True)

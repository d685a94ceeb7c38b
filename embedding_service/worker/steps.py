"""The steps in which vLLM computes inputs, in one of three ways, each shorter than the one before.

vLLM's scheduler shares out the blocks of a cache and follows each request from step to step. An
encoder has no cache and is done after one step, and the worker's loop gives it no more than a step
holds, so that nothing is left to decide: the scheduler took more than half of the 67 us a text that
a small model on a GPU waits for Python (docs/performance.md).

On CPUs an encoder is computed without vLLM's runner, too (`cpu_steps.py`).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from vllm.platforms import current_platform
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future

    from torch import Tensor
    from vllm import PoolingParams
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from embedding_service.types import TokenIds

    Finished: TypeAlias = Iterable[tuple[str, Tensor]]
    Step: TypeAlias = Callable[[], Finished]

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
            # Imported here because it is written for the version of vLLM that CPUs have.
            from embedding_service.worker.cpu_steps import Direct  # noqa: PLC0415

            return Direct(engine, runner)
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


class Input(NamedTuple):
    """An input of an encoder."""

    key: str
    ids: TokenIds
    params: PoolingParams


class AllThatWaits:
    """All inputs that wait make a step, as far as it holds them."""

    def __init__(self, engine: EngineCore) -> None:
        batch = engine.vllm_config.scheduler_config
        self._texts, self._tokens = batch.max_num_seqs, batch.max_num_batched_tokens
        self._waiting: list[Input] = []

    def add(self, key: str, ids: TokenIds, params: PoolingParams) -> None:
        """Queue an input."""
        self._waiting.append(Input(key, ids, params))

    def abort(self, keys: list[str]) -> None:
        """Forget inputs that no step has begun with; the others are done at once."""
        gone = set(keys)
        self._waiting = [waiting for waiting in self._waiting if waiting.key not in gone]

    def _take(self) -> list[Input]:
        taken: list[Input] = []
        room = self._tokens
        for waiting in self._waiting[: self._texts]:
            room -= len(waiting.ids)
            if room < 0:
                break
            taken.append(waiting)
        del self._waiting[: len(taken)]
        return taken


class _ByRunner(AllThatWaits):
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


def _request(each: Input) -> NewRequestData:
    tokens = each.ids.tolist()
    request = NewRequestData(each.key, tokens, [], None, each.params, (), 0, None)
    request.prefill_token_ids = tokens  # for vLLM's second runner, 0.32's usual one on GPUs
    return request


def _read(computed: Future[ModelRunnerOutput]) -> Finished:
    output = computed.result()
    return zip(output.req_ids, output.pooler_output or (), strict=True)


def _runner(worker: Any) -> GPUModelRunner:
    return worker.model_runner


def _takes_token_ids_alone(runner: GPUModelRunner) -> bool:
    """Whether there is nothing else that vLLM's runner would hand to the model."""
    if not hasattr(runner, "lookback_token_ids"):  # 0.26, whose runner nobody has compared
        return False
    more = (runner.supports_mm_inputs, runner.enable_prompt_embeds, runner.uses_mrope)
    return not any(more) and runner.lora_config is None and runner.lookback_token_ids is None

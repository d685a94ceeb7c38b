"""One worker seen from the gateway, from its birth to its grave; the test is the worker."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import structlog

from embedding_service.engine import generation as generation_module
from embedding_service.engine import heartbeat, protocol
from embedding_service.engine.generation import Generation, WorkerDied
from embedding_service.engine.step_record import StepRecord
from embedding_service.errors import DeadlineExceeded, EngineFailed, ModelNotLoaded
from embedding_service.types import Batch, Output, Priority
from tests.engine.scripted import FACTS, ScriptedWorker, Workers, left_in, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

NUMBER = 7


def batch(*sizes: int) -> Batch:
    """Return a batch of so many tokens each."""
    ids = [np.full(size, i, np.int32) for i, size in enumerate(sizes)]
    return Batch(ids, frozenset({Output.DENSE}), Priority.BULK, time.monotonic() + 60)


def run(generation: Generation, *sizes: int) -> asyncio.Task[Any]:
    """Give a job to the worker."""
    return asyncio.create_task(generation.run(batch(*sizes), more_coming=False))


def done(
    worker: ScriptedWorker, job: protocol.Run, *, generation: int = NUMBER, steps: int = 1
) -> None:
    """Answer a job with its number."""
    frame = protocol.Frame(Output.DENSE, 1, (1,) * job.n)
    answer = protocol.Done(generation, job.job, (frame,), steps=steps, queued_s=0.0)
    worker.say(answer, np.full((job.n, 1), job.job, np.float32))


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[Workers]:
    """Return workers that say hello."""
    workers = Workers(tmp_path, ScriptedWorker.say_hello)
    yield workers
    for worker in workers.all:
        await worker.end()


@pytest.fixture
async def generation(workers: Workers) -> AsyncIterator[Generation]:
    """Return one that is born, and buried after the test."""
    generation = await workers.start_generation(NUMBER)
    yield generation
    with contextlib.suppress(Exception):
        await generation.bury("the test is over")


def test_a_newborn_has_its_model(generation: Generation) -> None:
    """Whoever holds a generation holds the facts and the tokenizer that its worker has sent."""
    assert generation.model.facts == FACTS
    assert generation.model.tokenizer_json == b"a tokenizer"
    assert generation.outstanding_tokens == 0


def refuse(worker: ScriptedWorker) -> None:
    worker.say(protocol.Failed(NUMBER, 0, "startup", "its files are damaged"))


def refuse_and_exit(worker: ScriptedWorker) -> None:
    refuse(worker)
    worker.exit(4)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (refuse, "its files are damaged"),
        (refuse_and_exit, "its files are damaged"),
        (lambda worker: worker.exit(3), "the engine ended with status 3: its last words"),
        (lambda worker: worker.say_bytes(b"nonsense"), "ProtocolError: "),
        (lambda worker: worker.say(protocol.Stop(NUMBER)), "Stop("),
        (lambda worker: None, "not ready after startup_timeout_s = 0.2"),
    ],
)
async def test_without_a_hello_nothing_is_left(
    tmp_path: Path, script: Callable[[ScriptedWorker], object], reason: str
) -> None:
    """A worker that is not born says why, in one line with the model's name; then it is gone."""
    is_silent = "startup_timeout_s" in reason
    workers = Workers(tmp_path, script, startup_timeout_s=0.2 if is_silent else 60)
    with pytest.raises(ModelNotLoaded) as error:
        await workers.start_generation(NUMBER)
    assert str(error.value).startswith(f"scripted: {reason}")
    assert workers.last.killed
    assert left_in(tmp_path) == []


async def test_a_birth_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    """Shutting down while a model loads kills the process and removes its sockets."""
    workers = Workers(tmp_path, lambda worker: None)
    starting = asyncio.create_task(workers.start_generation(NUMBER))
    await until(lambda: workers.all)
    starting.cancel()
    await asyncio.wait({starting})
    assert workers.last.killed
    assert left_in(tmp_path) == []


async def test_a_process_that_cannot_be_had_is_a_model_not_loaded(tmp_path: Path) -> None:
    """Without memory, process or descriptor for it, the reason is the system's."""

    def fail(worker: ScriptedWorker) -> None:
        worker.exit(0)
        raise BlockingIOError("Resource temporarily unavailable")

    workers = Workers(tmp_path, fail)
    with pytest.raises(ModelNotLoaded, match="no process for the engine: Resource temporarily"):
        await workers.start_generation(NUMBER)
    assert left_in(tmp_path) == []


async def test_jobs_are_answered(workers: Workers, generation: Generation) -> None:
    """Each job gets its own answer, in whatever order; until then its tokens are outstanding."""
    jobs = [run(generation, 3, 4), run(generation, 5)]
    headers = [await workers.last.hear(protocol.Run) for _ in jobs]
    assert [(header.n, header.total) for header in headers] == [(2, 7), (1, 5)]
    assert generation.outstanding_tokens == 12
    for header in reversed(headers):
        done(workers.last, header)
    for job, header in zip(jobs, headers, strict=True):
        answers = (await job).results
        assert [answer[Output.DENSE].item() for answer in answers] == [header.job] * header.n
    assert generation.outstanding_tokens == 0


@pytest.mark.parametrize(
    ("reason", "error"), [("expired", DeadlineExceeded), ("rejected", EngineFailed)]
)
async def test_jobs_fail(
    workers: Workers, generation: Generation, reason: str, error: type[Exception]
) -> None:
    """A job that the worker gives up is the error that its sender should get."""
    job = run(generation, 3)
    header = await workers.last.hear(protocol.Run)
    workers.last.say(protocol.Failed(NUMBER, header.job, reason, "it says why"))
    with pytest.raises(error, match="it says why"):
        await job


async def test_a_cancelled_job_is_cancelled_there(workers: Workers, generation: Generation) -> None:
    """The worker hears of it, and its answer, if it comes all the same, is nobody's."""
    job = run(generation, 3)
    header = await workers.last.hear(protocol.Run)
    job.cancel()
    assert (await workers.last.hear(protocol.Cancel)).job == header.job
    assert generation.outstanding_tokens == 0
    other = run(generation, 1)
    for each in (header, await workers.last.hear(protocol.Run)):
        done(workers.last, each)
    await other


async def test_another_generation_is_not_heard(workers: Workers, generation: Generation) -> None:
    """An answer with the number of another generation is dropped, and changes nothing."""
    job = run(generation, 3)
    header = await workers.last.hear(protocol.Run)
    done(workers.last, header, generation=NUMBER - 1, steps=7)
    workers.last.say(protocol.Failed(NUMBER + 1, header.job, "rejected", "not meant"))
    done(workers.last, header)
    assert (await job).steps == 1


async def test_no_message_is_left_in_a_socket(workers: Workers, generation: Generation) -> None:
    """Any number of messages may come at one time, and while jobs are sent: all are read."""
    worker = workers.last
    for step in range(50):
        jobs = [run(generation, 1) for _ in range(10)]
        headers = [await worker.hear(protocol.Run) for _ in jobs]
        for header in headers:
            worker.pong(steps=step)
            done(worker, header)
        await asyncio.wait_for(asyncio.gather(*jobs), 60)
    await until(lambda: generation.progress.steps == 49)


async def test_sending_leaves_no_message_behind(workers: Workers, generation: Generation) -> None:
    """A message that comes right before a job is sent is read, though its signal is used up."""
    loop = asyncio.get_running_loop()

    def arrive() -> None:
        workers.last.pong(steps=1)
        time.sleep(0.05)  # it arrives while the event loop does not look

    loop.call_soon(loop.call_soon, arrive)  # in the turn in which the job is sent, before it
    job = run(generation, 1)
    done(workers.last, await workers.last.hear(protocol.Run))
    await job
    await until(lambda: generation.progress.steps == 1)


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda worker: worker.exit(-9), "exit status -9: its last words"),
        (lambda worker: worker.say_bytes(b"nonsense"), "ProtocolError: "),
        (ScriptedWorker.say_hello, "the engine sent Hello at the wrong time"),
        (lambda worker: None, "no sign of life for 0.1 s"),
    ],
)
async def test_an_end_has_a_reason(
    workers: Workers,
    generation: Generation,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[ScriptedWorker], object],
    reason: str,
) -> None:
    """A worker ends by exiting, by sending what is no message, or by silence."""
    if "no sign of life" in reason:
        monkeypatch.setattr(heartbeat, "PING_EVERY_S", 0.05)
        monkeypatch.setattr(heartbeat, "HANG_AFTER_S", 0.1)
    act(workers.last)
    assert reason in await asyncio.wait_for(generation.ended(), 60)


async def test_a_burial_fails_every_job(workers: Workers, generation: Generation) -> None:
    """Jobs learn which of their inputs were in the engine, and those that only waited: none."""
    jobs = [run(generation, 3, 4, 5), run(generation, 1)]
    first = await workers.last.hear(protocol.Run)
    StepRecord(workers.last.launch.step_path).write([(first.job, 0), (first.job, 2)])
    await generation.bury("it was killed")
    deaths = await asyncio.gather(*jobs, return_exceptions=True)
    assert [(str(death), list(death.running)) for death in deaths] == [
        ("it was killed", [0, 2]),
        ("it was killed", []),
    ]
    assert all(isinstance(death, WorkerDied) for death in deaths)
    assert workers.last.killed
    assert generation.outstanding_tokens == 0


async def test_a_worker_is_asked_to_stop(
    workers: Workers, generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may exit by itself before it is killed."""
    monkeypatch.setattr(generation_module, "STOP_GRACE_S", 60)
    stopping = asyncio.create_task(generation.stop())
    await workers.last.hear(protocol.Stop)
    assert not workers.last.killed
    workers.last.exit(0)
    await stopping


async def test_waiting_says_for_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that takes long is logged with the stage that it is in, until the worker is there."""
    monkeypatch.setattr(generation_module, "WAITING_EVERY_S", 0.01)
    workers = Workers(tmp_path, lambda worker: None)
    with structlog.testing.capture_logs() as log:
        starting = asyncio.create_task(workers.start_generation(NUMBER))
        await until(lambda: workers.all)
        workers.last.stage = "weights"
        await until(lambda: len([one for one in log if one.get("waiting_for") == "weights"]) > 1)
        workers.last.say_hello()
        started = await starting
        told = len(log)
        await asyncio.sleep(0.05)
    assert log[0]["event"] == "still_loading"
    assert len(log) == told
    await started.bury("the test is over")


async def test_waiting_ends_with_a_start_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody tells of waiting for a worker that is gone."""
    monkeypatch.setattr(generation_module, "WAITING_EVERY_S", 0.01)
    with structlog.testing.capture_logs() as log:
        with pytest.raises(ModelNotLoaded):
            await Workers(tmp_path, refuse).start_generation(NUMBER)
        told = len(log)
        await asyncio.sleep(0.05)
    assert len(log) == told

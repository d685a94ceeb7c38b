"""The supervisor: deaths, pauses, restarts and what outlives them. The workers are scripted."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from embedding_service.engine import examination
from embedding_service.engine import generation as generation_module
from embedding_service.engine import replica as replica_module
from embedding_service.engine.examination import Verdict
from embedding_service.engine.generation import WorkerDied
from embedding_service.engine.replica import DEATHS_ALLOWED, Replica
from embedding_service.engine.states import State
from embedding_service.engine.step_record import StepRecord
from embedding_service.errors import ModelNotLoaded
from tests.engine.scripted import FACTS, ScriptedWorker, Workers, left_in, until
from tests.engine.test_generation import batch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

READY, BACKOFF, STARTING, DEAD, STOPPED = (
    State.READY,
    State.BACKOFF,
    State.STARTING,
    State.DEAD,
    State.STOPPED,
)


class Watched:
    """A replica of scripted workers, and the states that it has gone through."""

    def __init__(self, folder: Path) -> None:
        self.states: list[State] = []
        self.workers = Workers(folder, ScriptedWorker.say_hello)
        self.replica = Replica(
            0,
            self.workers.start_generation,
            asyncio.Lock(),
            lambda: self.states.append(self.replica.state),
            structlog.get_logger(),
        )

    async def die(self) -> None:
        """Have the worker die, and wait until that is known."""
        seen = len(self.states)
        self.workers.last.exit(-9)
        await until(lambda: len(self.states) > seen)


@pytest.fixture
async def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    """Return a replica whose pauses are short."""
    monkeypatch.setattr(replica_module, "BACKOFF_S", (0.0, 0.001, 0.002))
    monkeypatch.setattr(generation_module, "LATE_GREETING_S", 0.05)
    monkeypatch.setattr(generation_module, "STOP_GRACE_S", 0.05)
    watched = Watched(tmp_path)
    yield watched
    await watched.replica.stop()
    for worker in watched.workers.all:
        await worker.end()
    assert left_in(tmp_path) == []


async def test_a_death_is_followed_by_a_successor(watched: Watched) -> None:
    """The next generation takes over; the dead one is gone."""
    replica = watched.replica
    await replica.start()
    first = replica.current
    await watched.die()
    await until(lambda: replica.state is READY)
    assert watched.states == [READY, BACKOFF, STARTING, READY]
    assert replica.generation == 2
    assert replica.current is not first
    assert replica.supervised


async def test_jobs_of_the_dead_do_not_come_back_to_it(watched: Watched) -> None:
    """When a job learns of the death, the replica no longer takes jobs."""
    replica = watched.replica
    await replica.start()

    async def run() -> State:
        with pytest.raises(WorkerDied, match="exit status -9"):
            await replica.run(batch(3), more_coming=False)
        with pytest.raises(WorkerDied, match="there is no worker"):
            await replica.run(batch(3), more_coming=False)
        return replica.state

    jobs = [asyncio.create_task(run()) for _ in range(3)]
    await until(lambda: replica.outstanding_tokens == 9)
    await watched.die()
    assert await asyncio.gather(*jobs) == [BACKOFF] * 3
    assert replica.outstanding_tokens == 0


async def test_dying_as_a_habit_ends_it(watched: Watched) -> None:
    """After one death too many nothing is started any more, and the supervisor has ended well."""
    replica = watched.replica
    await replica.start()
    for _ in range(DEATHS_ALLOWED):
        await watched.die()
        await until(lambda: replica.state is READY)
    await watched.die()
    await until(lambda: replica.state is DEAD)
    assert replica.generation == DEATHS_ALLOWED + 1
    assert replica.current is None
    assert replica.supervised


async def test_deaths_are_forgiven(watched: Watched) -> None:
    """Deaths by an input that is refused from then on are not counted with those that follow."""
    replica = watched.replica
    await replica.start()
    for _ in range(3 * DEATHS_ALLOWED):
        await watched.die()
        await until(lambda: replica.state is READY)
        replica.forgive()
    assert replica.generation == 3 * DEATHS_ALLOWED + 1


async def test_a_failed_start_is_one_more_death(watched: Watched) -> None:
    """Workers that are not born count like those that die, and are tried again."""
    replica = watched.replica
    await replica.start()
    watched.workers.script = lambda worker: worker.exit(1)
    await watched.die()
    await until(lambda: replica.generation == 3)
    watched.workers.script = ScriptedWorker.say_hello
    await until(lambda: replica.state is READY)
    assert watched.states == [READY, *[BACKOFF, STARTING] * 3, READY]


async def test_a_model_that_is_not_loaded_at_first_is_given_up(watched: Watched) -> None:
    """The first start is not repeated: what is wrong with it will be wrong again."""
    watched.workers.script = lambda worker: worker.exit(1)
    with pytest.raises(ModelNotLoaded):
        await watched.replica.start()
    assert watched.states == [DEAD]
    assert len(watched.workers.all) == 1


async def test_the_work_of_the_dead_counts(watched: Watched) -> None:
    """Totals go on where they were; progress is that of the current worker."""
    replica = watched.replica
    await replica.start()
    sizes = (3, 1, *(0,) * 11)
    for generation in (1, 2):
        watched.workers.last.pong(steps=4, texts=5, tokens=60, busy_s=0.5, batch_sizes=sizes)
        await until(lambda: replica.progress and replica.progress.steps == 4)
        assert replica.totals.steps == 4 * generation
        await watched.die()
        await until(lambda: replica.state is READY)
    assert replica.progress is not None
    assert replica.progress.steps == 0
    totals = replica.totals
    assert (totals.steps, totals.texts, totals.tokens, totals.busy_s) == (8, 10, 120, 1.0)
    assert totals.batch_sizes[:2] == (6, 2)


async def test_a_model_is_known_while_its_worker_restarts(watched: Watched) -> None:
    """Facts outlive the worker; its successor with the same identity keeps the same model."""
    replica = watched.replica
    assert replica.model is None
    await replica.start()
    model = replica.model
    assert model is not None
    await watched.die()
    assert replica.model is model
    assert model.facts == FACTS
    await until(lambda: replica.state is READY)
    assert replica.model is model


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_stop_ends_also_a_start(watched: Watched, at_once: bool) -> None:
    """Stopped while the successor is loading, nothing is left of it and no other is started."""
    replica = watched.replica
    await replica.start()
    watched.workers.script = lambda worker: None
    await watched.die()
    if not at_once:
        await until(lambda: len(watched.workers.all) == 2)
    await replica.stop()
    assert watched.states[-1] is STOPPED
    assert all(worker.killed for worker in watched.workers.all)
    assert replica.supervised


async def test_a_supervisor_that_fails_is_found(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the task that watches the worker has ended by a defect, it does not say so itself."""
    replica = watched.replica

    async def defect(_: Any) -> str:
        raise ZeroDivisionError

    await replica.start()
    assert replica.supervised
    assert replica.current is not None
    monkeypatch.setattr(replica, "start_generation", defect)
    with contextlib.suppress(ZeroDivisionError):
        await watched.die()
        await until(lambda: not replica.supervised)


async def test_what_the_machine_lacks_is_no_death(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While there is no room or descriptor for a worker, it is tried again, however often."""
    replica, reserve = watched.replica, StepRecord.reserve
    await replica.start()
    lacking = [OSError(errno.ENOSPC, "No space left"), OSError(errno.EMFILE, "Too many files")]
    lacking *= DEATHS_ALLOWED + 1

    def failing(path: Path) -> None:
        if lacking:
            raise lacking.pop()
        reserve(path)

    monkeypatch.setattr(StepRecord, "reserve", failing)
    await watched.die()
    await until(lambda: replica.state is READY)
    assert lacking == []
    assert DEAD not in watched.states
    for _ in range(DEATHS_ALLOWED - 1):  # the first one alone has counted
        await watched.die()
        await until(lambda: replica.state is READY)


async def test_a_folder_that_was_removed_is_made_again(watched: Watched, tmp_path: Path) -> None:
    """Somebody who clears a folder of temporary files does not end the gateway."""
    replica = watched.replica
    await replica.start()
    shutil.rmtree(tmp_path)
    await watched.die()
    await until(lambda: replica.state is READY)
    assert tmp_path.stat().st_mode & 0o777 == 0o700  # noqa: ASYNC240


async def test_a_suspected_worker_is_replaced_without_blame(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its jobs go elsewhere, and their inputs are not suspected; it is no death. If the successor
    fails as well it stays, without jobs, until it passes.
    """
    monkeypatch.setattr(examination, "IDLE_WITHIN_S", 0.05)
    passes = asyncio.Event()
    passes.set()

    async def examine(*_: object) -> Verdict:
        return Verdict(passed=passes.is_set(), reason="as the test says")

    replica = watched.replica
    replica.examine, replica.examined_every_s = examine, 0.02
    await replica.start()
    job = asyncio.create_task(replica.run(batch(3), more_coming=False))
    await until(lambda: replica.outstanding_tokens == 3)
    StepRecord(watched.workers.last.launch.step_path).write([(1, 0)])
    passes.clear()
    with pytest.raises(WorkerDied) as caught:
        await job
    assert caught.value.running == []
    await until(lambda: replica.state is State.QUARANTINED)
    await asyncio.sleep(0.2)
    assert watched.states == [READY, BACKOFF, STARTING, State.QUARANTINED]
    assert (replica.generation, replica.ready_in_s) == (2, float("inf"))
    passes.set()
    await until(lambda: replica.state is READY)
    assert not replica._deaths


async def test_a_quarantined_worker_that_dies_is_followed_by_another(watched: Watched) -> None:
    """As any worker that dies."""
    replica, verdicts = watched.replica, iter([Verdict(passed=False), examination.PASSED])

    async def examine(*_: object) -> Verdict:
        return next(verdicts)

    replica.examine = examine
    await replica.start()
    assert replica.state is State.QUARANTINED
    await watched.die()
    await until(lambda: replica.state is READY)
    assert watched.states == [State.QUARANTINED, BACKOFF, STARTING, READY]

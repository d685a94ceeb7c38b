"""The worker's loop with the fake backend: which step computes what, and what never runs."""

from __future__ import annotations

import itertools
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zmq

from embedding_service.engine import protocol
from embedding_service.engine.step_record import StepRecord
from embedding_service.settings.model import ModelOptions
from embedding_service.types import Output, Priority
from embedding_service.worker import loop
from embedding_service.worker.backend import ModelRefused
from embedding_service.worker.fake import FAULTS, FakeBackend, fake_vectors
from embedding_service.worker.inbox import Counters, Job, Receiver
from embedding_service.worker.loading import _WARM_UP_TEXT, warm_up
from embedding_service.worker.loop import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from embedding_service.types import Rows

GENERATION = 5
INTERACTIVE, BULK, ALONE = Priority.INTERACTIVE, Priority.BULK, Priority.ALONE
BATCH = 8  # texts in a step
DENSE = (Output.DENSE,)


class ScriptedBackend(FakeBackend):
    """A fake backend that notes what each step held, and lets something happen during chosen steps."""

    def __init__(self, **options: Any) -> None:
        super().__init__(ModelOptions(engine="fake", max_batch_size=BATCH, **options))
        self.steps: list[list[str]] = []
        self.collected = 0
        self.during: dict[int, Callable[[], object]] = {}

    def launch(self) -> None:
        """Note the inputs."""
        self.steps.append(list(self._queue))
        super().launch()

    def collect(self) -> list[tuple[str, Rows]]:
        """Do as the script says, and then as the fake backend does."""
        self.collected += 1
        self.during.pop(self.collected, lambda: None)()
        return super().collect()

    def jobs_in(self, step: int) -> list[int]:
        """Return the job of every input of a step, counted from 1."""
        return [int(key.partition(":")[0]) for key in self.steps[step - 1]]


class Bench:
    """A worker on sockets of this process, and the gateway's ends of them."""

    def __init__(self, folder: Path, *, gather_s: float = 0, **options: Any) -> None:
        self.context = zmq.Context()
        self.jobs, theirs = self.context.socket(zmq.PAIR), self.context.socket(zmq.PAIR)
        self.results, results = self.context.socket(zmq.PULL), self.context.socket(zmq.PUSH)
        for ours, other, name in (
            (self.jobs, theirs, "inproc://jobs"),
            (self.results, results, "inproc://results"),
        ):
            ours.bind(name)
            other.connect(name)
        launch = protocol.Launch(GENERATION, "", "", "", {})
        self.backend = ScriptedBackend(**options)
        self.receiver = Receiver(theirs, launch, Counters())
        self.record_path = folder / "step"
        self.worker = Worker(
            self.backend,
            self.receiver,
            results,
            StepRecord(str(self.record_path)),
            gather_s=gather_s,
        )
        self.sockets = [self.jobs, theirs, self.results, results]

    def put(
        self, job: int, inputs: list[list[int]], priority: Priority = BULK, **fields: Any
    ) -> None:
        """Hand a job to the worker as the receiving thread does."""
        lengths = np.array([len(ids) for ids in inputs], np.int32)
        flat = np.array(list(itertools.chain(*inputs)), np.int32)
        fields = {"outputs": DENSE, "deadline": time.monotonic() + 600, **fields}
        run = protocol.Run(
            GENERATION, job=job, n=len(inputs), total=len(flat), priority=priority, **fields
        )
        self.receiver.inbox.put(Job(run, lengths, flat, self.receiver.progress.steps))

    def cancel(self, job: int) -> None:
        self.receiver.inbox.put(protocol.Cancel(GENERATION, job))

    def run(self, answers: int) -> dict[int, protocol.Done | protocol.Failed]:
        """Run the loop until so many answers have come; return them by job, in the order they came."""
        thread = threading.Thread(target=self.worker.run, daemon=True)
        thread.start()
        self.rows: dict[int, list[Rows]] = {}
        self.messages: list[int] = []  # how many answers came in each
        got: dict[int, protocol.Done | protocol.Failed] = {}
        while len(got) < answers:
            assert self.results.poll(30_000), "no answer"
            together = list(
                protocol.split([memoryview(part) for part in self.results.recv_multipart()])
            )
            self.messages.append(len(together))
            for message, frames in together:
                assert isinstance(message, protocol.Done | protocol.Failed)
                got[message.job] = message
                if isinstance(message, protocol.Done):
                    self.rows[message.job] = protocol.unpack(message, frames).results
        until = time.monotonic() + 5
        while self.receiver.progress.waiting and time.monotonic() < until:
            time.sleep(0.005)
        self.receiver.inbox.put(protocol.Stop(GENERATION))
        thread.join(30)
        assert not thread.is_alive()
        assert not self.results.poll(50), "more answers than expected"
        return got

    def close(self) -> None:
        """Let go of the sockets; a receiving thread that runs is ended by the end of its context."""
        ending = threading.Thread(target=self.context.term)
        ending.start()
        if self.receiver.is_alive():
            self.receiver.join(30)
        for socket in self.sockets:
            socket.close(linger=0)
        ending.join(30)


@pytest.fixture(autouse=True)
def steps_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the worker take each step for a short one, also while this machine is busy."""
    monkeypatch.setattr(loop, "_LONG_STEP_S", 3600.0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Return a worker whose steps take 8 texts."""
    made = Bench(tmp_path)
    yield made
    made.close()


def texts(count: int, first: int = 100) -> list[list[int]]:
    return [[0, first + i, 1] for i in range(count)]


def done(answer: protocol.Done | protocol.Failed) -> protocol.Done:
    assert isinstance(answer, protocol.Done), answer
    return answer


def test_results_come_in_the_jobs_order(bench: Bench) -> None:
    """A job over several steps is answered once, its vectors in the order of its inputs."""
    inputs = texts(3 * BATCH + 1)
    bench.put(1, inputs)
    answer = done(bench.run(1)[1])
    assert answer.frames == (protocol.Frame(Output.DENSE, 32, (1,) * len(inputs)),)
    assert answer.steps == len(bench.backend.steps) == 4
    for rows, ids in zip(bench.rows[1], inputs, strict=True):
        np.testing.assert_array_equal(rows[Output.DENSE], fake_vectors(ids, Output.DENSE))


def test_every_kind_of_output_has_its_frame(bench: Bench) -> None:
    """Each output is a frame of rows of one width, with the number that each input has."""
    inputs = [[0, 100, 101, 1], [0, 102, 1]]
    outputs = (Output.HIDDEN_STATES, Output.COLBERT, Output.SPARSE, Output.DENSE)
    bench.put(1, inputs, outputs=outputs)
    frames = {frame.output: frame for frame in done(bench.run(1)[1]).frames}
    weights = tuple(len(fake_vectors(ids, Output.SPARSE)) for ids in inputs)
    assert {output: (frame.width, frame.counts) for output, frame in frames.items()} == {
        Output.DENSE: (32, (1, 1)),
        Output.SPARSE: (2, weights),
        Output.COLBERT: (32, (3, 2)),
        Output.HIDDEN_STATES: (32, (4, 3)),
    }
    for rows, ids in zip(bench.rows[1], inputs, strict=True):
        for output in outputs:
            np.testing.assert_array_equal(rows[output], fake_vectors(ids, output))


def test_an_interactive_request_overtakes(bench: Bench) -> None:
    """A text beside a bulk job of 2,048 is answered within two steps, and counts them."""
    bench.put(1, texts(2048))
    bench.backend.during[5] = lambda: bench.put(2, texts(1), INTERACTIVE)
    answers = bench.run(2)
    assert list(answers) == [2, 1]
    assert done(answers[2]).steps <= 2
    assert 2 in bench.backend.jobs_in(6)
    assert len(bench.backend.steps) <= 2048 // BATCH + 1


def test_interactive_requests_take_half_at_most(bench: Bench) -> None:
    """However many interactive texts wait, bulk work gets half of every step."""
    bench.put(1, texts(6 * BATCH))
    for job in range(2, 40):
        bench.put(job, texts(1), INTERACTIVE)
    bench.run(39)
    mixed = [
        step
        for step in range(1, len(bench.backend.steps) + 1)
        if len(set(bench.backend.jobs_in(step))) > 1
    ]
    assert len(mixed) > 5
    for step in mixed:
        jobs = bench.backend.jobs_in(step)
        if 1 in jobs and step < mixed[-1]:
            assert jobs.count(1) == BATCH // 2


@pytest.mark.parametrize(
    ("queries_s", "long_step_s", "behind"),
    [(3600.0, 0.0, BATCH * 2 // 3), (3600.0, 3600.0, BATCH), (-1.0, 0.0, BATCH)],
)
def test_steps_between_queries_are_short(
    queries_s: float,
    long_step_s: float,
    behind: int,
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where full steps are long, those behind a query are cut short, for the next one; not where
    they are over soon, nor once queries stay away.
    """
    monkeypatch.setattr(loop, "_QUERIES_S", queries_s)
    monkeypatch.setattr(loop, "_LONG_STEP_S", long_step_s)
    bench.put(1, texts(5 * BATCH))
    bench.backend.during[2] = lambda: bench.put(2, texts(1), INTERACTIVE)
    bench.run(2)
    assert [len(step) for step in bench.backend.steps[:4]] == [BATCH, BATCH, 3, behind]


def test_long_bulk_texts_move_beside_queries(bench: Bench) -> None:
    """One that takes more than a quarter of a step's tokens is in every step where it fits."""
    bench.put(1, [[100] * (bench.backend.limits.tokens // 2)] * 4)
    for job in range(2, 40):
        bench.put(job, texts(1), INTERACTIVE)
    bench.run(39)
    assert [1 in bench.backend.jobs_in(step) for step in range(1, 5)] == [True] * 4


def test_bulk_jobs_run_in_order(bench: Bench) -> None:
    """Bulk jobs are finished first come, first served; the rest of a step is given to the next one."""
    for job in (1, 2, 3):
        bench.put(job, texts(BATCH + 2))
    assert list(bench.run(3)) == [1, 2, 3]
    assert bench.backend.jobs_in(2) == [1] * 2 + [2] * (BATCH - 2)
    assert len(bench.backend.steps) == 4


def test_steps_are_bounded_by_tokens(bench: Bench) -> None:
    """A step holds no more tokens than the backend takes; a longer text runs alone."""
    long = [100] * (bench.backend.limits.tokens + 10)
    medium = [100] * (bench.backend.limits.tokens // 3)
    bench.put(1, [medium] * 4 + [long] + [medium])
    bench.run(1)
    assert [len(step) for step in bench.backend.steps] == [3, 1, 1, 1]


def test_cancelled_work_never_runs(bench: Bench) -> None:
    """Inputs that had not started when a job was cancelled are not computed, nor answered."""
    bench.put(1, texts(10 * BATCH))
    bench.backend.during[2] = lambda: bench.cancel(1)
    bench.put(2, texts(1))
    assert list(bench.run(1)) == [2]
    assert [bench.backend.jobs_in(step) for step in (1, 2, 3)] == [[1] * BATCH, [1] * BATCH, [2]]
    assert len(bench.backend.steps) == 3


def test_cancelling_everything_leaves_nothing_behind(bench: Bench) -> None:
    """After jobs were cancelled before, during and after their steps, the counters are at zero."""
    bench.put(1, texts(1))
    bench.put(2, texts(4 * BATCH))
    bench.put(3, texts(4 * BATCH), INTERACTIVE)
    bench.cancel(3)
    bench.backend.during[1] = lambda: [bench.cancel(job) for job in (2, 1, 99)]
    bench.run(1)
    progress = bench.receiver.progress
    assert (progress.running, progress.running_tokens, progress.waiting) == (0, 0, 0)
    assert (bench.worker.jobs, bench.worker.in_backend) == ({}, {})
    assert not any(bench.worker.waiting.values())


def test_expired_work_never_runs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job past its deadline is told so without a step; one half-way stops there."""
    passed_s: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + sum(passed_s))
    monkeypatch.setattr("embedding_service.worker.loop.time", clock)
    bench.put(1, texts(1), deadline=time.monotonic() - 1)
    bench.put(2, texts(3 * BATCH), deadline=time.monotonic() + 300)
    bench.backend.during[1] = lambda: passed_s.append(400)
    bench.put(3, texts(1))
    answers = bench.run(3)
    for job in (1, 2):
        failed = answers[job]
        assert isinstance(failed, protocol.Failed)
        assert failed.reason == "expired"
    assert [bench.backend.jobs_in(step) for step in (1, 2)] == [[2] * BATCH, [3]]


@pytest.mark.parametrize("place", [0, 3, BATCH, 2 * BATCH - 1])
def test_a_rejected_input_fails_alone(bench: Bench, place: int) -> None:
    """A refused input fails its own job with the reason; other jobs do not notice."""
    inputs = texts(2 * BATCH)
    inputs[place] = [0, FAULTS["fault-reject"], 1]
    bench.put(1, inputs)
    bench.put(2, texts(2))
    bench.put(3, texts(1), INTERACTIVE)
    answers = bench.run(3)
    failed = answers[1]
    assert isinstance(failed, protocol.Failed)
    assert (failed.reason, failed.message) == ("rejected", "the fake engine refuses this, as asked")
    assert len(bench.rows[2]) == 2
    assert len(bench.rows[3]) == 1
    assert (bench.worker.jobs, bench.worker.in_backend, bench.backend.unfinished) == ({}, {}, 0)


def test_a_suspect_runs_alone(bench: Bench) -> None:
    """A job with priority `alone` shares no step with another."""
    bench.put(1, texts(BATCH + 1))
    bench.put(2, texts(2), ALONE)
    bench.put(3, texts(2), INTERACTIVE)
    bench.put(4, texts(1), ALONE)
    bench.run(4)
    for step in range(1, len(bench.backend.steps) + 1):
        jobs = set(bench.backend.jobs_in(step))
        assert len(jobs) == 1 or not jobs & {2, 4}


def test_an_idle_engine_gathers_what_is_on_its_way(tmp_path: Path) -> None:
    """A job that announces others waits for them, up to `gather_s`, and shares their step."""
    bench = Bench(tmp_path, gather_s=60)
    bench.put(1, texts(1), INTERACTIVE, more_coming=True)
    threading.Timer(0.1, lambda: bench.put(2, texts(1), INTERACTIVE, more_coming=False)).start()
    bench.run(2)
    bench.close()
    assert bench.backend.jobs_in(1) == [1, 2]


def test_a_lone_request_does_not_wait(tmp_path: Path) -> None:
    """A job that announces nobody is computed at once, however long the engine would gather."""
    bench = Bench(tmp_path, gather_s=3600)
    bench.put(1, texts(1), INTERACTIVE)
    bench.run(1)
    bench.close()


def test_a_small_result_does_not_wait_for_a_large_one(bench: Bench) -> None:
    """Of the jobs that end with a step the small ones come first, in a message of their own."""
    short = texts(1)
    bench.put(
        1, [[0, *range(100, 353), 1]] * (BATCH + 1)
    )  # 2,295 tokens, the last of them in a second step
    bench.put(2, short)
    bench.put(3, short)
    assert list(bench.run(3)) == [2, 3, 1]
    assert bench.messages == [2, 1]


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # the end of the receiver
def test_pings_are_answered_during_a_step(bench: Bench) -> None:
    """The receiving thread answers pings of its generation while the engine is busy."""
    busy, finish = threading.Event(), threading.Event()
    bench.backend.during[1] = lambda: busy.set() or finish.wait(30)
    bench.receiver.start()
    lengths, ids = np.array([3], np.int32), np.array([0, 100, 1], np.int32)
    run = protocol.Run(GENERATION, 1, DENSE, 1, 3, INTERACTIVE, time.monotonic() + 600)
    bench.jobs.send_multipart(protocol.encode(protocol.Stop(GENERATION - 1)))
    bench.jobs.send_multipart(protocol.encode(protocol.Ping(GENERATION + 1)))
    bench.jobs.send_multipart(protocol.encode(run, np.concatenate([lengths, ids])))
    thread = threading.Thread(target=bench.worker.run, daemon=True)
    thread.start()
    assert busy.wait(30)
    bench.jobs.send_multipart(protocol.encode(protocol.Ping(GENERATION)))
    assert bench.jobs.poll(30_000)
    pong = protocol.decode(bench.jobs.recv())
    assert isinstance(pong, protocol.Pong)
    assert (pong.steps, pong.running, pong.running_tokens, pong.waiting) == (0, 1, 3, 0)
    assert StepRecord.read(bench.record_path) == [(1, 0)]
    finish.set()
    assert bench.results.poll(30_000)
    bench.jobs.send_multipart(protocol.encode(protocol.Stop(GENERATION)))
    thread.join(30)
    assert not thread.is_alive()
    assert StepRecord.read(bench.record_path) == []


def test_an_exception_in_a_step_ends_the_loop(bench: Bench) -> None:
    """A backend that breaks in a step is not used again: the exception leaves the loop."""
    bench.put(1, [[0, FAULTS["fault-raise"], 1]])
    with pytest.raises(RuntimeError):
        bench.worker.run()
    assert StepRecord.read(bench.record_path) == [(1, 0)]


@pytest.mark.parametrize(
    "content", [None, b"", b"\1\0", b"\5\0\0\0\xff\xff\xff\xff\xff", b"\xff\xff\xff\xff\x90"]
)
def test_a_broken_step_record_is_empty(tmp_path: Path, content: bytes | None) -> None:
    """A record that is missing, short or half-written names nobody."""
    path = tmp_path / "step"
    if content is not None:
        path.write_bytes(content)
    assert StepRecord.read(path) == []


def test_a_long_step_record_is_cut(tmp_path: Path) -> None:
    """However many inputs a step holds, their record fits its file."""
    record = StepRecord(str(tmp_path / "step"))
    record.write([(2**62, 2**31 + i) for i in range(10_000)])
    names = StepRecord.read(tmp_path / "step")
    assert names[:2] == [(2**62, 2**31), (2**62, 2**31 + 1)]
    assert len(names) > 1000


def test_warm_up_computes_one_text_and_a_full_step() -> None:
    """Before a worker says hello, the model has embedded a sentence and has seen its largest step."""
    backend = ScriptedBackend()
    assert warm_up(backend) == 32
    assert [len(step) for step in backend.steps] == [1, BATCH]
    assert backend.unfinished == 0


class PairBackend(FakeBackend):
    """A fake backend that keeps the boundaries of its inputs."""

    def __init__(self) -> None:
        super().__init__(ModelOptions(engine="fake", engine_args={"outputs": ["score"]}))
        self.boundaries: list[tuple[int, int | None]] = []

    def add(self, key: str, ids: Any, *, outputs: Any, boundary: int | None) -> None:
        """Keep how long an input is, and where its first text ends."""
        self.boundaries.append((len(ids), boundary))
        super().add(key, ids, outputs=outputs, boundary=boundary)


def test_warm_up_scores_a_pair_with_its_segments() -> None:
    """A classifier that cannot take the segments that its tokenizer numbers never becomes ready."""
    backend = PairBackend()
    assert warm_up(backend) is None
    words = len(_WARM_UP_TEXT.split())
    assert set(backend.boundaries) == {(2 * words + 3, words + 2)}


class OverflowingBackend(FakeBackend):
    """A fake backend whose numbers are all infinite."""

    def collect(self) -> list[tuple[str, Rows]]:
        """Answer everything that waits with infinities."""
        return [
            (key, {output: vector * np.float32(np.inf) for output, vector in result.items()})
            for key, result in super().collect()
        ]


def test_a_model_without_numbers_is_refused() -> None:
    """A model whose vectors are not finite ends the start with a line that says so."""
    with pytest.raises(ModelRefused, match="not finite"):
        warm_up(OverflowingBackend(ModelOptions(engine="fake")))


TWO = {"engine_args": {"steps_ahead": 2}}


@pytest.fixture
def ahead(tmp_path: Path) -> Iterator[Bench]:
    """Return a worker that may launch a step of 8 texts behind the one that is computed."""
    made = Bench(tmp_path, **TWO)
    yield made
    made.close()


def test_a_full_step_is_launched_behind_the_running_one(ahead: Bench) -> None:
    """With three steps' worth of texts a second is launched before the first is done."""
    launched: list[int] = []
    for step in (1, 2, 3, 4):
        ahead.backend.during[step] = lambda: launched.append(len(ahead.backend.steps))
    ahead.put(1, texts(3 * BATCH + 3))
    ahead.run(1)
    assert launched == [2, 3, 3, 4]
    assert [len(step) for step in ahead.backend.steps] == [BATCH, BATCH, BATCH, 3]
    for ids, rows in zip(texts(3 * BATCH + 3), ahead.rows[1], strict=True):
        np.testing.assert_array_equal(rows[Output.DENSE], fake_vectors(ids, Output.DENSE))


def test_no_half_empty_step_is_launched_behind_the_running_one(ahead: Bench) -> None:
    """Texts that come during a step, and do not fill one, are gathered until it ends."""
    ahead.backend.during[1] = lambda: ahead.put(2, texts(2))
    ahead.backend.during[2] = lambda: ahead.put(3, texts(2))
    ahead.put(1, texts(BATCH))
    ahead.run(3)
    assert [len(step) for step in ahead.backend.steps] == [BATCH, 2, 2]


def test_the_record_names_the_inputs_of_both_steps(ahead: Bench) -> None:
    """After a crash the gateway learns of all inputs that the device had, and of no others."""
    seen: list[list[tuple[int, int]]] = []
    for step in (1, 2, 3):
        ahead.backend.during[step] = lambda: seen.append(StepRecord.read(ahead.record_path))
    ahead.put(1, texts(3 * BATCH))
    ahead.run(1)
    steps = [range(2 * BATCH), range(BATCH, 2 * BATCH), range(2 * BATCH, 3 * BATCH)]
    assert [sorted(names) for names in seen] == [[(1, i) for i in step] for step in steps]
    assert StepRecord.read(ahead.record_path) == []


def test_a_text_that_two_launched_steps_hold_is_done_with_the_second(ahead: Bench) -> None:
    """vLLM computes a part of it in each; nothing is left of it in the worker then."""
    collect = ahead.backend.collect
    late: list[tuple[str, Rows]] = []

    def in_parts() -> list[tuple[str, Rows]]:
        finished = collect()
        if ahead.backend.collected == 1:
            late.append(finished.pop())
            return finished
        return finished + [late.pop() for _ in late]

    ahead.backend.collect = in_parts
    ahead.put(1, texts(2 * BATCH + 1))
    assert list(ahead.run(1)) == [1]


def test_a_job_alone_has_both_steps(ahead: Bench) -> None:
    """Nothing is launched beside a job that runs alone, before it or behind it."""
    ahead.put(1, texts(2 * BATCH))
    ahead.backend.during[1] = lambda: ahead.put(2, texts(1), ALONE)
    ahead.backend.during[2] = lambda: ahead.put(3, texts(2 * BATCH))
    at_work: list[list[tuple[int, int]]] = []
    ahead.backend.during[3] = lambda: at_work.append(StepRecord.read(ahead.record_path))
    ahead.run(3)
    assert [set(ahead.backend.jobs_in(step)) for step in (1, 2, 3, 4)] == [{1}, {1}, {2}, {3}]
    assert at_work == [[(2, 0)]]


def test_a_cancelled_job_leaves_a_launched_step(ahead: Bench) -> None:
    """Results for a job that was cancelled are dropped; the others are answered."""
    for job in (1, 2, 3):
        ahead.put(job, texts(BATCH))
    ahead.backend.during[1] = lambda: ahead.cancel(2)
    assert set(ahead.run(2)) == {1, 3}
    assert [set(ahead.backend.jobs_in(step)) for step in (1, 2, 3)] == [{1}, {2}, {3}]

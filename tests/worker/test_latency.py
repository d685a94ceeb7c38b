"""Nobody waits long for somebody else: not on the gateway's event loop, not in the engine's queue."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests import texts
from tests.conftest import MINILM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from tests.conftest import RunningGateway
    from tests.worker.conftest import Gateways

pytestmark = pytest.mark.engine

MODEL = MINILM["model_name"]
CLIENTS = 16
MOST_CPU_S = 0.05
MOST_STEPS = 2
LARGEST = [f"text {number}" for number in range(2048)]
OVERTAKES, ROUNDS, TRIES = 3, 20, 3


class Stopwatch:
    """Measures every callback of the gateway's event loop on the clock of its thread, which only
    counts CPU time.

    uvloop's callbacks are compiled and cannot be watched, so the gateway under the watch runs on
    asyncio's own loop: same callbacks, same code of ours in them.
    """

    def __init__(self) -> None:
        self.restart()
        self._run = asyncio.events.Handle._run

    def restart(self) -> None:
        """Forget what was measured."""
        self.calls = 0
        self.longest_s = 0.0
        self.longest_was = ""

    def measure(self, handle: asyncio.Handle) -> None:
        """Stand in for `Handle._run`."""
        before = time.thread_time()
        self._run(handle)  # type: ignore[no-untyped-call]
        spent_s = time.thread_time() - before
        if threading.current_thread().name == "gateway":
            self.calls += 1
            if spent_s > self.longest_s:
                callback = handle._callback  # type: ignore[attr-defined]
                self.longest_s, self.longest_was = (
                    spent_s,
                    repr(getattr(callback, "__self__", callback)),
                )


@pytest.fixture(scope="module")
def stopwatch() -> Iterator[Stopwatch]:
    """Watch all callbacks of this module's gateway."""
    watch = Stopwatch()

    def run(handle: asyncio.Handle) -> None:  # a bound method would not be given the handle
        watch.measure(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.events.Handle, "_run", run)
        yield watch


@pytest.fixture(scope="module")
def watched(
    stopwatch: Stopwatch,
    start_gateway: Callable[..., RunningGateway],
    request: pytest.FixtureRequest,
) -> Iterator[RunningGateway]:
    """Return a gateway with MiniLM on asyncio's own event loop."""
    gateway = start_gateway(**MINILM, new_loop=asyncio.new_event_loop, wait=False)
    request.getfixturevalue("tiny")  # what others need loads meanwhile, on the other core
    gateway.wait_ready()
    yield gateway
    gateway.stop()


def requests() -> list[dict[str, Any]]:
    """Return 64 requests of every size and encoding, the largest of them refused."""
    prose = texts.varied(240)
    small = [{"input": prose[number]} for number in range(0, 240, 6)]
    batches = [
        {"input": prose[start : start + 32], "encoding_format": "base64"}
        for start in range(0, 64, 8)
    ]
    ids = [{"input": [[791, 6864, 315, 9822] * 2] * 64}, {"input": [791, 6864, 315, 9822]}] * 4
    large = [
        {"input": LARGEST},
        {"input": LARGEST, "encoding_format": "base64"},
        {"input": ["word " * 160] * 2048},
        {"input": [[3492] * 160] * 2048},
    ]
    long = [
        {"input": texts.long_text(100_000), "truncate": truncate} for truncate in ("right", "left")
    ]
    wrong = [{"input": ["a"] * 5000}, {"input": [1.5]}]
    return [*large, *long, *wrong, *ids, *batches, *small]


def test_no_callback_keeps_the_loop(watched: RunningGateway, stopwatch: Stopwatch) -> None:
    """Under 16 concurrent clients no callback of the event loop uses more than 50 ms of CPU time."""
    for _ in range(TRIES):  # others use the same cores
        stopwatch.restart()  # start-up, while nobody waits, may take longer
        with watched.client(timeout=300) as http, ThreadPoolExecutor(CLIENTS) as threads:
            answers = list(
                threads.map(
                    lambda body: http.post("/v1/embeddings", json={"model": MODEL, **body}),
                    requests(),
                )
            )
        if stopwatch.longest_s <= MOST_CPU_S:
            break
    assert [answer.status_code for answer in answers] == [
        200,
        200,
        400,
        400,
        200,
        200,
        400,
        400,
    ] + [200] * 56
    assert stopwatch.calls > 500  # it did watch
    assert stopwatch.longest_s <= MOST_CPU_S, stopwatch.longest_was


def test_one_text_overtakes_two_thousand(tiny: Gateways, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lone text that arrives while 2,048 are computed is done after two steps at most."""
    gateway = tiny["tiny-xlmr"]
    (model,) = gateway.gateway.service.models
    (replica,) = model.engine.replicas
    steps: list[int] = []
    run = replica.run

    async def watch(batch: Any, **options: Any) -> Any:
        result = await run(batch, **options)
        if len(batch.ids) == 1:
            steps.append(result.steps)
        return result

    monkeypatch.setattr(replica, "run", watch)
    with gateway.client(timeout=300) as http, ThreadPoolExecutor(1) as thread:

        def embed(inputs: str | list[str]) -> httpx.Response:
            return http.post(
                "/v1/embeddings",
                json={"model": model.name, "input": inputs, "encoding_format": "base64"},
            )

        overtook = 0
        for _ in range(ROUNDS):  # a fast machine may be done with one before a text can come
            large = thread.submit(embed, LARGEST)
            while not (replica.outstanding_tokens or large.done()):
                time.sleep(0.001)
            while not large.done():
                assert embed("a text that somebody waits for").status_code == 200
                overtook += not large.done()
            assert large.result().status_code == 200
            if overtook >= OVERTAKES:
                break
    assert overtook >= OVERTAKES, "no text overtook the large requests"
    assert max(steps) <= MOST_STEPS

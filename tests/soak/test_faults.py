"""Death and standstill of real processes, long saturation: how soon each is seen."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.soak.conftest import MODEL, WORDS, Load, post, session
from tests.test_cli import is_running

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.soak.conftest import Server

    Record = Callable[[str, str, str], None]

pytestmark = [pytest.mark.engine, pytest.mark.soak]

SATURATED_S = float(os.environ.get("SATURATED_S", "600"))
MEMORY_GROWTH = 0.02


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    """Return a fresh gateway; requests may outlive a restart of the engine."""
    return serve(request_timeout_s=300)


HTTP = httpx.Client(timeout=300)  # making one takes long enough for others to finish


def ask(server: Server, texts: int) -> int:
    """Send one request; return its status."""
    body = {
        "model": MODEL,
        "input": [f"{number} {' '.join(WORDS[:60])}" for number in range(texts)],
    }
    return HTTP.post(f"{server.url}/v1/embeddings", json=body).status_code


def begin(threads: ThreadPoolExecutor, server: Server, texts: int, requests: int = 1) -> list[Any]:
    """Send requests and return once all of them have been admitted and the engine works on them."""
    pending = [threads.submit(ask, server, texts) for _ in range(requests)]
    while (
        HTTP.get(f"{server.url}/stats").json()["models"][MODEL]["queued_tokens"]
        < requests * texts * 60
    ):
        assert not any(request.done() for request in pending), "too fast to be interrupted"
        time.sleep(0.005)
    return pending


def test_a_killed_engine(server: Server, record: Record) -> None:
    """SIGKILL of the only engine: not ready and refusing within 2 s, nothing accepted lost."""
    with ThreadPoolExecutor(8) as threads:
        pending = begin(threads, server, 200, requests=6)
        (worker,) = server.children()
        os.kill(worker, signal.SIGKILL)
        unready_s = server.until_ready(ready=False, seconds=30)
        began = time.monotonic()
        refused = ask(server, 1)
        refused_s = time.monotonic() - began
        back_s = server.until_ready(seconds=300)
        statuses = [request.result() for request in pending]
    assert statuses == [200] * 6
    assert refused == 503
    assert max(unready_s, refused_s) <= 2
    record("Engine killed: seen at `/readyz` after", "≤ 2 s", f"{unready_s:.2f} s")
    record("Engine killed: a new request gets its 503 after", "≤ 2 s", f"{refused_s:.3f} s")
    record("Engine killed with 6 requests in it: lost", "0", "0")
    record("Engine killed: the next one serves after", "", f"{back_s:.1f} s")


def test_a_stopped_engine(server: Server, record: Record) -> None:
    """SIGSTOP of the engine is found within 15 s, and what it held is answered by the next one."""
    with ThreadPoolExecutor(4) as threads:
        (pending,) = begin(threads, server, 500)
        (worker,) = server.children()
        os.kill(worker, signal.SIGSTOP)
        seconds = server.until_ready(ready=False, seconds=60)
        server.until_ready(seconds=300)
        assert pending.result() == 200
    assert seconds <= 15
    record("Engine stopped (SIGSTOP): found after", "≤ 15 s", f"{seconds:.1f} s")


def test_a_killed_gateway(server: Server, record: Record) -> None:
    """SIGKILL of the gateway leaves no engine behind, although one is in a step."""
    with ThreadPoolExecutor(1) as threads:
        begin(threads, server, 500)
        workers = server.children()
        server.stop(signal.SIGKILL)
        began = time.monotonic()
        while any(is_running(pid) for pid in workers):
            assert time.monotonic() - began < 30
            time.sleep(0.01)
        seconds = time.monotonic() - began
    assert seconds <= 5
    record("Gateway killed: its engine is gone after", "≤ 5 s", f"{seconds:.2f} s")


def test_sigterm_while_loading(serve: Callable[..., Server], record: Record) -> None:
    """SIGTERM while vLLM loads ends everything within 5 s, with status 0."""
    server = serve(wait=False)
    server.wait_for("loading")
    time.sleep(3)  # well within vLLM's imports
    workers = server.children()
    began = time.monotonic()
    assert server.stop() == 0
    seconds = time.monotonic() - began
    assert workers
    assert not any(is_running(pid) for pid in workers)
    assert seconds <= 5
    record("SIGTERM while loading: gone after", "≤ 5 s", f"{seconds:.2f} s")


def test_draining_real_work(server: Server, record: Record) -> None:
    """SIGTERM under load: every accepted request is answered, and the status is 0."""
    with ThreadPoolExecutor(8) as threads:
        pending = begin(threads, server, 60, requests=8)
        began = time.monotonic()
        assert server.stop() == 0
        seconds = time.monotonic() - began
        statuses = [request.result() for request in pending]
    assert statuses == [200] * 8
    record(
        "SIGTERM with 8 requests of 60 texts: lost; gone after", "0; ≤ 30 s", f"0; {seconds:.1f} s"
    )


async def test_no_false_alarm(serve: Callable[..., Server], tmp_path: Path, record: Record) -> None:
    """Saturation with texts of all lengths kills no worker; memory and descriptors stay."""
    from tests import checkpoints

    server = serve(
        model_name=MODEL,
        model_path=str(checkpoints.tiny_bge_m3(tmp_path)),
        max_queued_tokens=200_000,
        engine_args={"max_num_batched_tokens": 8192},
        enforce_eager=True,
    )
    long = json.dumps(
        {"model": MODEL, "input": " ".join(["fox"] * 8000), "encoding_format": "base64"}
    ).encode()
    # A Unigram or BPE tokenizer keeps the first 10,000 words that it reads, which takes 8.5 MB of
    # such numbers.
    numbers = {
        "model": MODEL,
        "input": " ".join(map(str, range(10**13, 10**13 + 10_000))),
        "truncate": "right",
    }
    async with session() as http:
        assert await post(http, server.url, long) == 200
        assert await post(http, server.url, json.dumps(numbers).encode()) == 200
    idle = server.tasks()
    loads = [Load(server) for _ in range(3)]
    samples: list[tuple[int, int]] = []

    async def watch() -> None:
        await asyncio.sleep(SATURATED_S / 5)  # what is allocated once
        while True:
            samples.append((server.memory(), server.descriptors()))
            await asyncio.sleep(SATURATED_S / 50)

    watching = asyncio.create_task(watch())
    await asyncio.gather(
        loads[0].run(SATURATED_S, clients=2, texts=1, bodies=[long]),
        loads[1].run(SATURATED_S, clients=8, texts=1),
        loads[2].run(SATURATED_S, clients=4, texts=100),
    )
    watching.cancel()
    assert [load.failed for load in loads] == [[], [], []]
    assert all(load.seconds_of.keys() <= {200, 429} for load in loads)
    deaths = [event for event in server.events() if event["event"] in ("engine_died", "job_lost")]
    assert deaths == []
    third = len(samples) // 3
    growth = _mean(m for m, _ in samples[-third:]) / _mean(m for m, _ in samples[:third]) - 1
    files = max(f for _, f in samples[-third:]) - max(f for _, f in samples[:third])
    answered = sum(len(load.seconds_of.get(200, [])) for load in loads)
    minutes = f"{SATURATED_S / 60:.0f} min"
    record(
        f"Saturation, 8,192-token texts included: false alarms in {minutes}",
        "0",
        f"0 in {answered} requests",
    )
    tasks = await asyncio.to_thread(server.tasks) - idle
    grown = f"{growth:+.1%}; {files:+d}; {tasks:+d}"
    record(
        "Growth of the gateway meanwhile: memory; descriptors; tasks when idle",
        "< 2 %; 0; 0",
        grown,
    )
    assert growth < MEMORY_GROWTH
    assert tasks <= 0
    assert server.stop() == 0


def _mean(values: Any) -> float:
    listed = list(values)
    return float(sum(listed) / len(listed))

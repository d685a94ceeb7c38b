"""Under load: what a refusal costs, what accepted work keeps, who overtakes whom, and slow clients."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.soak.conftest import MODEL, Load, post, session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import aiohttp

    from tests.soak.conftest import Server

    Record = Callable[[str, str, str], None]

pytestmark = [pytest.mark.engine, pytest.mark.soak]

SECONDS = float(os.environ.get("SOAK_S", "8"))
ROUNDS = 5


@pytest.fixture(scope="module")
def server(serve: Callable[..., Server]) -> Iterator[Server]:
    """Return a gateway whose queue holds two steps, with a cache."""
    running = serve(max_queued_tokens=8192, cache_max_bytes=64 << 20)
    yield running
    running.stop()


async def test_a_warm_hit(server: Server, record: Record) -> None:
    """A cached text is answered in at most 3 ms (median) while nothing else goes on."""
    body = json.dumps({"model": MODEL, "input": "a warm hit", "encoding_format": "base64"}).encode()
    async with session() as http:
        times = []
        for _ in range(1000):
            began = time.monotonic()
            assert await post(http, server.url, body) == 200
            times.append(1000 * (time.monotonic() - began))
    median = statistics.median(times[10:])
    record("A warm cache hit on an idle engine, p50, client included", "≤ 3 ms", f"{median:.2f} ms")
    assert median <= 3


async def test_a_refusal_is_cheap_and_disturbs_nobody(server: Server, record: Record) -> None:
    """At ten times the load, refusals stay cheap and what was admitted is computed as fast as
    before.

    Work comes in requests of 32 texts. Three clients fill the engine; ten times as many offer ten
    times as much. They come back after a second, as `Retry-After` asks.
    """
    await Load(server).run(2, clients=2, texts=32)
    kept, costs = [], []
    for _ in range(ROUNDS):
        alone = await Load(server).run(SECONDS, clients=3, texts=32)
        quiet = await _refusals(server, alone)
        crowd = await _crowd(server, SECONDS)
        assert not alone.failed + crowd.failed
        kept.append(crowd.texts_per_s / alone.texts_per_s)
        costs.append(crowd.median_ms(429) / quiet)
    record(
        "Accepted work at 10 × load, of its throughput without",
        "≥ 95 %",
        f"{statistics.median(kept):.0%} ({min(kept):.0%}–{max(kept):.0%})",
    )
    record(
        "A refusal at 10 × load, of what it costs without",
        "≤ 3 ×",
        f"{statistics.median(costs):.1f} × ({min(costs):.1f}–{max(costs):.1f})",
    )


async def _refusals(server: Server, load: Load) -> float:
    """Return the median ms of a lone refusal while one request fills the queue."""
    times: list[float] = []
    async with session() as http:
        while len(times) < 15:
            filling = asyncio.create_task(post(http, server.url, load.body(110, 40)))
            await asyncio.sleep(0.05)
            body = load.body(32, 40)
            began = time.monotonic()
            if await post(http, server.url, body) == 429:
                times.append(1000 * (time.monotonic() - began))
            assert await filling == 200
    return statistics.median(times)


async def _crowd(server: Server, seconds: float) -> Load:
    """Offer ten times what three clients do."""
    load = Load(server)
    until = time.monotonic() + seconds

    async def polite(http: aiohttp.ClientSession) -> None:
        while time.monotonic() < until:
            body = load.body(32, 40)
            began = time.monotonic()
            status = await post(http, server.url, body)
            load.count(status, began, 32)
            if status != 200:
                assert status == 429
                await asyncio.sleep(1)

    async with session() as http, asyncio.TaskGroup() as group:
        for _ in range(30):
            group.create_task(polite(http))
    return load


async def test_bulk_is_not_starved(server: Server, record: Record) -> None:
    """While one-text requests keep coming, bulk requests keep at least half of the engine."""
    shares, waits = [], []
    for _ in range(ROUNDS):
        alone = await Load(server).run(SECONDS / 2, clients=1, texts=100)
        bulk, interactive = Load(server), Load(server)
        await asyncio.gather(
            bulk.run(SECONDS, clients=1, texts=100), interactive.run(SECONDS, clients=16, texts=1)
        )
        assert not alone.failed + bulk.failed + interactive.failed
        shares.append(bulk.texts_per_s / alone.texts_per_s)
        waits.append(interactive.median_ms())
    record(
        "Bulk work beside 16 interactive clients, of its throughput alone",
        "≥ 50 %",
        f"{statistics.median(shares):.0%} ({min(shares):.0%}–{max(shares):.0%}); "
        f"their p50 {statistics.median(waits):.0f} ms",
    )


async def test_slow_clients_are_not_felt(server: Server, record: Record) -> None:
    """A thousand connections without whole headers leave others' times as they were."""
    host, port = server.url.removeprefix("http://").split(":")
    ratios = []
    for _ in range(ROUNDS):
        quiet = await Load(server).run(SECONDS / 2, clients=4, texts=1)
        writers = [(await asyncio.open_connection(host, int(port)))[1] for _ in range(1000)]
        for writer in writers:
            writer.write(b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\nx-slow: ")
        crowded = await Load(server).run(SECONDS / 2, clients=4, texts=1)
        assert not quiet.failed + crowded.failed
        ratios.append(crowded.median_ms() / quiet.median_ms())
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)
    record(
        "Median latency beside 1,000 slow connections, of that without",
        "1 within the noise",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
    )


async def test_redis_that_hangs_is_not_waited_for(
    serve: Callable[..., Server], record: Record
) -> None:
    """A Redis that takes connections and never answers costs 20 ms three times, and then nothing."""

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass
        writer.close()

    black_hole = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port = black_hole.sockets[0].getsockname()[1]
    hanging = serve(
        redis_url=f"redis://127.0.0.1:{port}",
        rate_limit_requests="1000000/minute",
        cache_max_bytes=1 << 20,
    )
    plain = serve(cache_max_bytes=1 << 20)
    body: Any = json.dumps({"model": MODEL, "input": "known", "encoding_format": "base64"}).encode()
    options = {"clients": 1, "texts": 1, "bodies": [body]}
    pairs = [
        (await Load(hanging).run(2, **options), await Load(plain).run(2, **options))
        for _ in range(ROUNDS)
    ]
    assert not [failure for pair in pairs for load in pair for failure in load.failed]
    assert all(load.seconds_of.keys() == {200} for pair in pairs for load in pair)
    slower = [with_.median_ms() - without.median_ms() for with_, without in pairs]
    worst = max(max(with_.seconds_of[200]) for with_, _ in pairs)
    record(
        "Redis hangs: added to a cached answer, p50; slowest answer",
        "0 failed",
        f"{statistics.median(slower):.2f} ms; {1000 * worst:.0f} ms; 0 failed",
    )
    hanging.stop()
    plain.stop()
    black_hole.close()
    await asyncio.sleep(0.2)  # its ends of the connections close

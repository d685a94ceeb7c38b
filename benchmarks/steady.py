"""Servers under a load that does not pause, without its beginning and end: `python -m benchmarks.steady gateway vllm`.

All stay up; one after another, in random order, is loaded by clients that never stop, two seconds are left out and the
next ones counted. `make bench` sends a number of texts instead, whose first and last steps are not full.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
from tokenizers import Tokenizer

from benchmarks import models, texts
from benchmarks.load import HEADERS, Cell
from benchmarks.servers import MODEL, SERVERS, Server, Setup

if TYPE_CHECKING:
    from collections.abc import Iterator

LEFT_OUT_S = 2.0
MOST_TEXTS_PER_S = 400  # so many are prepared


async def load(server: Server, bodies: list[bytes], cell: Cell, seconds: float) -> dict[str, float]:
    """Return texts/s, p50 (ms) and the CPU of the server's first process a request (ms)."""
    ended: list[tuple[float, float]] = []
    waiting, stop = iter(bodies), asyncio.Event()

    async def client(session: aiohttp.ClientSession, bodies: Iterator[bytes]) -> None:
        for body in bodies:
            began = time.perf_counter()
            async with session.post(server.url, data=body, headers=HEADERS) as response:
                answer = await response.read()
                assert response.status == 200, answer[:300]
            ended.append((time.perf_counter(), time.perf_counter() - began))
            if stop.is_set():
                return
        assert stop.is_set(), "too few texts were prepared"

    def cpu() -> float:
        assert server.process is not None
        return sum(server.process.cpu_times()[:2])

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session, asyncio.TaskGroup() as group:
        for _ in range(cell.clients):
            group.create_task(client(session, waiting))
        await asyncio.sleep(LEFT_OUT_S)
        began, before = time.perf_counter(), cpu()
        await asyncio.sleep(seconds)
        end, after = time.perf_counter(), cpu()
        stop.set()
    counted = [took for when, took in ended if began <= when <= end]
    return {
        "texts/s": len(counted) * cell.size / (end - began),
        "p50, ms": statistics.median(counted) * 1000,
        "CPU a request, ms": (after - before) / len(counted) * 1000,
    }


async def measure(options: argparse.Namespace, folder: Path) -> None:
    """Print a line for each round and server, then medians with quartiles of the first server over each."""
    model = models.find(options.model)
    tokenizer = Tokenizer.from_file(str(model.path / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    count = int((options.seconds + 2 * LEFT_OUT_S) * MOST_TEXTS_PER_S)
    with ExitStack() as stack:
        servers = [SERVERS[name](Setup(model, folder)) for name in options.servers]
        for server in servers:
            server.start()
            stack.callback(server.stop)
            await server.wait_ready()
        found: dict[str, list[dict[str, float]]] = {server.name: [] for server in servers}
        for turn in range(-1, options.rounds):  # -1 warms up
            made = texts.make(count, tokens=options.cell.tokens, tokenizer=tokenizer, seed=turn + 1)
            bodies = options.cell.bodies(made, MODEL)
            for server in random.sample(servers, len(servers)):
                sample = await load(server, bodies, options.cell, options.seconds)
                if turn >= 0:
                    found[server.name].append(sample)
                    print(turn, server.name, {name: round(value, 2) for name, value in sample.items()}, flush=True)
    first = found[servers[0].name]
    for name, samples in found.items():
        for what in samples[0]:
            ratios = [mine[what] / its[what] for mine, its in zip(first, samples, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            median = statistics.median(sample[what] for sample in samples)
            print(f"{name}, {what}: {median:.2f}; {servers[0].name} / it {middle:.3f} ({low:.3f} to {high:.3f})")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("servers", nargs="+", choices=SERVERS)
    parser.add_argument("--model", default="minilm", choices=models.NAMES)
    parser.add_argument("--cell", type=Cell.parse, default=Cell(64, 1), help="CLIENTSxTEXTS[xTOKENS][:float]")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=10)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(parser.parse_args(), Path(folder)))


if __name__ == "__main__":
    main()

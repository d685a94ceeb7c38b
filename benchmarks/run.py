"""`make bench`: this gateway beside its peers and the machine's limits, in turn on one machine.

Every server is started here, one after another, shown to give the same vectors, and then loaded in
turn, so that a slow minute of the machine hits all alike: a figure is the median over the rounds of
the ratio within a round, with its quartiles. The load does not pause, and its beginning and end do
not count. In a cell every server is sent the same texts, which are new in every round. `ceiling` is
offline `LLM.embed` with the gateway's engine settings, and the matrix rate is measured on its
threads in every round. `openvino` and `onnxruntime` are those libraries without any server, which
are handed token ids, no more than 32 texts a call.

    make bench                                                    # about half an hour on two cores
    make bench ARGS="--rounds 3"                                  # shorter, with wider quartiles
    make bench ARGS="--model one-layer --servers gateway vllm"
    make bench ARGS="--model qwen3-0.6b --servers gateway --cells 8x1x400 --seconds 12"
    make bench ARGS="--servers gateway openvino --cells 1x1 8x32 --no-ceiling"
    make bench ARGS="--servers gateway warm --cells 64x1"
    make bench ARGS="--servers gateway --cells 1x32 1x512 1x2048"
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from benchmarks import load, models, reference, report, runtimes, servers, texts
from benchmarks.load import Cell, Sample
from benchmarks.servers import MODEL, SERVERS, NotRunning, Setup

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from benchmarks.servers import Offline, Server

CELLS = ("1x1", "8x32", "64x1")
PEERS = ("gateway", "vllm", "vllm-defaults", "infinity", "naive", "async-llm", *runtimes.NAMES)
RUNTIME_BATCH = 32  # texts a call
LEAST_COSINE = 0.999


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=models.NAMES, default="minilm")
    parser.add_argument("--servers", nargs="+", choices=(*SERVERS, *runtimes.NAMES), default=PEERS)
    parser.add_argument(
        "--cells", nargs="+", type=Cell.parse, default=[*map(Cell.parse, CELLS)], metavar="CELL"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--seconds", type=float, default=3, help="count so long, or to the next answer"
    )
    parser.add_argument("--starts", type=int, default=1, help="start every server so many times")
    parser.add_argument(
        "--no-ceiling", action="store_true", help="leave out offline embedding and the matrix rate"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--memory", type=float, default=0.2, help="each server's share of the device's memory"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=models.SCRATCH,
        help="folder for the JSON, the plot and the logs",
    )
    return parser.parse_args(arguments)


async def measure(options: argparse.Namespace) -> report.Run:
    """Start everything, measure, end everything."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    model = models.find(options.model)
    tokenizer = Tokenizer.from_file(str(model.path / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    with ExitStack() as stack:
        folder = options.out / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        setup = Setup(model, folder, options.device, options.memory)
        found = report.Run(model=model, rounds=options.rounds)
        running = await start_all(setup, options, found, stack)
        sample = texts.make(32, tokens=50, tokenizer=tokenizer, seed=0)
        expected = reference.vectors(model, sample)
        running = await agreeing(running, sample, expected, found)
        offline = start_offline(setup, options, found, stack)
        ids = [encoding.ids for encoding in tokenizer.encode_batch(sample)]
        check_offline(offline, ids, expected, found)
        waves: dict[Cell, int] = {}
        for turn in range(-1, options.rounds):  # -1 warms up, and shows how many texts a cell takes
            for cell in options.cells:
                wave, counted = cell.clients * cell.size, waves.get(cell, 1)
                prepared = wave * (
                    2 * counted + 3
                )  # before, while and after it counts, with room for a fast minute
                made = texts.make(prepared, tokens=cell.tokens, tokenizer=tokenizer, seed=turn + 1)
                samples = await one_round(
                    cell, made, running, options.seconds, backwards=bool(turn % 2)
                )
                ids = [encoding.ids for encoding in tokenizer.encode_batch(made[: wave * counted])]
                for name, process in offline.items():
                    most = wave if name == "ceiling" else RUNTIME_BATCH
                    samples[name] = process.sample(ids, min(wave, most))
                rate = None
                if "ceiling" in offline:
                    shape = {"products": model.products, "rows": wave * cell.tokens, "seconds": 0.5}
                    rate = offline["ceiling"].ask(rate=shape)["flop_per_s"]
                if turn >= 0:
                    found.add(cell, samples, rate)
                else:
                    fastest = max(s.texts_per_s for name, s in samples.items() if name != "warm")
                    waves[cell] = math.ceil(fastest * options.seconds / wave)
            print(f"round {turn + 1} of {options.rounds}", file=sys.stderr, flush=True)
        found.pss_mb = {server.name: server.pss_mb() for server in running}
    return found


def start_offline(
    setup: Setup, options: argparse.Namespace, found: report.Run, stack: ExitStack
) -> dict[str, Offline]:
    """Start what has no server, one after another; who cannot start is told."""
    wanted = [name for name in options.servers if name in runtimes.NAMES]
    wanted += [] if options.no_ceiling else ["ceiling"]
    running = {}
    for name in wanted:
        try:
            is_ceiling = name == "ceiling"
            process = servers.ceiling(setup) if is_ceiling else servers.runtime(setup, name)
            stack.callback(process.stop)
            found.ready_s[name] = [process.wait_ready()]
        except NotRunning as error:
            print(error, file=sys.stderr)
            continue
        running[name] = process
    return running


def check_offline(
    offline: dict[str, Offline], ids: list[list[int]], expected: np.ndarray, found: report.Run
) -> None:
    """Leave out the runtimes that do not give the expected vectors; the ceiling is vLLM's own."""
    for name in runtimes.NAMES:
        if name in offline:
            vectors = offline[name].ask(vectors=ids)["vectors"]
            cosine = float((expected * vectors).sum(axis=1).min())
            if not kept(name, cosine, found):
                del offline[name]


async def start_all(
    setup: Setup, options: argparse.Namespace, found: report.Run, stack: ExitStack
) -> list[Server]:
    """Start the servers in turn, `--starts` times, and leave them running; name failures."""
    made = []
    for name in options.servers:
        if name in runtimes.NAMES:
            continue
        try:
            made.append(SERVERS[name](setup))
        except NotRunning as error:
            print(error, file=sys.stderr)
    running = []
    for turn in range(options.starts):
        for server in made:
            server.stop()
            server.start()
            stack.callback(server.stop)
            try:
                found.ready_s.setdefault(server.name, []).append(await server.wait_ready())
            except NotRunning as error:
                print(error, file=sys.stderr)
                continue
            print(f"{server.name} is ready", file=sys.stderr, flush=True)
            if turn == options.starts - 1:
                running.append(server)
            else:
                server.stop()
    return running


async def agreeing(
    running: list[Server], sample: list[str], expected: np.ndarray, found: report.Run
) -> list[Server]:
    """Return the servers with the expected vectors in both formats, and name the others."""
    right = []
    for server in running:
        both = [
            await load.vectors(server.url, sample, MODEL, encoding)
            for encoding in ("float", "base64")
        ]
        cosine = float(min((expected * other).sum(axis=1).min() for other in both))
        if kept(server.name, cosine, found):
            right.append(server)
    return right


def kept(name: str, cosine: float, found: report.Run) -> bool:
    """Note a server's least cosine to transformers, and tell whether that is near enough."""
    found.cosine[name] = cosine
    if cosine < LEAST_COSINE:
        print(f"{name} is left out: its vectors differ, cosine {cosine:.4f}", file=sys.stderr)
    return cosine >= LEAST_COSINE


async def one_round(
    cell: Cell, made: list[str], running: list[Server], seconds: float, *, backwards: bool
) -> dict[str, Sample]:
    bodies = cell.bodies(made, MODEL)
    samples = {}
    for server in reversed(running) if backwards else running:
        if server.prefilled:
            await load.send(server.url, bodies, cell)
        samples[server.name] = await load.run(server.url, bodies, cell, seconds)
    return samples


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # servers have sessions of their own: end them here too
    found = asyncio.run(measure(options))
    print(report.markdown(found))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.model}.json").write_text(report.as_json(found))
    (options.out / f"{options.model}.svg").write_text(report.plot(found))
    print(f"\nwritten: {options.out / options.model}.json, .svg", file=sys.stderr)


if __name__ == "__main__":
    main()

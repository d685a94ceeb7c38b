"""Does the device wait for Python? A stand-in for one, behind the worker's real steps, through HTTP.

    python -m benchmarks.device [--steps-ms 22 44 88] [--replicas 1 2] [--ahead 2] [--rounds 5]
    python -m benchmarks.device --model FOLDER    # a decoder's steps go through vLLM's scheduler

A step of 256 texts takes so many milliseconds and no processor, as on a GPU; inputs are token ids.
The times are tried in turn, round by round, and with them a device that takes no time: what the
path itself gives. A row has the medians of the texts/s, the rate of the device alone, the path's
own rate, and the texts/s over the lesser of the two within a round, with its quartiles.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import yaml

from benchmarks import load, models
from benchmarks.load import Cell

STEP_FILE = "BENCHMARK_STEP_FILE"  # names the file with a step's milliseconds
AHEAD = "BENCHMARK_AHEAD"
CELL = Cell(8, 256)

if TYPE_CHECKING or STEP_FILE in os.environ:
    import torch
    from vllm.v1.executor.uniproc_executor import UniProcExecutor
    from vllm.v1.outputs import ModelRunnerOutput

    class Later(Future[ModelRunnerOutput]):
        """A result that is there at a time."""

        def __init__(self, output: ModelRunnerOutput, ready_at: float) -> None:
            super().__init__()
            self.set_result(output)
            self.ready_at = ready_at

        def result(self, timeout: float | None = None) -> ModelRunnerOutput:
            time.sleep(max(0.0, self.ready_at - time.monotonic()))
            return super().result(timeout)

    class Device(UniProcExecutor):
        """Computes nothing: a step takes its time, and begins when the one before has ended."""

        free_at = 0.0
        vector = torch.ones(384)

        def _init_executor(self) -> None:
            super()._init_executor()
            # vLLM turns it off on CPUs, which compute a step when it is launched.
            self.vllm_config.scheduler_config.async_scheduling = os.environ[AHEAD] != "1"

        def execute_model(self, scheduler_output: Any, *, non_block: bool = False) -> Any:
            texts = list(scheduler_output.num_scheduled_tokens)
            step_s = float(Path(os.environ[STEP_FILE]).read_text()) / 1000
            self.free_at = max(self.free_at, time.monotonic()) + step_s
            places = {name: index for index, name in enumerate(texts)}
            output = ModelRunnerOutput(texts, places, pooler_output=[self.vector] * len(texts))
            later = Later(output, self.free_at)
            return later if non_block else later.result()


def bodies(tokens: int) -> list[bytes]:
    """Return requests of 256 texts as token ids, no two texts alike."""
    numbers = random.Random(0)
    made = []
    for _ in range(32):
        texts = [numbers.choices(range(10, 200), k=tokens) for _ in range(CELL.size)]
        made.append(orjson.dumps({"model": "m", "encoding_format": "base64", "input": texts}))
    return made


def settings(model: Path, replicas: int, ahead: int) -> dict[str, Any]:
    """Return the gateway's."""
    engine_args = {
        "distributed_executor_backend": "benchmarks.device.Device",
        "max_num_seqs": ahead * 256,
        "max_num_batched_tokens": 16384,
    }
    return {
        "model_name": "m",
        "model_path": str(model),
        "device": "cpu",
        "replicas": replicas,
        "engine_args": engine_args,
        "token_ids": "native",
        "cache_max_bytes": 0,
        "max_queued_tokens": 1 << 30,
    }


async def measure(
    replicas: int, ahead: int, options: argparse.Namespace
) -> dict[float, list[float]]:
    """Return the texts/s of each round by a step's milliseconds, 0 among them."""
    from benchmarks.gpu import all_ready, gateway

    with tempfile.TemporaryDirectory() as folder:
        step_file = Path(folder, "step_ms")
        os.environ |= {STEP_FILE: str(step_file), AHEAD: str(ahead)}
        _write(step_file, "0")
        config = Path(folder, "device.yaml")
        _write(config, yaml.safe_dump(settings(options.model, replicas, ahead)))
        server = gateway(config, Path(folder), name="device")
        server.start()
        try:
            await all_ready(server)
            return await _rounds(server.url, step_file, options)
        finally:
            server.stop()


def _write(path: Path, text: str) -> None:
    path.write_text(text)


async def _rounds(
    url: str, step_file: Path, options: argparse.Namespace
) -> dict[float, list[float]]:
    times_ms, requests = [0.0, *options.steps_ms], bodies(options.tokens)
    found: dict[float, list[float]] = {step_ms: [] for step_ms in times_ms}
    await load.run(url, requests, CELL, 1)
    for turn in range(options.rounds):
        for step_ms in times_ms if turn % 2 else reversed(times_ms):
            _write(step_file, str(step_ms))
            sample = await load.run(url, requests, CELL, options.seconds)
            found[step_ms].append(sample.texts_per_s)
    return found


def rows(found: dict[float, list[float]], replicas: int) -> list[dict[str, Any]]:
    """Return what is printed of one server: ratios are of one round."""
    paths = found[0.0]
    made = []
    for step_ms, rates in found.items():
        if not step_ms:
            continue
        device = replicas * CELL.size / step_ms * 1000
        ratios = [rate / min(device, path) for rate, path in zip(rates, paths, strict=True)]
        quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        row = {"replicas": replicas, "step_ms": step_ms, "device": round(device)}
        row |= {
            "path": round(statistics.median(paths)),
            "texts_per_s": round(statistics.median(rates)),
        }
        made.append(row | {"of_the_lesser": [round(ratio, 3) for ratio in quartiles]})
    return made


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=models.minilm(), help="its folder")
    parser.add_argument("--steps-ms", nargs="+", type=float, default=[22, 44, 88])
    parser.add_argument("--replicas", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--ahead", nargs="+", type=int, default=[2], help="steps in flight")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--tokens", type=int, default=50)
    options = parser.parse_args()
    for replicas in options.replicas:
        for ahead in options.ahead:
            found = await measure(replicas, ahead, options)
            for row in rows(found, replicas):
                print(json.dumps({"ahead": ahead} | row), flush=True)


if __name__ == "__main__":
    asyncio.run(main())

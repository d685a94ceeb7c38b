"""Does the device wait for Python? A stand-in for one, behind vLLM's real scheduler, through HTTP.

    python -m benchmarks.device [--steps-ms 0 22 44 88] [--replicas 1 2] [--seconds 6]

A step of 256 texts takes so many milliseconds and no processor, as on a GPU; inputs are token ids.
A row has the texts/s, the rate of the device alone, and the texts/s over the lesser of that and of
what the same path gives with a device that takes no time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import yaml

from benchmarks import load, models
from benchmarks.load import Cell

STEP_MS = "BENCHMARK_STEP_MS"
CELL = Cell(8, 256)

if TYPE_CHECKING or STEP_MS in os.environ:
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

        def execute_model(self, scheduler_output: Any, *, non_block: bool = False) -> Any:
            texts = list(scheduler_output.num_scheduled_tokens)
            step_s = float(os.environ[STEP_MS]) / 1000
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
        texts = [numbers.choices(range(1000, 30000), k=tokens) for _ in range(CELL.size)]
        made.append(orjson.dumps({"model": "m", "encoding_format": "base64", "input": texts}))
    return made


def _written(path: Path, settings: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(settings))
    return path


async def measure(step_ms: float, replicas: int, ahead: int, options: argparse.Namespace) -> float:
    """Return texts/s through a gateway of its own."""
    from benchmarks.gpu import all_ready, gateway

    engine_args = {
        "distributed_executor_backend": "benchmarks.device.Device",
        "async_scheduling": ahead > 1,
        "max_num_seqs": ahead * 256,
        "max_num_batched_tokens": 16384,
    }
    settings = {
        "model_name": "m",
        "model_path": str(models.minilm()),
        "device": "cpu",
        "replicas": replicas,
        "engine_args": engine_args,
        "token_ids": "model",
        "cache_max_bytes": 0,
        "max_queued_tokens": 1 << 30,
    }
    os.environ[STEP_MS] = str(step_ms)
    with tempfile.TemporaryDirectory() as folder:
        config = _written(Path(folder, "device.yaml"), settings)
        server = gateway(config, Path(folder), name="device")
        server.start()
        try:
            await all_ready(server)
            sample = await load.run(server.url, bodies(options.tokens), CELL, options.seconds)
        finally:
            server.stop()
    return sample.texts_per_s


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps-ms", nargs="+", type=float, default=[22, 44, 88])
    parser.add_argument("--replicas", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--ahead", nargs="+", type=int, default=[1, 2], help="steps in flight")
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--tokens", type=int, default=50)
    options = parser.parse_args()
    for replicas in options.replicas:
        for ahead in options.ahead:
            path = await measure(0, replicas, ahead, options)
            for step_ms in options.steps_ms:
                found = await measure(step_ms, replicas, ahead, options)
                device = replicas * 256 / step_ms * 1000
                row = {"replicas": replicas, "ahead": ahead, "step_ms": step_ms}
                row |= {"texts_per_s": round(found), "device": round(device), "path": round(path)}
                row["of_the_lesser"] = round(found / min(device, path), 3)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    asyncio.run(main())

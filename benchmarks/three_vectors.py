"""The cost of sparse and ColBERT vectors beside dense ones: BGE-M3's shape, random weights, engine
time.

    python -m benchmarks.three_vectors [--pairs 12] [--texts 4] [--tokens 350] [--dtype auto]

A step with dense alone and one with all three alternate, so that what else the machine does falls
on both; the ratio is taken pair by pair.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time

from benchmarks import models, report

os.environ.setdefault("HF_HUB_OFFLINE", "1")

TARGET = 1.15


def measure(core, prompts, outputs) -> float:
    """Return the seconds of engine steps that the prompts take."""
    for number, ids in enumerate(prompts):
        core.add(str(number), ids, outputs=outputs, boundary=None)
    began = time.perf_counter()
    while core.unfinished:
        core.launch()
        core.collect()
    return time.perf_counter() - began


def compare(core, prompts, pairs: int) -> tuple[list[float], list[float]]:
    """Return the seconds of dense alone and of all three, measured in turn."""
    from embedding_service.types import Output

    kinds = [frozenset({Output.DENSE}), frozenset({Output.DENSE, Output.SPARSE, Output.COLBERT})]
    for outputs in kinds:
        measure(core, prompts, outputs)
    seconds: list[list[float]] = [[], []]
    for number in range(pairs):
        for kind in (0, 1) if number % 2 else (1, 0):
            seconds[kind].append(measure(core, prompts, kinds[kind]))
    return seconds[0], seconds[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=12, help="measurements of each kind")
    parser.add_argument("--texts", type=int, default=4, help="texts in a step")
    parser.add_argument("--tokens", type=int, default=350, help="tokens of a text")
    parser.add_argument(
        "--dtype", default="auto", help="auto: bfloat16 where the hardware has it, else float32"
    )
    options = parser.parse_args()
    from embedding_service.engine.environment import environment
    from embedding_service.settings.model import ModelOptions

    shape = models.find("bge-m3")
    model = ModelOptions(
        model_name="bge-m3",
        model_path=str(shape.path),
        dtype=options.dtype,
        max_model_len=1024,
        gpu_memory_utilization=0.3,
    )
    os.environ.update(environment(model, replica=0))
    from embedding_service.worker.vllm_backend import VllmBackend

    core = VllmBackend(model)
    numbers = random.Random(0)
    prompts = [
        [101, *numbers.choices(range(1000, 30000), k=options.tokens - 2), 102]
        for _ in range(options.texts)
    ]
    dense, everything = compare(core, prompts, options.pairs)
    facts = core.facts(None)
    ratios = sorted(b / a for a, b in zip(dense, everything, strict=True))
    low, _, high = statistics.quantiles(ratios, n=4)
    result = {
        "machine": report.machine(),
        "dtype": facts.dtype,
        "shape": f"{shape.layers} layers, hidden {shape.products[0][0]}",
        "step": f"{options.texts} texts of {options.tokens} tokens",
        "dense_ms": round(statistics.median(dense) * 1000, 1),
        "all_three_ms": round(statistics.median(everything) * 1000, 1),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(low, 3), round(high, 3)],
        "ratio_range": [round(ratios[0], 3), round(ratios[-1], 3)],
        "pairs": options.pairs,
        "within_target": statistics.median(ratios) <= TARGET,
    }
    print(json.dumps(result, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # vLLM's atexit hooks can hang

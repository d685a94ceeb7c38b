"""The worker's engine without gateway, HTTP and tokenizer: where a step's time goes.

    python -m benchmarks.worker MODEL [--texts 256] [--tokens 50] [--steps 40] [--profile]

Steps run one by one, and then with the next one launched before the last is collected, as the
worker does on CUDA; an encoder's also with what the worker leaves out of vLLM. Prints one line of
JSON a way: texts/s, and the milliseconds a step that are spent in adding its texts, in launching
it, and in waiting for it and reading it, and what this thread's processor took of them.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import random
import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from benchmarks import models

os.environ.setdefault("HF_HUB_OFFLINE", "1")

if TYPE_CHECKING:
    from embedding_service.worker.backend import Backend


class Clock:
    """Seconds by the name of what they were spent on."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.spent[name] += now - self.last
        self.last = now


def run(backend: Backend, inputs: list[Any], *, steps: int, ahead: int) -> dict[str, float]:
    """Compute the same inputs `steps` times, with so many steps launched at a time."""
    from embedding_service.types import Output

    dense, clock = frozenset({Output.DENSE}), Clock()
    in_flight = 0
    began, own = time.perf_counter(), time.thread_time()
    for step in range(steps):
        for index, ids in enumerate(inputs):
            backend.add(f"{step}:{index}", ids, outputs=dense, boundary=None)
        clock.lap("add_ms")
        backend.launch()
        in_flight += 1
        clock.lap("launch_ms")
        if in_flight == ahead:
            backend.collect()
            in_flight -= 1
            clock.lap("collect_ms")
    while in_flight:
        backend.collect()
        in_flight -= 1
    took, own = time.perf_counter() - began, time.thread_time() - own
    spent = {name: round(1000 * seconds / steps, 2) for name, seconds in clock.spent.items()}
    spent["thread_ms"] = round(1000 * own / steps, 2)
    return {"texts_per_s": round(steps * len(inputs) / took), **spent}


def ways(backend: Any) -> dict[str, Any]:
    """Return vLLM's scheduler, its runner without it, and the worker's own choice last."""
    from embedding_service.worker.steps import _ByRunner, _ByScheduler

    own, engine = backend._steps, backend._engine  # noqa: SLF001 - no setting chooses
    others: dict[str, Any] = {}
    if not isinstance(own, _ByScheduler):
        others = {"vLLM's scheduler": _ByScheduler(engine), "vLLM's runner": _ByRunner(engine)}
    return others | {"the worker's": own}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=models.NAMES)
    parser.add_argument("--texts", type=int, default=256, help="in a step")
    parser.add_argument("--tokens", type=int, default=50, help="of a text")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--profile", action="store_true", help="print where Python spends its time")
    return parser.parse_args()


def main() -> None:
    import numpy as np

    from embedding_service.engine.environment import environment
    from embedding_service.settings.model import ModelOptions

    options, found = parse(), None
    found = models.find(options.model)
    settings = ModelOptions(
        model_name=models.NAMES[options.model],
        model_path=str(found.path),
        max_model_len=found.max_tokens,
    )
    os.environ.update(environment(settings, replica=0))
    from embedding_service.worker import loading

    backend = loading.load(settings)
    loading.warm_up(backend)
    numbers = random.Random(0)
    inputs = [
        np.array(numbers.choices(range(1000, 30000), k=options.tokens), np.int32)
        for _ in range(options.texts)
    ]
    shape = {"model": options.model, "texts": options.texts, "tokens": options.tokens}
    for name, way in ways(backend).items():
        backend._steps = way  # noqa: SLF001 - no setting chooses
        run(backend, inputs, steps=3, ahead=1)
        for ahead in range(1, backend.steps_ahead + 1):
            figures = run(backend, inputs, steps=options.steps, ahead=ahead)
            print(json.dumps({**shape, "steps": name, "ahead": ahead, **figures}), flush=True)
    if options.profile:
        with cProfile.Profile() as profile:
            run(backend, inputs, steps=options.steps, ahead=backend.steps_ahead)
        pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # vLLM's atexit hooks can hang

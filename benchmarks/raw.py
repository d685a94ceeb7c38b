"""A model in OpenVINO or onnxruntime, without any server. Run in the environment of `runtimes.py`.

    python -m benchmarks.raw openvino|onnxruntime ONNX-FILE DTYPE

Reads one JSON job a line, and answers each with a line: `{"embed": [[id …] …], "batch": texts a
call}` with `{"texts_per_s": …, "p50_ms": of a call}`, and `{"vectors": [[id …] …]}` with
`{"vectors": [[number …] …]}`. All texts of a job have as many tokens. onnxruntime computes in
float32, since it has no bfloat16 on CPUs.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[[dict[str, np.ndarray]], np.ndarray]

THREADS = len(os.sched_getaffinity(0))


def openvino(path: str, dtype: str) -> Run:
    import openvino as ov

    options = {
        "PERFORMANCE_HINT": "LATENCY",  # all cores on one batch
        "INFERENCE_PRECISION_HINT": {"bfloat16": "bf16", "float32": "f32"}[dtype],
        "INFERENCE_NUM_THREADS": THREADS,
    }
    request = ov.Core().compile_model(path, "CPU", options).create_infer_request()
    return lambda inputs: request.infer(inputs)[0]


def onnxruntime(path: str, dtype: str) -> Run:  # noqa: ARG001 - float32, see above
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)[0]


def embed(run: Run, ids: list[list[int]]) -> np.ndarray:
    """Return normalised vectors (texts, dimension)."""
    rows = np.array(ids, np.int64)
    return run({"input_ids": rows, "attention_mask": np.ones_like(rows)})


def timed(run: Run, job: dict[str, Any]) -> dict[str, float]:
    ids, size, took = job["embed"], job["batch"], []
    for start in range(0, len(ids), size):
        began = time.perf_counter()
        embed(run, ids[start : start + size])
        took.append(time.perf_counter() - began)
    return {"texts_per_s": len(ids) / sum(took), "p50_ms": statistics.median(took) * 1000}


def main() -> None:
    name, path, dtype = sys.argv[1:]
    run = {"openvino": openvino, "onnxruntime": onnxruntime}[name](path, dtype)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if "vectors" in job:
            answer: dict[str, Any] = {"vectors": embed(run, job["vectors"]).tolist()}
        else:
            answer = timed(run, job)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

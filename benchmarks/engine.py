"""The gateway's engine settings, for the other servers that are to run with the same.

    python -m benchmarks.engine CONFIG

prints them as JSON. Imports vLLM, so the program that loads the servers asks for them in a process
of their own.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

SHARED = (
    "dtype",
    "enforce_eager",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "enable_prefix_caching",
)


def arguments(config: Path, *, one_process: bool = False) -> dict[str, Any]:
    """Return what vLLM's classes take; first set the variables that a worker of the gateway gets."""
    from embedding_service.engine.environment import environment
    from embedding_service.settings.load import load
    from embedding_service.worker.planning import planned

    options = load(config)[0].served_models[0]
    os.environ.update(environment(options, replica=0))
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if one_process else "1"
    from vllm.platforms import current_platform

    from embedding_service.worker.vllm_arguments import engine_arguments

    plan = planned(options)
    found = engine_arguments(plan, options, "cuda" if current_platform.is_cuda_alike() else "cpu")
    settings = {name: value for name in SHARED if (value := getattr(found, name)) is not None}
    return {"model": plan.model, "runner": "pooling", "disable_log_stats": True, **settings}


if __name__ == "__main__":
    print(json.dumps(arguments(Path(sys.argv[1]))))

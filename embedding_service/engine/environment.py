"""The environment variables of a worker: our own, those that vLLM needs, its cores and devices."""

from __future__ import annotations

import ctypes.util
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from embedding_service.engine import caches
from embedding_service.settings import service_links

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embedding_service.settings.gateway import Settings
    from embedding_service.settings.model import ModelOptions

# Settings and whatever holds keys or belongs to systemd: the gateway's business, not a worker's.
_PRIVATE = re.compile(
    r"NOTIFY_SOCKET|WATCHDOG_\w+|CREDENTIALS_DIRECTORY|API_KEY|API_TOKEN|EMBEDDING_\w+|OTEL_\w+"
)
# These have to be set before Python, torch or vLLM starts.
_FIXED = {
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # oneDNN keeps what it compiles for each number of tokens in a step, 1,024 of them by default:
    # a worker with MiniLM grew from 913 to 1,259 MB, to 964 with 64, at no cost
    # that could be told from noise.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core runs in the worker itself
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # a pooling model samples nothing; it imports for seconds
}
_LIBRARY_FOLDERS = ("lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu", "lib64", "lib")


def inherited(settings: Settings) -> dict[str, str]:
    """Return our own variables for all workers, without the gateway's settings and keys.

    Where workers compute on the same cores, threads that wait must not spin: two workers on two
    cores gave 4 times as many requests (soak test, embedder and reranker). A worker that has its
    cores to itself is a little faster with spinning.
    """
    private = {*settings.api_keys_env, *settings.environment}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in private and not _PRIVATE.fullmatch(name.upper())  # read in either case
    }
    for name in service_links.of_vllm(kept):
        del kept[name]
    kept |= caches.variables(os.environ, settings.runtime_dir)
    return {"OMP_WAIT_POLICY": "PASSIVE", **kept} if share_cores(settings) else kept


def environment(options: ModelOptions, *, replica: int) -> dict[str, str]:
    """Return the variables that a worker needs before Python starts; the operator's own win."""
    binding = cpu_binding(
        sorted(os.sched_getaffinity(0)),
        ranks=options.tensor_parallel_size,
        replica=replica,
        replicas=options.replicas,
    )
    wanted = _FIXED | {"VLLM_CPU_OMP_THREADS_BIND": binding}
    if tcmalloc := _tcmalloc():
        wanted["LD_PRELOAD"] = tcmalloc
    wanted = {name: value for name, value in wanted.items() if name not in os.environ}
    if options.devices:  # the one variable that the operator's does not override: `devices` is ours
        wanted["CUDA_VISIBLE_DEVICES"] = _visible_devices(options, replica)
    return wanted


def _visible_devices(options: ModelOptions, replica: int) -> str:
    count = options.tensor_parallel_size
    turns = range(replica * count, (replica + 1) * count)
    return ",".join(str(options.devices[turn % len(options.devices)]) for turn in turns)


def share_cores(settings: Settings) -> bool:
    """Tell whether workers of this gateway will be bound to the same cores of a CPU."""
    cores = len(os.sched_getaffinity(0))
    models = settings.served_models
    crowded = any(model.replicas * model.tensor_parallel_size > cores for model in models)
    return len(models) > 1 or crowded


def cpu_binding(cores: Sequence[int], *, ranks: int, replica: int, replicas: int) -> str:
    """Split `cores` among replicas, then among tensor-parallel ranks, leaving none idle.

    vLLM's form: `0,1|2,3` binds rank 0 to cores 0 and 1. Its own `auto` keeps a core for a
    server that here lives in another process, which is one of two on a small machine.
    """
    own = _share(cores, replica, replicas)
    bound = [_share(own, rank, ranks) for rank in range(ranks)]
    return "|".join(",".join(map(str, of_rank)) for of_rank in bound)


def _share(cores: Sequence[int], index: int, count: int) -> Sequence[int]:
    """Return the part of `cores` that falls to one of `count`; with too few, one in turn."""
    if count >= len(cores):
        return [cores[index % len(cores)]]
    return cores[index * len(cores) // count : (index + 1) * len(cores) // count]


def _tcmalloc() -> str | None:
    """Return the library to preload where it is installed; vLLM advises it for CPUs."""
    for name in ("tcmalloc_minimal", "tcmalloc"):
        if soname := ctypes.util.find_library(name):
            places = (Path("/usr", folder, soname) for folder in _LIBRARY_FOLDERS)
            if found := next((path for path in places if path.exists()), None):
                return str(found)
    return None

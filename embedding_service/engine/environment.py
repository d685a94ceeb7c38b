"""The environment variables of a worker: our own, those that vLLM needs, and its devices."""

from __future__ import annotations

import ctypes.util
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from embedding_service.engine import caches, cores
from embedding_service.settings import service_links

if TYPE_CHECKING:
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
    """Return our own variables for all workers, without the gateway's settings and keys."""
    private = {*settings.api_keys_env, *settings.environment}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in private and not _PRIVATE.fullmatch(name.upper())  # read in either case
    }
    for name in service_links.of_vllm(kept):
        del kept[name]
    kept |= caches.variables(os.environ, settings.runtime_dir)
    return {**cores.waiting(settings), **kept}


def environment(options: ModelOptions, *, replica: int) -> dict[str, str]:
    """Return the variables that a worker needs before Python starts; the operator's own win."""
    wanted = _FIXED | cores.variables(options, replica=replica)
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


def _tcmalloc() -> str | None:
    """Return the library to preload where it is installed; vLLM advises it for CPUs."""
    for name in ("tcmalloc_minimal", "tcmalloc"):
        if soname := ctypes.util.find_library(name):
            places = (Path("/usr", folder, soname) for folder in _LIBRARY_FOLDERS)
            if found := next((path for path in places if path.exists()), None):
                return str(found)
    return None

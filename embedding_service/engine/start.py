"""The engines of a process, and the fresh folder that holds their sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from embedding_service.engine.environment import inherited
from embedding_service.engine.pool import ModelEngine
from embedding_service.engine.process import WorkerProcess
from embedding_service.errors import BadConfiguration

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from embedding_service.engine.process import StartWorker
    from embedding_service.settings.gateway import Settings

# A Unix socket's path has at most 107 bytes; ours adds a name of up to 40.
_LONGEST_RUNTIME_DIR_BYTES = 65
_SHORT_FOLDERS = ("/tmp", "/run", "/dev/shm", "/var/tmp")  # noqa: S108 - for a fresh folder in it


def make_engines(
    settings: Settings,
    folder: Path,
    log: FilteringBoundLogger,
    start_worker: StartWorker = WorkerProcess.start,
) -> list[ModelEngine]:
    """Return an engine, not started yet, for each model; their sockets will be in `folder`."""
    # vLLM's own sockets, of tensor parallelism, are in TMPDIR otherwise, which may be long.
    environ = {"VLLM_RPC_BASE_PATH": str(folder), **inherited(settings)}
    one_at_a_time = asyncio.Lock()
    return [
        ModelEngine(
            options,
            folder=folder,
            start_lock=one_at_a_time,
            environ=environ,
            log=log,
            start_worker=start_worker,
        )
        for options in settings.served_models
    ]


def make_runtime_dir(settings: Settings) -> Path:
    """Make a fresh folder (mode 0700) for the sockets of workers. Raises `BadConfiguration`."""
    parent = settings.runtime_dir
    if parent is not None:
        return _fresh_folder(parent)
    try:
        given = tempfile.gettempdir()
    except FileNotFoundError:
        raise BadConfiguration(
            "runtime_dir: there is no temporary directory that can be written to; set one"
        ) from None
    # A long TMPDIR is nobody's mistake: sockets go elsewhere then.
    for folder in (given, *_SHORT_FOLDERS):
        with contextlib.suppress(BadConfiguration):
            return _fresh_folder(Path(folder))
    return _fresh_folder(Path(given))


def _fresh_folder(parent: Path) -> Path:
    """Make a folder with a new name. Raises `BadConfiguration`."""
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="embed-", dir=parent))
    except OSError as error:
        raise BadConfiguration(f"runtime_dir: {parent}: {error.strerror}; set another") from None
    if len(os.fsencode(folder)) > _LONGEST_RUNTIME_DIR_BYTES:
        folder.rmdir()
        raise BadConfiguration(
            f"runtime_dir: {folder} is too long for Unix sockets; set a shorter one"
        )
    return folder

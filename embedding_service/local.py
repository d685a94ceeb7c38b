"""A service with its models loaded and no HTTP in front of it, for commands."""

from __future__ import annotations

import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from embedding_service.engine.process import WorkerProcess
from embedding_service.engine.start import make_engines, make_runtime_dir
from embedding_service.service.lifecycle import Lifecycle
from embedding_service.service.service import EmbeddingService
from embedding_service.telemetry import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from structlog.typing import FilteringBoundLogger

    from embedding_service.engine.process import StartWorker
    from embedding_service.settings.gateway import Settings


@asynccontextmanager
async def local_service(
    settings: Settings, log: FilteringBoundLogger, start_worker: StartWorker = WorkerProcess.start
) -> AsyncIterator[EmbeddingService]:
    """Start the workers as a gateway does, and end them however the body ends.

    Raises `ModelNotLoaded` if a required model cannot be loaded, `BadConfiguration`.
    """
    folder = make_runtime_dir(settings)
    try:
        engines = make_engines(settings, folder, log, start_worker)
        service = EmbeddingService(settings, engines, Metrics())
        lifecycle = Lifecycle(service, log)
        try:
            await lifecycle.load()
            yield service
        finally:
            await lifecycle.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)

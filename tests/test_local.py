"""A service without HTTP: it computes what a gateway would, and leaves nothing behind."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from embedding_service.errors import ModelNotLoaded
from embedding_service.local import local_service
from embedding_service.service.call import Call
from embedding_service.settings.gateway import Settings
from embedding_service.types import EmbedJob
from tests.conftest import FAKE
from tests.in_process import ThreadWorker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from structlog.typing import FilteringBoundLogger


@pytest.fixture
def log() -> FilteringBoundLogger:
    """Return a logger that keeps nothing."""
    logger: FilteringBoundLogger = structlog.wrap_logger(None, processors=[_drop])
    return logger


def _drop(*_: Any) -> Any:
    raise structlog.DropEvent


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder with a path that is short enough for sockets in it."""
    with tempfile.TemporaryDirectory() as short:
        yield Path(short)


def contents(folder: Path) -> list[Path]:
    """Return what lies in a folder."""
    return list(folder.iterdir())


async def test_a_service_computes(folder: Path, log: FilteringBoundLogger) -> None:
    """The models are loaded once it is entered, and its sockets are gone once it is left."""
    settings = Settings(**FAKE, runtime_dir=folder)
    async with local_service(settings, log, ThreadWorker.start) as service:
        answer = await service.embed(EmbedJob("fake", ["w1 w2"]), Call(time.monotonic() + 60))
        assert answer.dense is not None
        assert answer.dense.shape == (1, 32)
        assert service.models.default.ready
        assert contents(folder)
    assert contents(folder) == []
    assert not service.models.default.ready


async def test_it_ends_its_workers_after_an_error(folder: Path, log: FilteringBoundLogger) -> None:
    """An error in the body, or a model that cannot be loaded, leaves no worker and no folder."""
    settings = Settings(**FAKE, runtime_dir=folder)
    with pytest.raises(RuntimeError, match="mine"):
        async with local_service(settings, log, ThreadWorker.start) as service:
            raise RuntimeError("mine")
    assert service.models.default.engine.dead
    refused = Settings(**FAKE, runtime_dir=folder, engine_args={"refuse": "no such weights"})
    with pytest.raises(ModelNotLoaded, match="no such weights"):
        async with local_service(refused, log, ThreadWorker.start):
            pytest.fail("it was loaded")
    assert contents(folder) == []

"""Which options a stored vector's name depends on: every one that is not known to leave it alone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from embedding_service.engine import identity
from embedding_service.engine.pool import ModelEngine
from embedding_service.service.checksum import UNKNOWN, model_checksum
from embedding_service.service.models import ModelRegistry
from embedding_service.service.prompts import Encoder
from embedding_service.settings.gateway import Settings
from embedding_service.settings.model import ModelOptions
from embedding_service.worker.fake import FakeBackend
from tests.engine.test_identity import OTHER

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    Checksum = Callable[..., Coroutine[Any, Any, str]]

# `model_path` counts by its files, see tests/engine/test_loaded.py; `dtype` by what a worker makes
# of it, and the fake engine has one only.
COUNTED = {
    "default_instruction",
    "engine_args",
    "instruction_template",
    "max_model_len",
    "model_name",
    "revision",
    "score_label",
    "trust_remote_code",
}


@pytest.fixture
def checksum(tmp_path: Path) -> Checksum:
    """Return the checksum of a model with some options, as its worker would have loaded it."""

    async def of(*, loaded: bool = True, **options: Any) -> str:
        model = ModelOptions(**{"engine": "fake", "model_name": "plain", **options})
        engine = ModelEngine(
            model,
            folder=tmp_path,
            start_lock=asyncio.Lock(),
            environ={},
            log=structlog.get_logger(),
        )
        settings = Settings(engine="fake")
        (served,) = ModelRegistry(settings, [engine])
        if loaded:
            backend = FakeBackend(model)
            served.encoder = Encoder(backend.facts(32), backend.tokenizer_json, model)
        return await model_checksum(settings, served)

    return of


@pytest.mark.parametrize("name", sorted(OTHER.keys() - {"model_path", "calibration_file"}))
async def test_an_option_that_is_not_listed_counts(checksum: Checksum, name: str) -> None:
    """Another value of it is another checksum, unless it changes speed, memory or digits only."""
    assert (await checksum(**{name: OTHER[name]}) != await checksum()) == (name in COUNTED)


async def test_arguments_of_speed_and_memory_do_not_count(checksum: Checksum) -> None:
    """Machines of other sizes give the same name to the same vectors; other arguments count."""
    listed = identity.ARGUMENTS_WITHOUT_EFFECT | identity.ARGUMENTS_OF_ROUNDING
    harmless = dict.fromkeys(listed, 1)
    assert await checksum(engine_args=harmless) == await checksum()
    assert await checksum(engine_args={**harmless, "seed": 1}) != await checksum()


async def test_nothing_is_said_of_a_model_that_is_not_loaded(checksum: Checksum) -> None:
    """Until it is loaded the checksum is all zeros, which no model has."""
    assert await checksum(loaded=False) == UNKNOWN
    assert await checksum() != UNKNOWN

"""STARTING → READY → DRAINING → STOPPED: loading the models, and what is still being answered."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING

from embedding_service.errors import ModelNotLoaded, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from structlog.typing import FilteringBoundLogger

    from embedding_service.core.models import ServedModel
    from embedding_service.core.service import EmbeddingService

DRAIN_RETRY_S = 5.0


class Phase(StrEnum):
    """Where the gateway stands."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"


class Lifecycle:
    """The gateway's phase, and how many requests are in it."""

    def __init__(self, service: EmbeddingService, log: FilteringBoundLogger) -> None:
        self.service = service
        self.phase = Phase.STARTING
        self.started = time.monotonic()
        self.in_flight = 0
        self._log = log
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def ready(self) -> bool:
        """Whether a balancer should send requests here."""
        return self.phase is Phase.READY and all(model.ready for model in self.service.models if model.required)

    async def load(self) -> None:
        """Start every model's workers, the required ones first: they alone make the gateway ready.

        Raises `ModelNotLoaded` if a required model cannot be loaded.
        """
        for model in self.service.models:
            if model.required:
                await self._load(model)
        if self.phase is Phase.STARTING:
            self.phase = Phase.READY
            self._log.info("ready", seconds=round(time.monotonic() - self.started, 2))
        for model in self.service.models:
            if not model.required:
                try:
                    await self._load(model)
                except ModelNotLoaded as error:
                    self._log.error("model_not_loaded", model=model.name, reason=str(error))

    async def _load(self, model: ServedModel) -> None:
        began = time.monotonic()
        self._log.info("loading", model=model.name, replicas=model.options.replicas)
        await model.engine.start()
        facts = model.engine.facts
        assert facts is not None  # noqa: S101 - a started engine has said hello
        await asyncio.to_thread(model.open)
        model.load_s = time.monotonic() - began
        gc.collect()
        gc.freeze()  # what start-up made stays: looking through it again took a full collection 50 ms, on this loop
        self._log.info(
            "loaded",
            model=model.name,
            seconds=round(time.monotonic() - began, 2),
            outputs=",".join(facts.outputs),
            dimension=facts.dimension,
            max_tokens=facts.max_tokens,
            dtype=facts.dtype,
            device=facts.device,
            vllm=facts.engine_version,
        )

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request while it is served. Raises `Unavailable` once draining has begun."""
        if self.phase in (Phase.DRAINING, Phase.STOPPED):
            raise Unavailable("the server is shutting down; try another instance", retry_after_s=DRAIN_RETRY_S)
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    async def drain(self, timeout_s: float) -> None:
        """Refuse what is new, and wait until everything accepted has been answered."""
        self.phase = Phase.DRAINING
        self._log.info("draining", in_flight=self.in_flight)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        if self.in_flight:
            self._log.warning("drain_timed_out", in_flight=self.in_flight)

    async def stop(self) -> None:
        """End the workers."""
        self.phase = Phase.STOPPED
        await asyncio.gather(*(model.engine.stop() for model in self.service.models))
        self.service.close()
        gc.unfreeze()

"""STARTING → READY → DRAINING → STOPPED: loading the models, and what is still being answered."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING

from embedding_service import systemd
from embedding_service.errors import NoModelLeft, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from structlog.typing import FilteringBoundLogger

    from embedding_service.service.models import ServedModel
    from embedding_service.service.service import EmbeddingService

DRAIN_RETRY_S = 5.0
PULSE_S = 0.25


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
            systemd.notify("READY=1", "STATUS=serving")
            self._log.info("ready", seconds=round(time.monotonic() - self.started, 2))
        for model in self.service.models:
            if not model.required:
                try:
                    await self._load(model)
                except Exception as error:  # noqa: BLE001 - whatever it is, the others are served
                    self._log.error("model_not_loaded", model=model.name, reason=str(error))
                    await model.engine.stop()

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

    async def watch(self) -> None:
        """Feed systemd's watchdog while every worker is looked after. Raises `NoModelLeft` when all have given up."""
        every_s, fed = systemd.watchdog_every_s(), 0.0
        while not all(model.engine.dead for model in self.service.models):
            now = time.monotonic()
            if every_s is not None and now - fed >= every_s and all(m.engine.supervised for m in self.service.models):
                systemd.notify("WATCHDOG=1")
                fed = now
            await asyncio.sleep(PULSE_S)
            self.service.metrics.event_loop_lag.observe(max(0.0, time.monotonic() - now - PULSE_S))
        raise NoModelLeft("no model is left: every engine died too often; the log says of what")

    async def drain(self, *, grace_s: float, timeout_s: float) -> None:
        """Refuse what is new, and wait until everything accepted has been answered, at least for `grace_s`.

        A gateway that was never ready has nobody to warn and does not wait.
        """
        grace_s, self.phase = 0.0 if self.phase is Phase.STARTING else min(grace_s, timeout_s), Phase.DRAINING
        systemd.notify("STOPPING=1", "STATUS=draining")
        self._log.info("draining", in_flight=self.in_flight)
        await asyncio.sleep(grace_s)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s - grace_s)
        if self.in_flight:
            self._log.warning("drain_timed_out", in_flight=self.in_flight)

    async def stop(self) -> None:
        """End the workers."""
        self.phase = Phase.STOPPED
        await asyncio.gather(*(model.engine.stop() for model in self.service.models))
        self.service.close()
        gc.unfreeze()

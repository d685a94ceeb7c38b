"""STARTING → READY → DRAINING → STOPPED: loads the models, and counts the requests in flight."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING

from embedding_service import systemd
from embedding_service.engine.states import State
from embedding_service.errors import NoModelLeft, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from structlog.typing import FilteringBoundLogger

    from embedding_service.service.models import ServedModel
    from embedding_service.service.service import EmbeddingService

DRAIN_RETRY_S = 5.0
PULSE_S = 0.25


class Phase(StrEnum):
    """The stages of a gateway's life, in this order."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"


_AT_WORK = (Phase.STARTING, Phase.READY)


class Lifecycle:
    """The gateway's phase, and its requests in flight."""

    def __init__(
        self,
        service: EmbeddingService,
        log: FilteringBoundLogger,
        *,
        ready_facts: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """`ready_facts` gives the log, once the gateway is ready, what a person may do next."""
        self._ready_facts = ready_facts
        self.service = service
        self.phase = Phase.STARTING
        self.started = time.monotonic()
        self.in_flight = 0
        self.reload_failed = ""  # the reason, until a later reload goes well
        self._log = log
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def ready(self) -> bool:
        """Whether a balancer should send requests here."""
        required = (model for model in self.service.models if model.required)
        return self.phase is Phase.READY and all(model.ready for model in required)

    def status(self, ready: str) -> str:
        """Return the word of a health check: `ready`, or the phase that comes before or after."""
        return ready if self.ready else str(self.phase)

    async def load(self) -> None:
        """Start every model's workers, the required ones first: they alone make the gateway ready.

        Raises `ModelNotLoaded` if a required model cannot be loaded.
        """
        models = list(self.service.models)
        for model in models:
            if model.required:
                await self._load(model)
        if self.phase is Phase.STARTING:
            self.phase = Phase.READY
            systemd.notify("READY=1", f"STATUS={self._status()}")
            seconds = round(time.monotonic() - self.started, 2)
            self._log.info("ready", seconds=seconds, **self._ready_facts())
        for model in models:
            if not model.required:
                await self._try_to_load(model)

    async def _try_to_load(self, model: ServedModel) -> None:
        try:
            await self._load(model)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are served
            self._log.error("model_not_loaded", model=model.name, reason=str(error))
            await model.engine.stop()
            model.close()

    async def _load(self, model: ServedModel) -> None:
        began = time.monotonic()
        self._log.info("loading", model=model.name, replicas=model.options.replicas)
        await model.engine.start()
        facts = model.engine.loaded.facts
        model.load_s = time.monotonic() - began
        # Objects made at the start live for ever: to look through them again took a full collection
        # 50 ms, on this loop.
        gc.collect()
        gc.freeze()
        self._log.info(
            "loaded",
            model=model.name,
            seconds=round(model.load_s, 2),
            outputs=",".join(facts.outputs),
            dimension=facts.dimension,
            max_tokens=facts.max_tokens,
            dtype=facts.dtype,
            device=facts.device,
            vllm=facts.engine_version,
            space=str(model.space) if model.space else None,
        )

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request while it is served. Raises `Unavailable` once draining has begun."""
        if self.phase in (Phase.DRAINING, Phase.STOPPED):
            raise Unavailable(
                "the server is shutting down; try another instance", retry_after_s=DRAIN_RETRY_S
            )
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    async def watch(self) -> None:
        """Feed systemd's watchdog while every worker is supervised, and measure the loop's lag.

        Raises `NoModelLeft` when all models are dead, or the files of a required one have changed.
        """
        every_s, fed_at = systemd.watchdog_every_s(), 0.0
        engines = [model.engine for model in self.service.models]
        told = ""
        while True:
            self._check_models()
            if self.phase in _AT_WORK and (status := self._status()) != told:
                systemd.notify(f"STATUS={status}")
                told = status
            now = time.monotonic()
            due = every_s is not None and now - fed_at >= every_s
            if due and all(engine.supervised for engine in engines):
                systemd.notify("WATCHDOG=1")
                fed_at = now
            await asyncio.sleep(PULSE_S)
            lag_s = time.monotonic() - now - PULSE_S
            self.service.metrics.event_loop_lag.observe(max(0.0, lag_s))

    def _status(self) -> str:
        """Return a line for `systemctl status`: the phase, and models and keys that are amiss."""
        amiss = [
            f"{model.name}: {', '.join(model.engine.states)}"
            for model in self.service.models
            if {*model.engine.states} != {State.READY}
        ]
        if self.reload_failed:
            amiss.append(f"reload failed: {self.reload_failed}")
        return "; ".join(["serving" if self.phase is Phase.READY else str(self.phase), *amiss])

    def _check_models(self) -> None:
        """Raise `NoModelLeft` where a new process would be of more use than this one."""
        models = list(self.service.models)
        if all(model.engine.dead for model in models):
            raise NoModelLeft(
                "no model is left: every engine died too often; see engine_died in the log"
            )
        for model in models:
            if model.required and model.engine.outdated:
                raise NoModelLeft(
                    f"the files of {model.name} have changed, and no engine has the old ones; "
                    "start the service again to serve the new ones"
                )

    async def drain(self, *, grace_s: float, timeout_s: float) -> None:
        """Refuse new requests, and wait until all accepted ones are answered, at least `grace_s`.

        The grace lets balancers see it; to a gateway that was never ready they send nothing.
        """
        grace_s = 0.0 if self.phase is Phase.STARTING else min(grace_s, timeout_s)
        self.phase = Phase.DRAINING
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

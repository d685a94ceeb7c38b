"""One gateway process, from its sockets to its exit status. It owns its signals."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from embedding_service import systemd
from embedding_service.engine.pool import ModelEngine
from embedding_service.engine.process import inherited
from embedding_service.errors import BadConfiguration, PortInUse
from embedding_service.http.app import create_app
from embedding_service.http.connection import connection_class
from embedding_service.http.keys import KeyRing
from embedding_service.http.tracing import Tracer
from embedding_service.service.lifecycle import Lifecycle, Phase
from embedding_service.service.rates import Rates, SharedCounters
from embedding_service.service.redis import Breaker, connect
from embedding_service.service.service import EmbeddingService
from embedding_service.service.shared_cache import SharedCache
from embedding_service.telemetry import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from structlog.typing import FilteringBoundLogger

    from embedding_service.settings.gateway import Settings

# A Unix socket's path has at most 107 bytes; ours adds a name of up to 40.
_LONGEST_RUNTIME_DIR = 65
# No request leaves garbage that needs a collector (tests/test_garbage.py): with Python's 700 objects, looking for some
# cost 2 % of a request in one comparison and 14 % in another.
_OBJECTS_BETWEEN_COLLECTIONS = 20_000


class _Server(uvicorn.Server):
    """Uvicorn without its own ideas about signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Gateway:
    """Everything that one process runs: engines, service, application, listener."""

    def __init__(self, settings: Settings, sockets: list[socket.socket], log: FilteringBoundLogger) -> None:
        self.settings = settings
        self.sockets = sockets
        self.log = log
        self.keys = KeyRing(settings)
        self.folder = _runtime_dir(settings)
        start_lock = asyncio.Lock()
        engines = [
            ModelEngine(options, folder=self.folder, start_lock=start_lock, environ=inherited(settings), log=log)
            for options in settings.served_models
        ]
        metrics = Metrics()
        self._redis = connect(settings.redis_url.get_secret_value()) if settings.redis_url else None
        self._shared_cache = None
        if self._redis is not None and settings.cache_shared and settings.cache_max_bytes:
            self._shared_cache = SharedCache(
                self._redis, Breaker("cache", metrics, log), prefix=settings.redis_prefix, ttl_s=settings.cache_ttl_s
            )
        counters = None
        if self._redis is not None:
            counters = SharedCounters(self._redis, Breaker("rates", metrics, log), prefix=settings.redis_prefix)
        rates = Rates(settings, metrics, counters)
        self._tracer = Tracer(settings.otlp_endpoint) if settings.otlp_endpoint else None
        self.service = EmbeddingService(settings, engines, metrics, self._shared_cache)
        self.lifecycle = Lifecycle(self.service, log)
        self._server = _Server(
            uvicorn.Config(
                create_app(settings, self.lifecycle, keys=self.keys, rates=rates, tracer=self._tracer, log=log),
                http=connection_class(settings.header_timeout_s),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=list(settings.trusted_proxies),
                timeout_keep_alive=int(settings.keep_alive_s),
                backlog=2048,
            )
        )
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Begin to drain; called again, stop waiting."""
        if self._stop.is_set():
            self._server.should_exit = self._server.force_exit = True
        self._stop.set()

    def reload(self) -> None:
        """Read the keys again; running requests keep what they came with."""
        ready = self.lifecycle.phase is Phase.READY  # to systemd, READY=1 while loading would be the start
        if ready:
            systemd.reloading()
        try:
            self.keys.reload()
            self.log.info("reloaded", keys=len(self.keys))
        except BadConfiguration as error:
            self.log.error("reload_failed", reason=str(error))  # noqa: TRY400 - the reason says it all
        if ready:
            systemd.notify("READY=1")

    async def run(self) -> int:
        """Listen, load, serve until `stop`; return the exit status. Raises `StartupError`."""
        serving = asyncio.create_task(self._server.serve(self.sockets))
        loading = asyncio.create_task(self.lifecycle.load())
        stopping = asyncio.create_task(self._stop.wait())
        watching = asyncio.create_task(self.lifecycle.watch())
        try:
            await asyncio.wait({loading, stopping, watching}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                await asyncio.wait({serving, stopping, watching}, return_when=asyncio.FIRST_COMPLETED)
            await self._drain(serving)
            if watching.done():
                watching.result()
            return 0
        finally:
            for task in (loading, stopping, watching):
                task.cancel()
            self._server.should_exit = self._server.force_exit = True
            await asyncio.gather(loading, stopping, watching, serving, return_exceptions=True)
            await self.lifecycle.stop()
            await self._hang_up()
            shutil.rmtree(self.folder, ignore_errors=True)
            self.log.info("stopped")

    async def _hang_up(self) -> None:
        if self._shared_cache is not None:
            await self._shared_cache.close()
        if self._redis is not None:
            await self._redis.aclose()
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)

    async def _drain(self, serving: asyncio.Task[None]) -> None:
        settings = self.settings
        draining = asyncio.create_task(
            self.lifecycle.drain(grace_s=settings.drain_grace_s, timeout_s=settings.drain_timeout_s)
        )
        await asyncio.wait({draining, serving}, return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        self._server.should_exit = True
        with contextlib.suppress(TimeoutError):  # answers are complete; give their last bytes a moment
            await asyncio.wait_for(asyncio.shield(serving), 2)


def listen(settings: Settings) -> list[socket.socket]:
    """Bind before any model is loaded. Raises `PortInUse`."""
    if settings.uds is not None:
        family, address = socket.AF_UNIX, str(settings.uds)
    else:
        try:
            family, _, _, _, address = socket.getaddrinfo(  # type: ignore[assignment]
                settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except OSError as error:
            raise BadConfiguration(f"host: {settings.host!r} is not an address of this machine ({error})") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if settings.uds is not None and _is_stale(settings.uds):
            settings.uds.unlink()
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        where = settings.uds or f"{settings.host} port {settings.port}"
        raise PortInUse(f"cannot listen on {where}: {error.strerror or error}") from None
    listener.set_inheritable(False)
    return [listener]


def serve(settings: Settings, log: FilteringBoundLogger) -> int:
    """Run a gateway until it is told to stop; return the exit status."""
    sockets = listen(settings)
    for device, share in settings.device_shares().items():
        log.info("device_share", device=device, share=f"{share:.0%}")
    for listener in sockets:
        address = listener.getsockname()
        log.info("listening", address=address if isinstance(address, str) else f"{address[0]}:{address[1]}")

    async def main() -> int:
        gateway = Gateway(settings, sockets, log)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, gateway.stop)
        loop.add_signal_handler(signal.SIGHUP, gateway.reload)
        return await gateway.run()

    import uvloop  # noqa: PLC0415 - not needed to refuse a configuration

    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main())
    finally:
        for listener in sockets:
            listener.close()
        if settings.uds is not None:
            settings.uds.unlink(missing_ok=True)


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


def _runtime_dir(settings: Settings) -> Path:
    parent = settings.runtime_dir
    if parent is not None:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="embed-", dir=parent))
    if len(os.fsencode(folder)) > _LONGEST_RUNTIME_DIR:
        folder.rmdir()
        raise BadConfiguration(f"runtime_dir: {folder} is too long for Unix sockets; set a shorter one")
    return folder

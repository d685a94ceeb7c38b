"""A gateway that measures itself: `python -m tests.measured SETTINGS`, started by `Measured`.

It runs on asyncio's own event loop, which lets the CPU time of each callback be taken; uvloop's does
not. Each line on its standard input asks for what was measured since the last one.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from asyncio import events
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from embedding_service import server
from embedding_service.settings.gateway import Settings
from tests.calls import routes_of
from tests.test_cli import ENVIRONMENT, ROOT

_BEAT_S = 0.005


@dataclass(frozen=True, slots=True)
class Taken:
    """Since the last one: the longest callback of the event loop and all CPU, in seconds of CPU.

    `silent_s` is the longest that the event loop did not get its turn, in CPU seconds of this
    process: of its callbacks, and of threads that held the interpreter lock meanwhile. Also the
    largest resident memory, and what is reserved for answers and bodies now.
    """

    callback_s: float
    silent_s: float
    cpu_s: float
    peak_bytes: int
    reserved_bytes: int


class Measured:
    """The process, as its test sees it."""

    def __init__(self, **settings: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.measured", json.dumps(settings)],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        said = self._line()
        self.url: str = said["url"]
        self.routes: list[list[str]] = said["routes"]  # path templates and methods

    def take(self) -> Taken:
        """Ask for what was measured since this was last asked."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return Taken(**self._line())

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the gateway ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> int:
        """Drain and end it; return its exit status."""
        self.process.terminate()
        self.process.communicate(timeout=60)
        return self.process.returncode


class _Meter:
    """Takes the CPU time of each callback on the thread that makes this, and between two beats."""

    def __init__(self) -> None:
        self.longest_s = self.silent_s = 0.0
        self._cpu_s = time.process_time()
        run = events.Handle._run

        def timed(handle: events.Handle) -> None:
            began = time.thread_time()
            run(handle)
            self.longest_s = max(self.longest_s, time.thread_time() - began)

        events.Handle._run = timed  # type: ignore[method-assign]

    async def beat(self) -> None:
        """Note how much this process has worked whenever the event loop has not got its turn."""
        last = time.process_time()
        while True:
            await asyncio.sleep(_BEAT_S)
            now = time.process_time()
            self.silent_s, last = max(self.silent_s, now - last), now

    def take(self, gateway: server.Gateway) -> dict[str, Any]:
        """Return what there is, and begin anew."""
        until = time.monotonic() + 1  # an answer may be read before its request is over
        while _reserved(gateway) and time.monotonic() < until:
            time.sleep(0.002)
        cpu_s = time.process_time()
        taken = {
            "callback_s": self.longest_s,
            "silent_s": self.silent_s,
            "cpu_s": cpu_s - self._cpu_s,
            "peak_bytes": _peak_bytes(),
            "reserved_bytes": _reserved(gateway),
        }
        self.longest_s, self.silent_s, self._cpu_s = 0.0, 0.0, cpu_s
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return taken


def _reserved(gateway: server.Gateway) -> int:
    return gateway.service.answers.held + gateway.service.bodies.held


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


async def _serve(settings: Settings, sockets: list[Any], meter: _Meter) -> int:
    gateway = server.Gateway(settings, sockets, structlog.wrap_logger(None, processors=[_drop]))
    asyncio.get_running_loop().add_signal_handler(15, gateway.stop)
    # As uvloop does; else each answer waits 44 ms for the client's acknowledgement of its head.
    sockets[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def answer() -> None:
        while not gateway.lifecycle.ready:
            time.sleep(0.02)
        host, port = sockets[0].getsockname()[:2]
        _say({"url": f"http://{host}:{port}", "routes": routes_of(gateway)})
        for _ in sys.stdin:
            _say(meter.take(gateway))

    threading.Thread(target=answer, daemon=True).start()
    beating = asyncio.create_task(meter.beat())
    status = await gateway.run()
    beating.cancel()
    return status


def _say(words: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def _drop(*_: object) -> Any:
    raise structlog.DropEvent


if __name__ == "__main__":
    server.set_up_interpreter()
    chosen = Settings(**json.loads(sys.argv[1]))
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        sys.exit(runner.run(_serve(chosen, server.listen(chosen), _Meter())))

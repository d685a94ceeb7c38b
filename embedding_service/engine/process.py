"""One worker process: its birth, its output, its death.

The child lives in a process group of its own and holds the read end of a pipe whose other end
is ours alone; whichever side dies, the other learns of it from the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec
from msgspec.structs import asdict

from embedding_service.engine.environment import environment
from embedding_service.engine.protocol import PROGRESS, Progress

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from embedding_service.engine.protocol import Launch
    from embedding_service.settings.model import ModelOptions

    StartWorker = Callable[..., Awaitable["RunningWorker"]]  # called as `WorkerProcess.start`

_TAIL_LINES = 50
_LINE_BYTES = 8 << 10  # of a longer line of output, the end is kept
_BLOCK_BYTES = 64 << 10
# After being killed; seen once to take longer, among several event loops of one process.
ENDED_WITHIN_S = 5.0
_OUTPUT_GRACE_S = 1.0  # for the last words of a worker that has ended


class RunningWorker(Protocol):
    """A started worker: a process of its own, or in tests something that speaks the same wire."""

    stage: str  # of its start, in words

    async def wait(self) -> int:
        """Return the exit status once it has ended."""
        ...

    async def end(self) -> None:
        """Kill it; return once it has ended."""
        ...

    def last_words(self) -> str:
        """Return the last line of output that looks like a reason."""
        ...


class WorkerProcess:
    """A running worker. `wait` tells when it has ended; `end` kills it and all its children."""

    def __init__(self, process: asyncio.subprocess.Process, log: FilteringBoundLogger) -> None:
        self._process = process
        self._log = log
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._swept = False
        self.stage = "its process"
        output = cast("asyncio.StreamReader", process.stdout)  # a pipe was asked for
        self._reader = asyncio.create_task(self._read_output(output))

    @classmethod
    async def start(
        cls,
        launch: Launch,
        options: ModelOptions,
        *,
        replica: int,
        environ: dict[str, str],
        log: FilteringBoundLogger,
    ) -> WorkerProcess:
        """Start a worker with `environ` and the variables of its own, and send it its options."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "embedding_service.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environ | environment(options, replica=replica),
            start_new_session=True,
            limit=_BLOCK_BYTES,
        )
        stdin = cast("asyncio.StreamWriter", process.stdin)  # a pipe was asked for
        stdin.write(msgspec.json.encode(launch) + b"\n")
        return cls(process, log)

    @property
    def pid(self) -> int:
        """The worker's process id, which is also its group's."""
        return self._process.pid

    async def wait(self) -> int:
        """Return the exit status once the process has ended (negative: the signal)."""
        status = await self._process.wait()
        if not self._swept:  # once: later, the number may be another group's
            self._swept = True
            self._kill_group()  # tensor-parallel children must not outlive it
        # With a limit: something that it started in another group may hold the pipe for longer.
        await asyncio.wait({self._reader}, timeout=_OUTPUT_GRACE_S)
        return status

    async def end(self) -> None:
        """Kill the process and everything that it started; return once it has ended."""
        if self._process.returncode is None:
            self._kill_group()
        ended = asyncio.ensure_future(self.wait())
        try:
            while not (await asyncio.wait({ended}, timeout=ENDED_WITHIN_S))[0]:
                self._log.warning("engine_does_not_end", pid=self.pid)
                # Have the event loop look again, in case it missed the first signal.
                os.kill(os.getpid(), signal.SIGCHLD)
        finally:
            ended.cancel()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def last_words(self) -> str:
        """Return the last line of output that looks like a reason."""
        lines = [line for line in self._tail if line]
        errors = [line for line in lines if "Error" in line]
        return (errors or lines or [""])[-1][:500]

    async def _read_output(self, output: asyncio.StreamReader) -> None:
        """Keep the pipe empty; vLLM's own words go to the debug log.

        Block by block, and of each the last lines: a million short lines would stop the loop for
        seconds.
        """
        begun = b""
        while block := await output.read(_BLOCK_BYTES):
            *lines, begun = (begun + block).split(b"\n")
            self._keep(lines)
            begun = begun[-_LINE_BYTES:]
            await asyncio.sleep(0)  # a full pipe never waits
        self._keep([begun] if begun else [])

    def _keep(self, lines: list[bytes]) -> None:
        if len(lines) > _TAIL_LINES:
            self._log.debug("engine_output", line=f"... {len(lines) - _TAIL_LINES} more lines ...")
        for line in lines[-_TAIL_LINES:]:
            text = line[-_LINE_BYTES:].decode(errors="replace").rstrip()
            if text.startswith(PROGRESS):
                self._tell(Progress.read(text.removeprefix(PROGRESS)))
                continue
            self._tail.append(text)
            self._log.debug("engine_output", line=text)

    def _tell(self, progress: Progress) -> None:
        """Log a line about the start; a stage that only begins is what others wait for."""
        if progress.stage is None:
            self._log.info("engine_progress", **_facts(progress))
        elif progress.seconds is None:
            self.stage = progress.stage
        else:
            self._log.info("engine_stage", **_facts(progress))


def _facts(progress: Progress) -> dict[str, Any]:
    return {name: value for name, value in asdict(progress).items() if value is not None}

"""One worker process: its environment, its birth, its output, its death.

The child lives in a process group of its own and holds the read end of a pipe whose other end
is ours alone; whichever side dies, the other learns of it from the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes.util
import os
import re
import signal
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from embedding_service.engine.protocol import Launch
    from embedding_service.settings.gateway import Settings
    from embedding_service.settings.model import ModelOptions

_TAIL_LINES = 50
ENDED_WITHIN_S = 5.0  # of being killed; seen once to take longer, among several event loops of one process


class WorkerProcess:
    """A running worker. `wait` tells when it has ended; `end` kills it and all its children."""

    def __init__(self, process: asyncio.subprocess.Process, log: FilteringBoundLogger) -> None:
        self._process = process
        self._log = log
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._swept = False
        self._reader = asyncio.create_task(self._read_output())

    @classmethod
    async def start(
        cls, launch: Launch, options: ModelOptions, *, replica: int, environ: dict[str, str], log: FilteringBoundLogger
    ) -> WorkerProcess:
        """Start a worker with `environ` and what it needs beside, and tell it what to do."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "embedding_service.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environ | environment(options, replica=replica),
            start_new_session=True,
            limit=1 << 20,
        )
        assert process.stdin is not None  # noqa: S101 - it was asked for
        process.stdin.write(msgspec.json.encode(launch) + b"\n")
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
        await asyncio.wait({self._reader}, timeout=1)  # what it started elsewhere may hold the pipe for longer
        return status

    async def end(self) -> None:
        """Kill the process and everything that it started; return once it has ended."""
        if self._process.returncode is None:
            self._kill_group()
        ended = asyncio.ensure_future(self.wait())
        try:
            while not (await asyncio.wait({ended}, timeout=ENDED_WITHIN_S))[0]:
                self._log.warning("engine_does_not_end", pid=self.pid)
                os.kill(os.getpid(), signal.SIGCHLD)  # have the event loop look again, if it missed the first
        finally:
            ended.cancel()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def last_words(self) -> str:
        """Return the last line of output that looks like a reason."""
        lines = [line for line in self._tail if line]
        return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "")[:500]

    async def _read_output(self) -> None:
        """Keep the pipe empty; vLLM's own words go to the debug log."""
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:  # a line over the limit; the rest of it comes as the next one
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self._tail.append(text)
            self._log.debug("engine_output", line=text)


def inherited(settings: Settings) -> dict[str, str]:
    """Return our own variables for all workers, without what is the gateway's business: settings and what holds keys.

    Where workers compute on the same cores, threads that wait must not spin: two workers on two cores gave 4 times
    as many requests (soak test, embedder and reranker). A worker that has its cores to itself is a little faster
    with spinning.
    """
    private = re.compile(r"NOTIFY_SOCKET|WATCHDOG_\w+|CREDENTIALS_DIRECTORY|API_KEY|API_TOKEN|EMBEDDING_\w+|OTEL_\w+")
    ours = {*settings.api_keys_env, *settings.environment}
    kept = {
        name: value
        for name, value in os.environ.items()
        if not (private.fullmatch(name.upper()) or name in ours)  # settings are read in either case
    }
    return {"OMP_WAIT_POLICY": "PASSIVE", **kept} if share_cores(settings) else kept


def environment(options: ModelOptions, *, replica: int) -> dict[str, str]:
    """Return the variables a worker needs before Python starts; what the operator has set wins."""
    wanted = {
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CPU_OMP_THREADS_BIND": cpu_binding(
            sorted(os.sched_getaffinity(0)),
            ranks=options.tensor_parallel_size,
            replica=replica,
            replicas=options.replicas,
        ),
    }
    if options.devices:
        count = options.tensor_parallel_size
        first = replica * count
        chosen = [options.devices[(first + i) % len(options.devices)] for i in range(count)]
        wanted["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, chosen))
    if tcmalloc := _tcmalloc():
        wanted["LD_PRELOAD"] = tcmalloc
    return {name: value for name, value in wanted.items() if name not in os.environ or name.startswith("CUDA")}


def share_cores(settings: Settings) -> bool:
    """Tell whether workers of this gateway will be bound to the same cores of a CPU."""
    cores = len(os.sched_getaffinity(0))
    models = settings.served_models
    return len(models) > 1 or any(model.replicas * model.tensor_parallel_size > cores for model in models)


def cpu_binding(cores: list[int], *, ranks: int, replica: int, replicas: int) -> str:
    """Split `cores` among replicas, then among tensor-parallel ranks, leaving none idle.

    vLLM's form: `0,1|2,3` binds rank 0 to cores 0 and 1. Its own `auto` keeps a core for a
    server that here lives in another process, which is one of two on a small machine.
    """

    def share(items: list[int], index: int, count: int) -> list[int]:
        if count >= len(items):
            return [items[index % len(items)]]
        return items[index * len(items) // count : (index + 1) * len(items) // count]

    own = share(cores, replica, replicas)
    return "|".join(",".join(map(str, share(own, rank, ranks))) for rank in range(ranks))


def _tcmalloc() -> str | None:
    """Return the library to preload where it is installed; vLLM advises it for CPUs."""
    for name in ("tcmalloc_minimal", "tcmalloc"):
        if soname := ctypes.util.find_library(name):
            for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"):
                if (path := Path(folder, soname)).exists():
                    return str(path)
    return None

"""A worker's process: how its end is noticed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from embedding_service.engine import process as process_module
from embedding_service.engine.process import WorkerProcess

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.process
def test_an_ended_worker_stays_ended_while_its_output_is_held_open(tmp_path: Path) -> None:
    """Children that a worker left may keep the pipe: `wait` tells of the end, and after giving up, too."""

    async def main() -> tuple[int, int]:
        process = await asyncio.create_subprocess_exec(
            "sh",
            "-c",
            "setsid sh -c 'echo $$; : >left; exec sleep 60' & until [ -e left ]; do sleep 0.1; done; exit 3",
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        worker = WorkerProcess(process, structlog.get_logger())
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(worker.wait(), 0.5)
            return await worker.wait(), await worker.wait()
        finally:
            os.kill(int(worker.last_words()), signal.SIGKILL)
            await worker.wait()

    assert asyncio.run(main()) == (3, 3)


def test_an_end_that_was_missed_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event loop that did not hear of the end is made to look again."""
    monkeypatch.setattr(process_module, "ENDED_WITHIN_S", 0.1)
    signs: list[tuple[int, int]] = []

    class Deaf:
        """A process whose event loop missed the sign of its end, and hears the next one."""

        def __init__(self) -> None:
            self.pid, self.returncode, self.stdout, self.heard = (
                0,
                -9,
                asyncio.StreamReader(),
                asyncio.Event(),
            )
            self.stdout.feed_eof()

        async def wait(self) -> int:
            await self.heard.wait()
            return self.returncode

    async def main() -> list[Any]:
        deaf: Any = Deaf()
        monkeypatch.setattr(os, "kill", lambda *sign: (signs.append(sign), deaf.heard.set()))
        monkeypatch.setattr(os, "killpg", lambda *_: None)
        with structlog.testing.capture_logs() as log:
            await asyncio.wait_for(WorkerProcess(deaf, structlog.get_logger()).end(), 20)
        return [line["event"] for line in log]

    assert asyncio.run(main()) == ["engine_does_not_end"]
    assert signs == [(os.getpid(), signal.SIGCHLD)]


@pytest.mark.process
def test_many_short_lines_do_not_stop_the_loop() -> None:
    """A worker that prints a million lines keeps nobody waiting, and its last words are known."""
    program = (
        "import sys; sys.stdout.write('x\\n' * 3_000_000 + 'ValueError: the end'); sys.exit(3)"
    )

    async def main() -> float:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
        worker = WorkerProcess(process, structlog.wrap_logger(None, processors=[dropped]))
        ended, longest_s = asyncio.ensure_future(worker.wait()), 0.0
        while not ended.done():
            began = time.thread_time()
            await asyncio.sleep(0)
            longest_s = max(longest_s, time.thread_time() - began)
        assert await ended == 3
        assert worker.last_words() == "ValueError: the end"
        return longest_s

    assert any(asyncio.run(main()) < 0.05 for _ in range(3))  # others use the same cores


def dropped(*_: object) -> Any:
    raise structlog.DropEvent


def test_a_start_is_told_in_stages() -> None:
    """A stage that begins is what is waited for; one that has ended is logged with its facts, and so
    is a download; words alone are a line as they are.
    """
    program = """
from embedding_service.worker import progress
with progress.stage("weights") as facts:
    facts["detail"] = "from a folder"
progress.say("half of it", done_bytes=1, total_bytes=2)
print("embedding-service: {plain words")
with progress.stage("warm-up") as facts:
    facts.update(progress.memory())
    print("another line")
"""
    log: list[dict[str, Any]] = []

    def keep(_: object, __: str, event: dict[str, Any]) -> Any:
        log.append(event)
        raise structlog.DropEvent

    async def main() -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
        worker = WorkerProcess(process, structlog.wrap_logger(None, processors=[keep]))
        await worker.wait()
        return worker.stage

    assert asyncio.run(main()) == "warm-up"
    told = [event for event in log if event["event"] != "engine_output"]
    weights, half, words, warm_up = told
    assert (weights["stage"], weights["detail"], weights["seconds"] >= 0) == (
        "weights",
        "from a folder",
        True,
    )
    assert (half["done_bytes"], half["total_bytes"], half["detail"]) == (1, 2, "half of it")
    assert words == {"event": "engine_progress", "detail": "{plain words"}
    assert warm_up["memory_bytes"] > 1e6

"""A gateway as its users start it: a process of its own, whose output is kept in a file."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from tests.conftest import PLAIN
from tests.test_cli import ENVIRONMENT, FAKE, ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

SERVE = ("-m", "embedding_service", "serve")


class Child:
    """A running gateway with the fake engine; `python` is what the interpreter is told to run."""

    def __init__(
        self, folder: Path, *arguments: str, python: tuple[str, ...] = SERVE, **environment: str
    ) -> None:
        self.output = folder / "output"
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, *python, *FAKE, *arguments],
                cwd=ROOT,
                env=ENVIRONMENT | environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self.url = "http://" + self.wait_for("listening")[0]["address"]
        self.wait_for("ready")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return what the log says under this name so far."""
        lines = self.output.read_text(encoding="utf-8").splitlines()
        entries = [
            json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")
        ]
        return [entry for entry in entries if entry["event"] == name]

    def wait_for(self, name: str, count: int = 1) -> list[dict[str, Any]]:
        """Return the log's lines under this name once there are so many."""
        wait_until(lambda: len(self.events(name)) >= count or self.process.poll() is not None)
        found = self.events(name)
        assert len(found) >= count, self.output.read_text(encoding="utf-8")
        return found

    def client(self, **options: Any) -> httpx.Client:
        """Return an HTTP client for this gateway."""
        return httpx.Client(**PLAIN | {"base_url": self.url, **options})

    def end(self) -> int:
        """Drain and end it; return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                os.kill(self.process.pid, signal.SIGKILL)
                self.process.wait()
        return self.process.returncode


def memory_bytes(pid: int) -> int:
    """Return what a process has allocated.

    Libraries are left out: a process's share of them (`Pss`) grows whenever another one that has
    mapped them ends.
    """
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    found = re.search(r"^Anonymous:\s+(\d+) kB", rollup, re.MULTILINE)
    assert found
    return 1024 * int(found[1])


def wait_until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    """Return once the condition holds."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)

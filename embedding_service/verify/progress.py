"""How far a long comparison is: on a terminal one line, else a line now and then."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

_EVERY_S = 5.0


class Progress:
    """Tells on standard error what is done, and of how much."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._over = self._out.isatty()
        self._told = 0.0

    def say(self, text: str) -> None:
        """Write a line."""
        self._write(f"{text}\n")

    def count(self, task: str, done: int, total: int) -> None:
        """Tell how much of a task is done, not more often than every five seconds."""
        last = done >= total
        if not last and not self._over and time.monotonic() - self._told < _EVERY_S:
            return
        self._told = time.monotonic()
        share = f"{task}: {done} of {total} ({done / max(1, total):.0%})"
        self._write(share + ("\n" if last or not self._over else ""))

    def _write(self, text: str) -> None:
        start = "\r\x1b[K" if self._over else ""
        self._out.write(start + text)
        self._out.flush()

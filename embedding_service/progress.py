"""How far long work is, on standard error: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TextIO

_EVERY_S = 5.0


class Progress:
    """Tells how much is done of one task after another. To be closed, which ends the bar."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self.has_bar = self._out.isatty()
        self._bar: Any = None
        self._told = 0.0

    def say(self, text: str) -> None:
        """Write a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
            return
        self._out.write(f"{text}\n")
        self._out.flush()

    def count(self, task: str, done: int, total: int | None) -> None:
        """Tell how much of a task is done; as lines not more often than every five seconds."""
        if self.has_bar:
            self._bar = self._bar or _bar(self._out)
            self._bar.update(0, description=task, completed=done, total=total)
        elif done == total or monotonic() - self._told >= _EVERY_S:
            self._told = monotonic()
            self.say(f"{task}: {done} of {total} ({done / (total or 1):.0%})")

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _bar(out: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    bar = Bar(*columns, console=Console(file=out))
    bar.add_task("", total=None)
    bar.start()
    return bar

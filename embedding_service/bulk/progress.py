"""How far a job is: a bar on a terminal, elsewhere a line every half minute."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from embedding_service.progress import Progress as Printer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from structlog.typing import FilteringBoundLogger

_EVERY_S = 30.0
_BAR_EVERY_S = 0.2


class Progress:
    """Counts rows, tokens and bytes of the inputs. Without `total_bytes` nobody knows the end."""

    def __init__(self, log: FilteringBoundLogger, total_bytes: int | None) -> None:
        self.rows = self.skipped = self.tokens = self.failed = 0
        self._log = log
        self._total_bytes = total_bytes
        self._bytes = self._skipped_bytes = 0
        self._began = self._shown = time.monotonic()
        self._printer = Printer()

    def skip(self, rows: int, bytes_read: int) -> None:
        """Count rows that were done before."""
        self.skipped += rows
        self._bytes = self._skipped_bytes = bytes_read

    def add(self, rows: int, tokens: int, failed: int, bytes_read: int) -> None:
        """Count rows that are done now; `failed` of them without vectors."""
        self.rows += rows
        self.tokens += tokens
        self.failed += failed
        self._bytes = bytes_read
        if time.monotonic() - self._shown >= (_BAR_EVERY_S if self._printer.has_bar else _EVERY_S):
            self._show()

    @property
    def seconds(self) -> float:
        """Since the first row was read."""
        return max(1e-6, time.monotonic() - self._began)

    @property
    def left_s(self) -> float | None:
        """How long it should still take, going by the bytes of the inputs.

        Nobody knows once the last of them is read, which a small corpus is at the beginning.
        """
        done = self._bytes - self._skipped_bytes
        if self._total_bytes is None or done <= 0 or self._bytes >= self._total_bytes:
            return None
        return self.seconds / done * (self._total_bytes - self._bytes)

    def figures(self) -> dict[str, Any]:
        """Return the counts for a log line."""
        found = {
            "rows": self.rows,
            "failed": self.failed,
            "rows_per_s": round(self.rows / self.seconds, 1),
            "tokens_per_s": round(self.tokens / self.seconds),
        }
        if self.skipped:
            found["done_before"] = self.skipped
        return found

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show it as long as the block lasts."""
        self._began = self._shown = time.monotonic()
        with contextlib.closing(self._printer):
            if self._printer.has_bar:
                self._show()
            yield

    def _show(self) -> None:
        self._shown = time.monotonic()
        figures, left_s = self.figures(), self.left_s
        if self._printer.has_bar:
            text = f"{self.skipped + self.rows:,} rows, {figures['tokens_per_s']:,} tokens/s"
            self._printer.count(text, self._bytes, self._total_bytes)
            return
        left = {} if left_s is None else {"left_s": round(left_s)}
        self._log.info("embedding", **figures, **left)

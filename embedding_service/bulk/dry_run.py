"""How much a job is, and how long it will take, from a minute of it."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

import structlog

from embedding_service.bulk.pipeline import Pipeline
from embedding_service.bulk.progress import Progress
from embedding_service.bulk.rows import Reader
from embedding_service.errors import BadConfiguration

if TYPE_CHECKING:
    from embedding_service.bulk.embedder import Embedder
    from embedding_service.bulk.rows import Corpus, Row

MEASURED_S = 60.0


class _Minute(Reader):
    """Rows that end after a minute."""

    until = float("inf")

    def take(self, rows: int, characters: int) -> list[Row]:
        return [] if time.monotonic() > self.until else super().take(rows, characters)


class Nowhere:
    """A sink that keeps nothing."""

    def is_done(self, number: int) -> bool:  # noqa: ARG002
        """Have every part embedded."""
        return False

    def add(self, *_: object) -> None:
        """Drop what was embedded."""

    def end(self, rows: int) -> None:
        """Complete nothing."""

    def abandon(self) -> None:
        """Remove nothing."""


async def measure(corpus: Corpus, embedder: Embedder, rows_per_part: int) -> None:
    """Print rows, tokens and time on standard output. Raises `BadConfiguration`, `BadInput`."""
    if corpus.is_piped:
        raise BadConfiguration("--dry-run reads twice, and standard input can be read once")
    rows = await asyncio.to_thread(corpus.reader().skip, sys.maxsize)
    progress = Progress(structlog.get_logger(), None)
    reader = _Minute(corpus)
    job = Pipeline(reader, embedder, Nowhere(), progress, rows_per_part=rows_per_part)
    with progress.shown():
        reader.until = time.monotonic() + MEASURED_S
        await job.run()
    sys.stdout.write("\n".join(_lines(rows, progress, embedder.cached)) + "\n")


def _lines(rows: int, progress: Progress, cached: int) -> list[str]:
    """Say how much it is; about, where only a part of it was read."""
    measured, seconds = max(1, progress.rows), progress.seconds
    whole = progress.rows >= rows
    tokens = progress.tokens if whole else round(progress.tokens / measured * rows)
    about = "" if whole else "about "
    speed = f"{measured / seconds:,.0f} rows/s and {progress.tokens / seconds:,.0f} tokens/s"
    time_left = f"about {_duration(seconds / measured * rows)}, at {speed}"
    if cached:
        time_left = f"{cached:,} texts were answered from a cache: no estimate of the time; {speed}"
    return [
        f"{rows:,} rows",
        f"{about}{tokens:,} tokens, {progress.tokens / measured:.1f} a row",
        f"{time_left} (measured for {seconds:.0f} s)",
        f"{progress.failed:,} of the first {progress.rows:,} rows cannot be embedded",
    ]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"

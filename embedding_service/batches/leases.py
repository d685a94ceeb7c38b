"""Leases: who works on a batch, and what a worker writes about it.

An instance works on a batch as long as it holds its lease. Each lease has a higher number than the
one before (a fencing token), which every write names: one that comes late is refused. Functions
with a connection run within `Store.run`.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from embedding_service.batches import files
from embedding_service.batches.files import UNFINISHED
from embedding_service.batches.ledger import COLUMNS, batch_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from sqlite3 import Connection

    from embedding_service.batches.files import StoredFile
    from embedding_service.batches.ledger import Batch

KINDS = ("output", "error")  # of results


class LeaseLost(Exception):
    """Another instance works on this batch now, or it has ended."""


class Segment(NamedTuple):
    """The lines that were written under one lease, in files of their own; more bytes are void."""

    fence: int
    output_bytes: int
    error_bytes: int


@dataclass(slots=True)
class Progress:
    """The state of a batch's lines, written after each group of lines."""

    done: bytearray
    completed: int
    failed: int
    tokens: int
    model: str | None
    output_bytes: int = 0
    error_bytes: int = 0


def acquire(
    db: Connection, holder: str, *, owners: Collection[str], busy: Collection[str], until: float
) -> Batch | None:
    """Take the lease of the oldest batch that nobody works on, until a time of day.

    Of `owners` alone, whose rights are known here, and of none that is `busy`: one batch of each
    owner runs at a time, so that nobody's hundred batches keep others waiting.
    """
    query = f"""
        UPDATE batches SET holder = :holder, fence = fence + 1, lease_until = :until
        WHERE seq = (
            SELECT seq FROM batches
            WHERE status IN {UNFINISHED} AND lease_until < :now
            AND (status = 'cancelling' OR owner IN (SELECT value FROM json_each(:owners)))
            AND owner NOT IN (SELECT value FROM json_each(:busy))
            ORDER BY seq LIMIT 1
        ) RETURNING {COLUMNS}"""
    named = {"owners": json.dumps(list(owners)), "busy": json.dumps(list(busy))}
    rows = db.execute(
        query, {"holder": holder, "until": until, "now": time.time(), **named}
    ).fetchall()
    return batch_of(rows[0]) if rows else None


def holders(db: Connection) -> list[str]:
    """Return who holds leases."""
    query = f"SELECT DISTINCT holder FROM batches WHERE status IN {UNFINISHED} AND holder NOTNULL"
    return [row[0] for row in db.execute(query).fetchall()]


def end_leases(db: Connection, holders: Collection[str]) -> None:
    """End the leases of instances that are gone."""
    db.execute(
        "UPDATE batches SET lease_until = 0, holder = NULL "
        "WHERE holder IN (SELECT value FROM json_each(?))",
        (json.dumps(list(holders)),),
    )


def renew(db: Connection, batch: Batch, *, until: float) -> str:
    """Keep the lease for longer; return the batch's status. Raises `LeaseLost`."""
    _update(db, batch, "lease_until = :until", until=until)
    row = db.execute("SELECT status FROM batches WHERE id = ?", (batch.id,)).fetchone()
    return str(row[0])


def release(db: Connection, batch: Batch) -> None:
    """Leave the batch to whoever takes it next. Raises `LeaseLost`."""
    _update(db, batch, "lease_until = 0, holder = NULL")


def begin(db: Connection, batch: Batch, *, total: int) -> None:
    """Note that the input file is valid, its spaces and number of lines. Raises `LeaseLost`."""
    setting = (
        "required_spaces = :spaces, total = :total, done = zeroblob(:size), "
        "in_progress_at = :now, progress_at = :now, "
        "status = CASE status WHEN 'validating' THEN 'in_progress' ELSE status END"
    )
    spaces = None if batch.required_spaces is None else json.dumps(batch.required_spaces)
    size, now = (total + 7) // 8, int(time.time())
    _update(db, batch, setting, spaces=spaces, total=total, size=size, now=now)


def advance(db: Connection, batch: Batch, progress: Progress) -> None:
    """Note the lines that have settled, and how much of this lease's files is valid.

    Raises `LeaseLost`.
    """
    setting = (
        "done = :done, completed = :completed, failed = :failed, tokens = :tokens, "
        "model = :model, progress_at = :now"
    )
    _update(db, batch, setting, **asdict(progress), now=time.time())
    db.execute(
        "INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?)",
        (batch.id, batch.fence, progress.output_bytes, progress.error_bytes),
    )


def finalize(db: Connection, batch: Batch) -> list[Segment]:
    """Note that all lines have settled; return what was written, in order. Raises `LeaseLost`."""
    setting = (
        "finalizing_at = CASE status WHEN 'in_progress' THEN :now ELSE finalizing_at END, "
        "progress_at = :now, "
        "status = CASE status WHEN 'in_progress' THEN 'finalizing' ELSE status END"
    )
    _update(db, batch, setting, now=int(time.time()))
    query = (
        "SELECT fence, output_bytes, error_bytes FROM segments WHERE batch_id = ? ORDER BY fence"
    )
    return [Segment(*row) for row in db.execute(query, (batch.id,)).fetchall()]


def finish(
    db: Connection,
    batch: Batch,
    status: str,
    results: Mapping[str, StoredFile],
    errors: list[dict[str, Any]] | None = None,
) -> None:
    """End a batch with its files by kind, whose content is in its place. Raises `LeaseLost`."""
    for file in results.values():
        files.add(db, file)
    ids = {kind: file.id for kind, file in results.items()}
    setting = (
        "status = :status, output_file_id = :output, error_file_id = :error, errors = :errors, "
        f"{status}_at = :now, progress_at = :now, holder = NULL, lease_until = 0"
    )
    _update(
        db,
        batch,
        setting,
        status=status,
        **dict.fromkeys(KINDS) | ids,
        errors=None if errors is None else json.dumps(errors),
        now=int(time.time()),
    )
    db.execute("DELETE FROM segments WHERE batch_id = ?", (batch.id,))


def _update(db: Connection, batch: Batch, setting: str, **values: Any) -> None:
    """Change a batch as long as it is ours. Raises `LeaseLost`."""
    query = (
        f"UPDATE batches SET {setting} WHERE id = :id AND fence = :fence AND status IN {UNFINISHED}"
    )
    if not db.execute(query, {"id": batch.id, "fence": batch.fence, **values}).rowcount:
        raise LeaseLost

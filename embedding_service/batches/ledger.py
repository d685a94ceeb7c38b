"""Batches as rows: their life, and who may work on one.

An instance works on a batch as long as it holds its lease. Each lease has a higher number than the
one before (a fencing token), which every write names: one that comes late is refused. Functions
with a connection run within `Store.run`.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from embedding_service.batches import files
from embedding_service.batches.files import UNFINISHED
from embedding_service.errors import InvalidRequest, ObjectNotFound

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterable

    from embedding_service.batches.files import StoredFile

STATUSES = (*UNFINISHED, "failed", "completed", "expired", "cancelled")


class LeaseLost(Exception):
    """Another instance works on this batch now, or it has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch. Times are in seconds since 1970; `done` has a bit for each line that has settled.

    `required_spaces` are what `Call.required` was when the batch was made.
    """

    id: str
    owner: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    metadata: dict[str, str] | None = None
    output_ttl_s: int | None = None
    required_spaces: list[list[str]] | None = None
    status: str = "validating"
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: list[dict[str, Any]] | None = None
    model: str | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    tokens: int = 0
    done: bytes = b""
    fence: int = 0


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


_NAMES = tuple(field.name for field in fields(Batch))
_JSON = frozenset({"metadata", "required_spaces", "errors"})
_COLUMNS = ", ".join(_NAMES)


def _batch(row: sqlite3.Row) -> Batch:
    values = {name: row[name] for name in _NAMES}
    return Batch(
        **values | {name: json.loads(values[name]) for name in _JSON if values[name] is not None}
    )


def create(db: sqlite3.Connection, batch: Batch, *, most: int) -> Batch:
    """Enter a batch. Raises `ObjectNotFound` without its file, `InvalidRequest` for too many."""
    files.find(db, batch.owner, batch.input_file_id)
    query = f"SELECT count(*) FROM batches WHERE owner = ? AND status IN {UNFINISHED}"
    (count,) = db.execute(query, (batch.owner,)).fetchone()
    if count >= most:
        raise InvalidRequest(
            f"{count} batches are not finished, and max_batches of this server is {most}; wait for "
            "one to end, or cancel it",
            code="batch_limit_exceeded",
        )
    values = {name: getattr(batch, name) for name in _NAMES}
    trees = {name: json.dumps(values[name]) for name in _JSON if values[name] is not None}
    names = ", ".join(f":{name}" for name in _NAMES)
    db.execute(
        f"INSERT INTO batches ({_COLUMNS}, progress_at) VALUES ({names}, :now)",
        {**values, **trees, "now": time.time()},
    )
    return batch


def find(db: sqlite3.Connection, owner: str, batch_id: str) -> Batch:
    """Return an owner's batch. Raises `ObjectNotFound`, also for other owners' ones."""
    query = f"SELECT {_COLUMNS} FROM batches WHERE id = ? AND owner = ?"
    row = db.execute(query, (batch_id, owner)).fetchone()
    if row is None:
        raise ObjectNotFound("there is no batch with this id; see /v1/batches", param="batch_id")
    return _batch(row)


def page(
    db: sqlite3.Connection, owner: str, *, after: str | None, limit: int
) -> tuple[list[Batch], bool]:
    """Return a page of batches, the newest first, and whether there are more behind it."""
    start = files.place(db, "batches", owner, after)
    query = (
        f"SELECT {_COLUMNS} FROM batches WHERE owner = :owner "
        "AND (:start IS NULL OR seq < :start) ORDER BY seq DESC LIMIT :most"
    )
    rows = db.execute(query, {"owner": owner, "start": start, "most": limit + 1}).fetchall()
    return [_batch(row) for row in rows[:limit]], len(rows) > limit


def cancel(db: sqlite3.Connection, owner: str, batch_id: str) -> Batch:
    """Have a batch end early. Raises `ObjectNotFound`; `InvalidRequest` if it has ended."""
    batch = find(db, owner, batch_id)
    if batch.status not in UNFINISHED:
        raise InvalidRequest(
            f"a batch that is {batch.status} cannot be cancelled",
            param="batch_id",
            code="batch_not_cancellable",
        )
    _cancel(db, "id = ?", (batch_id,))
    return find(db, owner, batch_id)


def cancel_others(db: sqlite3.Connection, owners: Iterable[str]) -> int:
    """Cancel the unfinished batches of everybody else; return how many there were."""
    return _cancel(db, "owner NOT IN (SELECT value FROM json_each(?))", (json.dumps(list(owners)),))


def _cancel(db: sqlite3.Connection, condition: str, values: tuple[str, ...]) -> int:
    query = (
        "UPDATE batches SET status = 'cancelling', cancelling_at = ? "
        f"WHERE status IN {UNFINISHED} AND status != 'cancelling' AND {condition}"
    )
    return db.execute(query, (int(time.time()), *values)).rowcount


def acquire(
    db: sqlite3.Connection,
    holder: str,
    *,
    owners: Collection[str],
    busy: Collection[str],
    until: float,
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
        ) RETURNING {_COLUMNS}"""
    named = {"owners": json.dumps(list(owners)), "busy": json.dumps(list(busy))}
    rows = db.execute(
        query, {"holder": holder, "until": until, "now": time.time(), **named}
    ).fetchall()
    return _batch(rows[0]) if rows else None


def unfinished(db: sqlite3.Connection) -> set[str]:
    """Return the ids of all batches that have not ended."""
    query = f"SELECT id FROM batches WHERE status IN {UNFINISHED}"
    return {row[0] for row in db.execute(query).fetchall()}


def holders(db: sqlite3.Connection) -> list[str]:
    """Return who holds leases."""
    query = f"SELECT DISTINCT holder FROM batches WHERE status IN {UNFINISHED} AND holder NOTNULL"
    return [row[0] for row in db.execute(query).fetchall()]


def end_leases(db: sqlite3.Connection, holders: Collection[str]) -> None:
    """End the leases of instances that are gone."""
    db.execute(
        "UPDATE batches SET lease_until = 0, holder = NULL "
        "WHERE holder IN (SELECT value FROM json_each(?))",
        (json.dumps(list(holders)),),
    )


def renew(db: sqlite3.Connection, batch: Batch, *, until: float) -> str:
    """Keep the lease for longer; return the batch's status. Raises `LeaseLost`."""
    _update(db, batch, "lease_until = :until", until=until)
    row = db.execute("SELECT status FROM batches WHERE id = ?", (batch.id,)).fetchone()
    return str(row[0])


def release(db: sqlite3.Connection, batch: Batch) -> None:
    """Leave the batch to whoever takes it next. Raises `LeaseLost`."""
    _update(db, batch, "lease_until = 0, holder = NULL")


def begin(db: sqlite3.Connection, batch: Batch, *, total: int) -> None:
    """Note that the input file is valid, its spaces and number of lines. Raises `LeaseLost`."""
    setting = (
        "required_spaces = :spaces, total = :total, done = zeroblob(:size), "
        "in_progress_at = :now, progress_at = :now, "
        "status = CASE status WHEN 'validating' THEN 'in_progress' ELSE status END"
    )
    spaces = None if batch.required_spaces is None else json.dumps(batch.required_spaces)
    size, now = (total + 7) // 8, int(time.time())
    _update(db, batch, setting, spaces=spaces, total=total, size=size, now=now)


def advance(db: sqlite3.Connection, batch: Batch, progress: Progress) -> None:
    """Note the lines that have settled, and how much of this lease's files is valid.

    Raises `LeaseLost`.
    """
    setting = (
        "done = :done, completed = :completed, failed = :failed, tokens = :tokens, "
        "model = :model, progress_at = :now"
    )
    _update(
        db,
        batch,
        setting,
        done=bytes(progress.done),
        completed=progress.completed,
        failed=progress.failed,
        tokens=progress.tokens,
        model=progress.model,
        now=time.time(),
    )
    db.execute(
        "INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?)",
        (batch.id, batch.fence, progress.output_bytes, progress.error_bytes),
    )


def finalize(db: sqlite3.Connection, batch: Batch) -> list[Segment]:
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
    db: sqlite3.Connection,
    batch: Batch,
    status: str,
    *,
    output: StoredFile | None = None,
    error: StoredFile | None = None,
    errors: list[dict[str, Any]] | None = None,
) -> None:
    """End a batch with its files, whose content is in its place. Raises `LeaseLost`."""
    for file in (output, error):
        if file is not None:
            files.add(db, file)
    setting = (
        "status = :status, output_file_id = :output, error_file_id = :error, errors = :errors, "
        f"{status}_at = :now, progress_at = :now, holder = NULL, lease_until = 0"
    )
    _update(
        db,
        batch,
        setting,
        status=status,
        output=output and output.id,
        error=error and error.id,
        errors=None if errors is None else json.dumps(errors),
        now=int(time.time()),
    )
    db.execute("DELETE FROM segments WHERE batch_id = ?", (batch.id,))


def _update(db: sqlite3.Connection, batch: Batch, setting: str, **values: Any) -> None:
    """Change a batch as long as it is ours. Raises `LeaseLost`."""
    query = (
        f"UPDATE batches SET {setting} WHERE id = :id AND fence = :fence AND status IN {UNFINISHED}"
    )
    changed = db.execute(query, {"id": batch.id, "fence": batch.fence, **values}).rowcount
    if not changed:
        raise LeaseLost


def forget(db: sqlite3.Connection, before: float) -> None:
    """Forget the batches that ended long ago: their files are gone as well."""
    query = f"DELETE FROM batches WHERE created_at < ? AND status NOT IN {UNFINISHED}"
    db.execute(query, (before,))


class Counts(NamedTuple):
    """Batches by status, the oldest unfinished one's age, and how long an owner's stand still."""

    by_status: dict[str, int]
    oldest_s: float
    stalled_s: float


def count(db: sqlite3.Connection) -> Counts:
    """Return how things are."""
    rows = db.execute("SELECT status, count(*) FROM batches GROUP BY status").fetchall()
    now = time.time()
    # By owner: of several batches one runs, and the others wait for their turn.
    query = (
        "SELECT min(created), min(moved) FROM (SELECT min(created_at) created, "
        f"max(progress_at) moved FROM batches WHERE status IN {UNFINISHED} GROUP BY owner)"
    )
    created, moved = db.execute(query).fetchone()
    by_status = dict.fromkeys(STATUSES, 0) | {row[0]: row[1] for row in rows}
    return Counts(by_status, now - (created or now), max(0.0, now - (moved or now)))

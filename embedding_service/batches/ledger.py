"""Batches as rows: made, listed, cancelled and counted; `leases.py` has the work on them.

Functions with a connection run within `Store.run`.
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
    from collections.abc import Iterable
    from sqlite3 import Connection, Row

STATUSES = (*UNFINISHED, "failed", "completed", "expired", "cancelled")


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


_NAMES = tuple(field.name for field in fields(Batch))
_JSON = frozenset({"metadata", "required_spaces", "errors"})
COLUMNS = ", ".join(_NAMES)


def batch_of(row: Row) -> Batch:
    """Return the batch in a row with all `COLUMNS`."""
    values = {name: row[name] for name in _NAMES}
    return Batch(
        **values | {name: json.loads(values[name]) for name in _JSON if values[name] is not None}
    )


def create(db: Connection, batch: Batch, *, most: int) -> Batch:
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
        f"INSERT INTO batches ({COLUMNS}, progress_at) VALUES ({names}, :now)",
        {**values, **trees, "now": time.time()},
    )
    return batch


def find(db: Connection, owner: str, batch_id: str) -> Batch:
    """Return an owner's batch. Raises `ObjectNotFound`, also for other owners' ones."""
    row = db.execute(
        f"SELECT {COLUMNS} FROM batches WHERE id = ? AND owner = ?", (batch_id, owner)
    ).fetchone()
    if row is None:
        raise ObjectNotFound("there is no batch with this id; see /v1/batches", param="batch_id")
    return batch_of(row)


def page(db: Connection, owner: str, *, after: str | None, limit: int) -> tuple[list[Batch], bool]:
    """Return a page of batches, the newest first, and whether there are more behind it."""
    start = files.place(db, "batches", owner, after)
    query = (
        f"SELECT {COLUMNS} FROM batches WHERE owner = :owner "
        "AND (:start IS NULL OR seq < :start) ORDER BY seq DESC LIMIT :most"
    )
    rows = db.execute(query, {"owner": owner, "start": start, "most": limit + 1}).fetchall()
    return [batch_of(row) for row in rows[:limit]], len(rows) > limit


def cancel(db: Connection, owner: str, batch_id: str) -> Batch:
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


def cancel_others(db: Connection, owners: Iterable[str]) -> int:
    """Cancel the unfinished batches of everybody else; return how many there were."""
    return _cancel(db, "owner NOT IN (SELECT value FROM json_each(?))", (json.dumps(list(owners)),))


def _cancel(db: Connection, condition: str, values: tuple[str, ...]) -> int:
    query = (
        "UPDATE batches SET status = 'cancelling', cancelling_at = ? "
        f"WHERE status IN {UNFINISHED} AND status != 'cancelling' AND {condition}"
    )
    return db.execute(query, (int(time.time()), *values)).rowcount


def unfinished(db: Connection) -> set[str]:
    """Return the ids of all batches that have not ended."""
    query = f"SELECT id FROM batches WHERE status IN {UNFINISHED}"
    return {row[0] for row in db.execute(query).fetchall()}


def forget(db: Connection, before: float) -> None:
    """Forget the batches that ended long ago: their files are gone as well."""
    query = f"DELETE FROM batches WHERE created_at < ? AND status NOT IN {UNFINISHED}"
    db.execute(query, (before,))


class Counts(NamedTuple):
    """Batches by status, the oldest unfinished one's age, and how long an owner's stand still."""

    by_status: dict[str, int]
    oldest_s: float
    stalled_s: float


def count(db: Connection) -> Counts:
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

"""Files of clients: rows of the database, each with its content beside it.

A file belongs to the name of a key. Functions with a connection run within `Store.run`.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING

from embedding_service.errors import InvalidRequest, ObjectNotFound

if TYPE_CHECKING:
    from collections.abc import Iterable
    from sqlite3 import Connection

    from embedding_service.batches.store import Store

# Uploads and results on their way are written all the time: what rests for longer and belongs to no
# row, is a crash's.
_ORPHANED_S = 3600.0
UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")
_IN_USE = f"SELECT 1 FROM batches WHERE input_file_id = files.id AND status IN {UNFINISHED}"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file; times are in seconds since 1970."""

    id: str
    owner: str
    purpose: str
    filename: str
    bytes: int
    created_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class Quota:
    """The most that one owner may keep."""

    files: int
    bytes: int

    def check(self, db: Connection, owner: str, new_bytes: int) -> None:
        """Raise `InvalidRequest` if there is no room for another file."""
        count, size = usage(db, owner)
        if count >= self.files:
            raise InvalidRequest(
                f"there are {count} files already, and max_files of this server is {self.files}; "
                "delete some",
                code="file_limit_exceeded",
            )
        if size + new_bytes > self.bytes:
            raise InvalidRequest(
                f"your files have {size} bytes, and max_stored_bytes of this server is "
                f"{self.bytes}; delete some",
                code="storage_limit_exceeded",
            )


_COLUMNS = ", ".join(field.name for field in fields(StoredFile))
_PLACES = ", ".join("?" for _ in fields(StoredFile))


def usage(db: Connection, owner: str) -> tuple[int, int]:
    """Return how many files an owner has, and their bytes."""
    count, size = db.execute(
        "SELECT count(*), coalesce(sum(bytes), 0) FROM files WHERE owner = ?", (owner,)
    ).fetchone()
    return count, size


def add(db: Connection, file: StoredFile, quota: Quota | None = None) -> None:
    """Enter a file whose content is in its place. Raises `InvalidRequest` beyond the quota."""
    if quota is not None:
        quota.check(db, file.owner, file.bytes)
    db.execute(f"INSERT INTO files ({_COLUMNS}) VALUES ({_PLACES})", astuple(file))


def find(db: Connection, owner: str, file_id: str) -> StoredFile:
    """Return an owner's file. Raises `ObjectNotFound`, also for other owners' and expired ones."""
    query = f"SELECT {_COLUMNS} FROM files WHERE id = ? AND owner = ? AND expires_at > ?"
    row = db.execute(query, (file_id, owner, time.time())).fetchone()
    if row is None:
        raise ObjectNotFound("there is no file with this id; see /v1/files", param="file_id")
    return StoredFile(*row)


def page(
    db: Connection,
    owner: str,
    *,
    after: str | None,
    limit: int,
    ascending: bool = False,
    purpose: str | None = None,
) -> tuple[list[StoredFile], bool]:
    """Return a page of files, the newest first, and whether there are more behind it."""
    order, beyond = ("ASC", ">") if ascending else ("DESC", "<")
    start = place(db, "files", owner, after)
    query = (
        f"SELECT {_COLUMNS} FROM files WHERE owner = :owner AND expires_at > :now "
        f"AND (:start IS NULL OR seq {beyond} :start) AND (:purpose IS NULL OR purpose = :purpose) "
        f"ORDER BY seq {order} LIMIT :most"
    )
    asked = {"owner": owner, "now": time.time(), "start": start, "purpose": purpose}
    rows = db.execute(query, {**asked, "most": limit + 1}).fetchall()
    return [StoredFile(*row) for row in rows[:limit]], len(rows) > limit


def place(db: Connection, table: str, owner: str, after: str | None) -> int | None:
    """Return the place behind which a page begins. Raises `InvalidRequest`."""
    if after is None:
        return None
    query = f"SELECT seq FROM {table} WHERE id = ? AND owner = ?"
    row = db.execute(query, (after, owner)).fetchone()
    if row is None:
        raise InvalidRequest(
            "after: there is nothing with this id; send the last_id of a page", param="after"
        )
    return int(row[0])


def delete(db: Connection, owner: str, file_id: str) -> None:
    """Forget a file. Raises `ObjectNotFound`; `InvalidRequest` while a batch reads it."""
    find(db, owner, file_id)
    query = f"SELECT 1 FROM files WHERE id = ? AND EXISTS ({_IN_USE})"
    if db.execute(query, (file_id,)).fetchone():
        raise InvalidRequest(
            "a batch is reading this file; cancel the batch, or wait for its end",
            param="file_id",
            code="file_in_use",
        )
    db.execute("DELETE FROM files WHERE id = ?", (file_id,))


def expire(db: Connection, now: float) -> list[str]:
    """Forget the files whose time is over, but for those that a batch reads; return their ids."""
    query = f"DELETE FROM files WHERE expires_at <= ? AND NOT EXISTS ({_IN_USE}) RETURNING id"
    return [row[0] for row in db.execute(query, (now,)).fetchall()]


def ids(db: Connection) -> set[str]:
    """Return the ids of all files."""
    return {row[0] for row in db.execute("SELECT id FROM files").fetchall()}


def remove(store: Store, file_ids: Iterable[str]) -> None:
    """Remove the contents of files."""
    for file_id in file_ids:
        store.path(file_id).unlink(missing_ok=True)


def sweep(store: Store, known: set[str], now: float) -> None:
    """Remove contents of no file that a crash has left behind. `known` are the ids of all files."""
    for path in store.files.iterdir():
        with contextlib.suppress(FileNotFoundError):  # renamed or removed by another instance
            if path.name not in known and path.stat().st_mtime < now - _ORPHANED_S:
                path.unlink()

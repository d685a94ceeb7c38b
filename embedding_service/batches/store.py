"""The state of files and batches: an SQLite database and a folder of files, in `state_dir`.

Instances of one host share both. Each call is one transaction in a thread: one thread writes, and
another one reads, which never waits for a writer. The event loop never waits for a disk.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import structlog

from embedding_service.errors import BadConfiguration, ServiceError, StorageFull, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_P = ParamSpec("_P")
_T = TypeVar("_T")
if TYPE_CHECKING:
    _Work = Callable[Concatenate[sqlite3.Connection, _P], _T]

VERSION = 1
_BUSY_S = 10.0  # how long another instance's transaction, of milliseconds, is waited for
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# A disk with room again, one that is mended, descriptors that others close.
_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE})


class Store:
    """The database and the folders of one `state_dir`. Raises `BadConfiguration` if it has none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = folder / "files"
        self.segments = folder / "batches"
        try:
            for path in (folder, self.files, self.segments):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = folder / "state.sqlite3"
            self._writer = _Connection(_open(path), "BEGIN IMMEDIATE")
            self._reader = _Connection(_connect(path, "ON"), "BEGIN")
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise BadConfiguration(
                f"state_dir: {folder}: {reason}; name a folder that can be written to"
            ) from None
        except sqlite3.Error as error:
            raise BadConfiguration(
                f"state_dir: {folder}: its database: {error}; mend that, or name another folder"
            ) from None

    async def run(self, work: _Work[_P, _T], *args: _P.args, **options: _P.kwargs) -> _T:
        """Return what `work` returns, once all that it wrote is on the disk.

        Raises what it raises, and then nothing is written; `StorageFull`, `Unavailable`.
        """
        return await self._writer.run(lambda db: work(db, *args, **options))

    async def read(self, work: _Work[_P, _T], *args: _P.args, **options: _P.kwargs) -> _T:
        """Return what `work` reads; all that `run` had written by then is there.

        Raises what it raises, and `Unavailable`.
        """
        return await self._reader.run(lambda db: work(db, *args, **options))

    async def close(self) -> None:
        """Close the database."""
        await self._reader.close()
        await self._writer.close()

    def path(self, file_id: str) -> Path:
        """Return where the content of a file is; ids are ours, and never a client's words."""
        return self.files / file_id


class _Connection:
    """A connection, and the thread that alone uses it; `begin` starts its transactions."""

    def __init__(self, db: sqlite3.Connection, begin: str) -> None:
        self._db = db
        self._begin = begin
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")

    async def run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Return what `work` returns, as one transaction. Raises `StorageFull`, `Unavailable`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, partial(self._transact, work))

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._db.close)
        self._thread.shutdown(wait=False)

    def _transact(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        db = self._db
        try:
            db.execute(self._begin)
            try:
                result = work(db)
            except BaseException:
                if db.in_transaction:  # SQLite itself has undone it where the disk is full
                    db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
        except sqlite3.Error as error:
            raise storage_error(error) from error
        return result


def _connect(path: Path, query_only: str = "OFF") -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    db.execute(f"PRAGMA query_only = {query_only}")
    return db


def _open(path: Path) -> sqlite3.Connection:
    """Open the database, and make its tables if it is new. Raises `BadConfiguration`."""
    db = _connect(path)
    path.chmod(0o600)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")  # a finished line stays finished after a power cut
    db.execute("BEGIN IMMEDIATE")  # another instance may be making the tables
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > VERSION:
        db.close()
        raise BadConfiguration(
            f"state_dir: {path} was written by a newer version of this service; use another folder"
        )
    if version == 0:
        schema = (files(__package__) / "schema.sql").read_text("utf-8")
        for statement in schema.split(";\n"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {VERSION}")
    db.execute("COMMIT")
    return db


def storage_error(error: OSError | sqlite3.Error) -> ServiceError:
    """Return the answer to a client whose data could not be written or read; log the cause."""
    structlog.get_logger().error("state_not_reached", reason=str(error))
    full = isinstance(error, OSError) and error.errno in _FULL
    if full or getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return StorageFull("the server has no room left for files; try again later")
    return Unavailable("the server cannot reach its files at the moment; try again shortly")


def may_pass(error: OSError) -> bool:
    """Tell whether the same attempt may succeed later."""
    return error.errno in _PASSING


def new_id(prefix: str) -> str:
    """Return an id that nobody can guess: 128 random bits."""
    return prefix + secrets.token_hex(16)

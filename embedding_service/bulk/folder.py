"""The folder of a job: which parts are done, and who writes to it.

A part is done once its file has its name: it is written under another one, synchronised and
renamed, after the list of its errors. `_manifest.json` says what the parts were made of, and can
lag behind them. Names that begin with `_` or `.` are no part of a data set for those who read one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
import time
import uuid
from typing import TYPE_CHECKING, Any

import orjson

from embedding_service.bulk.manifest import (
    MANIFEST,
    Manifest,
    differences,
    known_space,
    read_manifest,
)
from embedding_service.bulk.outputs import count_lines, count_rows
from embedding_service.disk import sync, sync_folder
from embedding_service.errors import BadConfiguration, BadInput, JobStopped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

ERRORS = "_errors.jsonl"
_PART_ERRORS = "_errors"  # the folder of each part's
# Written anew now and then: a billion rows are 50,000 parts.
_EVERY_S = 5.0


class Folder:
    """One job's folder, held by one process at a time. `identity` is what its rows depend on.

    A part with fewer rows than `least`, those that failed included, counts as missing: of inputs
    that may have been cut short, the last part may go on.
    """

    def __init__(self, path: Path, identity: dict[str, Any], *, least: int = 0) -> None:
        self.path = path
        self.identity = identity
        self.engine: str | None = None
        self._least = least
        self.rows: dict[str, int] = {}
        self.complete = False
        self._lock: int | None = None
        self._written = 0.0
        _check_place(path)
        if path.exists():
            try:
                self._hold()
                self._read()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def check_writable(self) -> None:
        """Raise `BadConfiguration` where no file can be made, which a model need not load for."""
        place = _existing(self.path)
        try:
            tempfile.TemporaryFile(dir=place, prefix=".", suffix=".tmp").close()
        except OSError as error:
            raise BadConfiguration(f"--out: {place}: {error.strerror}") from None

    def claim(self, more: dict[str, Any]) -> None:
        """Make the folder this job's, whose identity has now `more`, or refuse it.

        Raises `BadConfiguration`, `JobStopped`.
        """
        self.identity = self.identity | more
        with stopping(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._hold()
            self._read()
            for left in self.path.glob(".*.tmp"):
                left.unlink()
            self._write()

    def is_done(self, name: str) -> bool:
        """Whether the part of this name is complete."""
        if name not in self.rows:
            if not (self.path / name).exists():
                return False
            self.rows[name] = count_rows(self.path / name)
        return self._least == 0 or self._taken(name) >= self._least

    def _taken(self, name: str) -> int:
        """Return how many rows of the inputs a part stands for."""
        failed = count_lines(errors_path(self.path, name))
        return (self.rows[name] if name in self.rows else count_rows(self.path / name)) + failed

    def check_end(self, rows: int, rows_per_part: int) -> None:
        """Refuse inputs that end before the parts do. Raises `BadInput`."""
        last = max(self.path.glob("part-*"), key=_number, default=None)
        if last is None:
            return
        name = last.name.replace(".ids.", ".")
        if not (self.path / name).exists():
            return
        known = _number(last) * rows_per_part + self._taken(name)
        if rows < known:
            raise BadInput(
                f"the inputs end after {rows} rows, and {self.path} has {known}: something cut "
                "them short, or it is another job, for another folder"
            )

    def commit(self, part: Part) -> None:
        """Make a part one that is done. Raises `OSError`."""
        part.commit()
        self.note(part.name, part.rows)

    def note(self, name: str, rows: int) -> None:
        """Count a part that is done. Raises `OSError`."""
        self.rows[name] = rows
        if time.monotonic() - self._written > _EVERY_S:
            self._write()

    def errors(self) -> Iterator[bytes]:
        """Yield the errors of all parts, a line each, in their order."""
        lists = (self.path / _PART_ERRORS).glob("part-*.jsonl")
        for path in sorted(lists, key=_number):
            with path.open("rb") as file:
                yield from file

    def failed(self) -> int:
        """Return how many rows have no vectors."""
        return sum(1 for _ in self.errors())

    def finish(self) -> int:
        """Merge the errors, and note that all is done; return the number of errors."""
        with stopping(self.path):
            failed = self.failed()
            if failed:
                replace(self.path / ERRORS, self.errors())
            else:
                (self.path / ERRORS).unlink(missing_ok=True)
            self.complete = True
            self._write()
        return failed

    def _hold(self) -> None:
        """Keep other processes out. Raises `BadConfiguration` if one is in."""
        if self._lock is not None:
            return
        lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise BadConfiguration(f"{self.path}: another process is writing to it") from None
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS):
                raise
        self._lock = lock

    def _read(self) -> None:
        """Read the manifest, if there is one. Raises `BadConfiguration` if it is another job's."""
        if (found := read_manifest(self.path)) is None:
            return
        made_of = found.made_of | known_space(self.path)
        if wrong := list(differences(made_of, self.identity)):
            raise BadConfiguration(
                f"{self.path} is of another job: {'; '.join(wrong)}. Take another folder"
            )
        self.identity = made_of | self.identity
        self.engine = self.engine or found.engine
        known = found.parts.items()
        self.rows = {name: rows for name, rows in known if (self.path / name).exists()}
        self.complete = found.complete and len(self.rows) == len(known) and not self._least

    def _write(self) -> None:
        tree = Manifest(
            made_of=self.identity,
            engine=self.engine,
            complete=self.complete,
            rows=sum(self.rows.values()),
            parts=dict(sorted(self.rows.items())),
        )
        content = orjson.dumps(tree.model_dump(), option=orjson.OPT_INDENT_2)
        replace(self.path / MANIFEST, [content])
        self._written = time.monotonic()


class Part:
    """One part while it is written, into `file`, some `beside` it, and the list of `failures`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.rows = 0
        self.taken = 0  # rows, those included that failed
        self.failures: list[bytes] = []
        self.name = name
        self._folder = folder
        own = uuid.uuid4().hex[:8]  # a node that was given up may still write the same part
        self._temporary = folder / f".{name}.{own}.tmp"
        self.beside = folder / f".{name}.{own}.ids.tmp"
        self.file = self._temporary.open("wb")

    def commit(self) -> None:
        """Give everything its name, the part itself last; what an earlier try left is removed."""
        sync(self.file)
        self.file.close()
        stem, _, suffix = self.name.partition(".")
        errors = errors_path(self._folder, self.name)
        (self._folder / self.name).unlink(missing_ok=True)
        if self.failures:
            errors.parent.mkdir(exist_ok=True)
            replace(errors, self.failures)
        else:
            errors.unlink(missing_ok=True)
        if self.beside.exists():
            self.beside.rename(self._folder / f"{stem}.ids.{suffix}")
        self._temporary.rename(self._folder / self.name)
        sync_folder(self._folder)

    def clear(self) -> None:
        """Leave nothing unfinished; free the room that it took."""
        with contextlib.suppress(OSError):  # what was not flushed may find no room again
            self.file.close()
        for path in (self._temporary, self.beside):
            path.unlink(missing_ok=True)


def errors_path(folder: Path, part: str) -> Path:
    """Return where the errors of a part are listed."""
    return folder / _PART_ERRORS / f"{part.partition('.')[0]}.jsonl"


def _number(part: Path) -> int:
    """Return the number of a part by its name."""
    digits = part.name.removeprefix("part-").partition(".")[0]
    return int(digits) if digits.isdecimal() else -1


def _check_place(path: Path) -> None:
    """Raise `BadConfiguration` where a folder cannot be."""
    place = _existing(path)
    if not place.is_dir():
        kind = "a file" if place.exists() else "a link to nothing"
        raise BadConfiguration(f"{place} is {kind}; --out has to be a folder")


def _existing(path: Path) -> Path:
    """Return a path, or the lowest folder above it that is there."""
    return next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))


@contextlib.contextmanager
def stopping(path: Path) -> Iterator[None]:
    """Turn an error of the disk into one line. Raises `JobStopped`."""
    try:
        yield
    except OSError as error:
        raise JobStopped(
            f"{path}: {error.strerror or error}; all complete parts are kept, and the same command "
            "goes on from there"
        ) from None


def replace(path: Path, lines: Iterable[bytes]) -> None:
    """Write a file so that it has its old content or all of the new one, whatever happens."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(lines)
            sync(file)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)

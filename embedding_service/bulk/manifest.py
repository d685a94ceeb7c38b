"""The folder of a job: which parts are done, and what they were made of.

A part is done once its file has its name: it is written under another one, synchronised and
renamed, after the list of its errors. `_manifest.json` says what the parts were made of, and can
lag behind them. Names that begin with `_` or `.` are no part of a data set for those who read one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
import uuid
from itertools import chain
from typing import TYPE_CHECKING, Any

import orjson

from embedding_service.bulk.outputs import count_rows, sync
from embedding_service.errors import BadConfiguration, JobStopped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

MANIFEST, ERRORS = "_manifest.json", "_errors.jsonl"
SPACE = "_space.json"  # of the first engine of a cluster, until the manifest has it
_PART_ERRORS = "_errors"  # the folder of each part's
_VERSION = 1
# Written anew now and then: a billion rows are 50,000 parts.
_EVERY_S = 5.0


class Folder:
    """One job's folder, held by one process at a time. `identity` is what its rows depend on."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.identity = identity
        self.rows: dict[str, int] = {}
        self.complete = False
        self._lock: int | None = None
        self._written = 0.0
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
        return name in self.rows or self._find(name)

    def _find(self, name: str) -> bool:
        if not (self.path / name).exists():
            return False
        self.rows[name] = count_rows(self.path / name)
        return True

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
        for path in sorted((self.path / _PART_ERRORS).glob("*.jsonl"), key=_by_number):
            with path.open("rb") as file:
                yield from file

    def finish(self) -> int:
        """Merge the errors, and note that all is done; return the number of errors."""
        count = 0

        def counted() -> Iterator[bytes]:
            nonlocal count
            for line in self.errors():
                count += 1
                yield line

        with stopping(self.path):
            lines = counted()
            if (first := next(lines, None)) is not None:
                replace(self.path / ERRORS, chain([first], lines))
            self.complete = True
            self._write()
        return count

    def _hold(self) -> None:
        """Keep other processes out. Raises `BadConfiguration` if one is in."""
        if self._lock is not None:
            return
        if not self.path.is_dir():
            raise BadConfiguration(f"{self.path} is a file; --out has to be a folder")
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
        if (found := _read_manifest(self.path)) is None:
            return
        found["made_of"] |= known_space(self.path)
        if wrong := list(differences(found["made_of"], self.identity)):
            raise BadConfiguration(
                f"{self.path} is of another job: {'; '.join(wrong)}. Take another folder"
            )
        self.identity = found["made_of"] | self.identity
        known = found["parts"].items()
        self.rows = {name: rows for name, rows in known if (self.path / name).exists()}
        self.complete = found["complete"] and len(self.rows) == len(known)

    def _write(self) -> None:
        tree = {
            "version": _VERSION,
            "made_of": self.identity,
            "complete": self.complete,
            "rows": sum(self.rows.values()),
            "parts": dict(sorted(self.rows.items())),
        }
        replace(self.path / MANIFEST, [orjson.dumps(tree, option=orjson.OPT_INDENT_2)])
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
        """Give everything its name, the part itself last."""
        sync(self.file)
        self.file.close()
        stem, _, suffix = self.name.partition(".")
        errors = self._folder / _PART_ERRORS / f"{stem}.jsonl"
        if self.failures:
            errors.parent.mkdir(exist_ok=True)
            replace(errors, self.failures)
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


def _by_number(path: Path) -> tuple[int, str]:
    return len(path.name), path.name


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder, None for an empty folder. Raises `BadConfiguration`."""
    path = folder / MANIFEST
    try:
        found = orjson.loads(path.read_bytes())
        if found["version"] != _VERSION:
            raise BadConfiguration(f"{path} is of version {found['version']}; take another folder")
    except FileNotFoundError:
        if any(entry.name[0] != "." for entry in folder.iterdir()):
            raise BadConfiguration(
                f"{folder} holds something else, and no {MANIFEST}; take another folder"
            ) from None
        return None
    except (ValueError, TypeError, KeyError):
        raise BadConfiguration(f"{path} is damaged; take another folder") from None
    tree: dict[str, Any] = found
    return tree


def known_space(folder: Path) -> dict[str, Any]:
    """Return what the engines of a cluster have agreed on, if anything."""
    with contextlib.suppress(FileNotFoundError):
        return dict(orjson.loads((folder / SPACE).read_bytes()))
    return {}


def differences(found: Any, wanted: Any, place: str = "") -> Iterator[str]:
    """Yield where two trees differ, for a person; what only `found` has may be asked for later."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name, value in wanted.items():
            where = f"{place}.{name}" if place else str(name)
            yield from differences(found.get(name, value), value, where)
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for index, (was, value) in enumerate(zip(found, wanted, strict=True)):
            yield from differences(was, value, f"{place}[{index}]")
    elif found != wanted:
        yield f"its {place} is {_shown(found)}, and not {_shown(wanted)}"


def _shown(value: Any) -> str:
    text = f"{len(value)} items" if isinstance(value, list | dict) else repr(value)
    return text[:200]


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


def sync_folder(path: Path) -> None:
    """Have the names in a folder survive a loss of power."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)

"""The files of a bulk job: found by path, folder, pattern or URL, and opened as streams."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import hashlib
import io
import re
import sys
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from embedding_service.bulk.options import InputFormat
from embedding_service.errors import BadConfiguration, BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

STDIN = "-"
BOM = b"\xef\xbb\xbf"
SUFFIXES = {
    ".jsonl": InputFormat.JSONL,
    ".ndjson": InputFormat.JSONL,
    ".parquet": InputFormat.PARQUET,
    ".pq": InputFormat.PARQUET,
    ".csv": InputFormat.CSV,
    ".tsv": InputFormat.TSV,
    ".txt": InputFormat.LINES,
}
CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
_WILD = re.compile(r"[*?\[]")
_BUFFER_BYTES = 1 << 20
LONGEST_LINE_BYTES = 64 << 20
_REMOTE_BUFFER_BYTES = 8 << 20  # one request of a store
# Google's client otherwise tries for fifteen minutes.
_GCS_RETRY = "retry_limit_seconds=30"


@dataclass(frozen=True, slots=True)
class Source:
    """One input: `name` is for people, `path` for its file system (None: standard input)."""

    name: str
    path: str
    filesystem: Any
    format: InputFormat
    codec: str | None = None
    size: int | None = None
    changed_ns: int | None = None

    def is_in(self, folder: Path | None) -> bool:
        """Whether this is a file below a folder of this machine."""
        if folder is None or self.filesystem is None or not self._is_local:
            return False
        return folder.resolve() in Path(self.path).resolve().parents

    def identity(self) -> dict[str, Any]:
        """Return what a changed file would differ in."""
        if self.filesystem is None:
            return {"path": self.name, "first_line": _standard_input().digest}
        return {"path": self.name, "size": self.size, "changed_ns": self.changed_ns}

    @contextlib.contextmanager
    def open(self) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
        """Open as a stream, inflated; beside it is what tells how far the file has been read."""
        import pyarrow as pa

        if self.filesystem is None:
            yield _standard_input().whole(), int
            return
        with self._open_raw() as raw:
            read = _Raw(raw if self.codec is None else pa.CompressedInputStream(raw, self.codec))
            # Files of other machines are read ahead, and do not know where they are.
            inflated = self.codec is None and not raw.seekable()
            tell = raw.tell if raw.seekable() else read.count if inflated else int
            yield cast("IO[bytes]", io.BufferedReader(read, _BUFFER_BYTES)), tell

    def _open_raw(self) -> Any:
        if self._is_local:
            return self.filesystem.open_input_file(self.path)
        return self.filesystem.open_input_stream(
            self.path, compression=None, buffer_size=_REMOTE_BUFFER_BYTES
        )

    @property
    def _is_local(self) -> bool:
        return bool(self.filesystem.type_name == "local")

    @contextlib.contextmanager
    def open_parquet(self) -> Iterator[Any]:
        """Open as a `ParquetFile` that reads no more of a row group than is asked for."""
        from pyarrow import parquet

        with self.filesystem.open_input_file(self.path) as raw:
            yield parquet.ParquetFile(raw, pre_buffer=False, buffer_size=_BUFFER_BYTES)


class _Raw(io.RawIOBase):
    """An Arrow stream as Python's own buffers read it, after some bytes that were read before."""

    def __init__(self, stream: Any, before: bytes = b"") -> None:
        self._stream = stream
        self._before = before
        self._count = 0

    def count(self) -> int:
        """Return how many bytes have been read."""
        return self._count

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._before[: len(buffer)] or self._stream.read(len(buffer))
        self._before = self._before[len(found) :] if self._before else b""
        buffer[: len(found)] = found
        self._count += len(found)
        return len(found)


class _StandardInput:
    """Standard input, whose first lines can be seen before it is read."""

    def __init__(self) -> None:
        self._seen: list[bytes] = []

    def lines(self) -> Iterator[bytes]:
        """Yield lines from the first one on, each of which is kept for `whole`."""
        yield from self._seen
        while line := sys.stdin.buffer.readline(LONGEST_LINE_BYTES):
            self._seen.append(line)
            yield line

    @property
    def digest(self) -> str:
        """Return the hash of the first line that is not blank."""
        first = next((line for line in self.lines() if not line.isspace()), b"")
        return hashlib.sha256(first).hexdigest()

    def whole(self) -> IO[bytes]:
        raw = _Raw(sys.stdin.buffer, b"".join(self._seen))
        return cast("IO[bytes]", io.BufferedReader(raw, _BUFFER_BYTES))


@cache
def _standard_input() -> _StandardInput:
    return _StandardInput()


def first_lines(source: Source) -> Iterator[bytes]:
    """Yield the first lines of a source without using them up."""
    if source.filesystem is None:
        yield from _bounded(source, _standard_input().lines())
        return
    with reading(source), source.open() as (stream, _):
        yield from lines_of(source, stream)


def lines_of(source: Source, stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a stream, of bounded length. Raises `BadInput`."""
    return _bounded(source, iter(partial(stream.readline, LONGEST_LINE_BYTES), b""))


def _bounded(source: Source, lines: Iterable[bytes]) -> Iterator[bytes]:
    for count, line in enumerate(lines, 1):
        if len(line) == LONGEST_LINE_BYTES:
            raise BadInput(f"{source.name}:{count}: a line of more than {len(line)} bytes")
        if text := line.removeprefix(BOM) if count == 1 else line:
            yield text


@contextlib.contextmanager
def reading(source: Source) -> Iterator[None]:
    """Turn what pyarrow raises about a file into one line with its name. Raises `BadInput`."""
    import pyarrow as pa

    try:
        yield
    except UnicodeError:
        raise BadInput(f"{source.name}: a name that is not UTF-8; rename it") from None
    except (OSError, EOFError, pa.ArrowException) as error:
        raise BadInput(f"{source.name}: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    """Return an error in one line of bounded length."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).strip().splitlines()[0][:300]


def find(
    given: Iterable[str], form: InputFormat | None = None, out: Path | None = None
) -> list[Source]:
    """Return the files that paths, folders, patterns and URLs mean, each group in order.

    What lies in the folder `out` is left out: it may be below one of the inputs. Raises
    `BadConfiguration` for what nobody could read, `BadInput` for what is not there.
    """
    found: list[Source] = []
    for name in given:
        if name == STDIN:
            found.append(Source("-", "", None, form or InputFormat.JSONL))
        else:
            found += [source for source in _find_files(name, form) if not source.is_in(out)]
    if not found:
        raise BadConfiguration("there is no input; name files, or - for standard input")
    seen: set[str] = set()
    for source in found:
        if source.name in seen:
            raise BadConfiguration(f"{source.name} is named twice")
        seen.add(source.name)
    if any(source.filesystem is None and source.format is InputFormat.PARQUET for source in found):
        raise BadConfiguration("Parquet cannot be read from standard input; name a file")
    return found


def _find_files(name: str, form: InputFormat | None) -> list[Source]:
    from pyarrow import fs

    remote = _URL.match(name) is not None
    with reading(Source(name, "", None, InputFormat.LINES)):
        if remote:
            system, path = fs.FileSystem.from_uri(_with_limits(name))
            scheme = name.partition("://")[0] + "://"
            infos = _matching(system, path)
        else:
            system, scheme = fs.LocalFileSystem(), ""
            infos = _local(system, name)
    if not infos:
        raise BadInput(f"{name}: there is no such file")
    return [_source(system, scheme, info, form) for info in infos]


def _with_limits(url: str) -> str:
    if not url.startswith(("gs://", "gcs://")) or "retry_limit_seconds" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}{_GCS_RETRY}"


def _local(system: Any, name: str) -> list[Any]:
    """Return the files at a path, inside a folder, or that match a pattern."""
    exists = Path(name).exists()
    paths = [name] if exists else sorted(glob.glob(name, recursive=True))  # noqa: PTH207
    infos: list[Any] = []
    for path in paths:
        infos += _inside(system, str(Path(path).absolute()))
    return infos


def _matching(system: Any, path: str) -> list[Any]:
    """Return the files of a remote system at a path, or that match a pattern."""
    wild = _WILD.search(path)
    if wild is None:
        return _inside(system, path)
    base = path[: wild.start()].rpartition("/")[0]
    pattern = re.compile(fnmatch.translate(path))
    return [info for info in _inside(system, base) if pattern.match(info.path)]


def _inside(system: Any, path: str) -> list[Any]:
    """Return the file at a path, or those below a folder which are not hidden."""
    from pyarrow import fs

    info = system.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        return []
    if info.type != fs.FileType.Directory:
        return [info]
    below = system.get_file_info(fs.FileSelector(path, recursive=True))
    files = [info for info in below if info.is_file and not _hidden(info.path, path)]
    return sorted(files, key=lambda info: str(info.path))


def _hidden(path: str, folder: str) -> bool:
    return any(part.startswith((".", "_")) for part in path[len(folder) :].split("/"))


def _source(system: Any, scheme: str, info: Any, form: InputFormat | None) -> Source:
    path = Path(info.path)
    codec = CODECS.get(path.suffix.lower())
    suffix = path.with_suffix("").suffix if codec else path.suffix
    found = form or SUFFIXES.get(suffix.lower())
    name = scheme + info.path
    if found is None:
        known = ", ".join(InputFormat)
        raise BadConfiguration(f"{name}: say with --input-format how to read it: {known}")
    if found is InputFormat.PARQUET:
        codec = None
    return Source(name, info.path, system, found, codec, info.size, info.mtime_ns)

"""The results of a batch on the disk: segments while it runs, one file each at its end.

Under each lease an instance writes files of its own. The ledger counts no byte of those that an
instance writes after it has lost its lease.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from embedding_service.batches.leases import KINDS
from embedding_service.disk import sync, sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from embedding_service.batches.leases import Segment
    from embedding_service.batches.ledger import Batch
    from embedding_service.batches.store import Store

_COPIED_BYTES = 1 << 20


class Sizes(NamedTuple):
    """Bytes of the two files that are whole lines, and on the disk."""

    output: int = 0
    error: int = 0


class Writer:
    """The two files of one lease. All of it blocks."""

    def __init__(self, store: Store, batch: Batch) -> None:
        self.sizes = Sizes()
        with ExitStack() as opened:
            paths = [_segment(store, batch.id, batch.fence, kind) for kind in KINDS]
            # Unbuffered: what the disk did not take is not written again when the file is closed.
            self._files = [opened.enter_context(path.open("wb", buffering=0)) for path in paths]
            sync_folder(store.segments)
            self._opened = opened.pop_all()

    def append(self, parts: Sequence[Iterable[bytes]]) -> Sizes:
        """Write behind what is there, for each file; a failed attempt is written over by the next.

        Raises `OSError`.
        """
        written = Sizes(*map(_append, self._files, self.sizes, parts))
        self.sizes = written
        return written

    def close(self) -> None:
        """Close both files."""
        self._opened.close()


def join(store: Store, batch: Batch, segments: Iterable[Segment], *, kind: str, name: str) -> int:
    """Make one file of a kind from all segments; return its bytes. None is made of nothing."""
    part, size = store.path(f"{name}.part"), 0
    try:
        with part.open("wb") as whole:
            for segment in segments:
                length = segment.output_bytes if kind == "output" else segment.error_bytes
                if length:
                    _copy(_segment(store, batch.id, segment.fence, kind), whole, length)
                    size += length
            sync(whole)
        if size:
            part.rename(store.path(name))
            sync_folder(store.files)
    finally:  # a disk that is full has its room again
        part.unlink(missing_ok=True)
    return size


def batches(store: Store) -> set[str]:
    """Return the ids of the batches that have segments."""
    return {path.name.partition(".")[0] for path in store.segments.iterdir()}


def clear(store: Store, ended: Iterable[str]) -> None:
    """Remove the segments of batches that have ended."""
    for batch_id in ended:
        for path in store.segments.glob(f"{batch_id}.*"):
            path.unlink(missing_ok=True)


def _segment(store: Store, batch_id: str, fence: int, kind: str) -> Path:
    return store.segments / f"{batch_id}.{fence}.{kind}"


def _append(file: BinaryIO, size: int, parts: Iterable[bytes]) -> int:
    content = memoryview(b"".join(parts))
    if not content:
        return size
    file.seek(size)
    written = 0
    while written < len(content):
        written += file.write(content[written:])
    sync(file)
    return size + written


def _copy(path: Path, whole: BinaryIO, length: int) -> None:
    """Append the first `length` bytes of a file."""
    with path.open("rb") as source:
        while length:
            piece = source.read(min(length, _COPIED_BYTES))
            if not piece:
                raise OSError(f"{path.name} is shorter than the ledger says")
            whole.write(piece)
            length -= len(piece)

"""Content on its way to the disk: whole and under its own name, or not there at all."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO, Self, TypeVar

from embedding_service.batches import files
from embedding_service.batches.store import storage_error
from embedding_service.disk import sync, sync_folder
from embedding_service.errors import BodyTooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from embedding_service.batches.files import Quota, StoredFile
    from embedding_service.batches.store import Store

_T = TypeVar("_T")
_WRITTEN_BYTES = 1 << 20  # at a time


class Upload:
    """A file that is being received. Used as a context: what `keep` did not keep is removed."""

    def __init__(self, store: Store, file_id: str, *, max_bytes: int) -> None:
        self.size = 0
        self._store = store
        self._path = store.path(file_id)
        self._part = self._path.with_name(f"{file_id}.part")
        self._max_bytes = max_bytes
        self._file: BinaryIO | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0

    async def __aenter__(self) -> Self:
        self._file = await _on_disk(_create, self._part)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._file is not None:
            await asyncio.to_thread(self._drop)

    async def write(self, pieces: Iterable[bytes]) -> None:
        """Take the next pieces. Raises `BodyTooLarge`, `StorageFull`."""
        for piece in pieces:
            self._held.append(piece)
            self._held_bytes += len(piece)
            self.size += len(piece)
        if self.size > self._max_bytes:
            raise BodyTooLarge(
                f"the file is larger than {self._max_bytes} bytes, which is max_file_bytes of this "
                "server; send it in parts"
            )
        if self._held_bytes >= _WRITTEN_BYTES:
            await self._flush()

    async def keep(self, file: StoredFile, quota: Quota) -> StoredFile:
        """Enter the file; from then on it is there, whatever happens.

        Raises `InvalidRequest` beyond the quota, `StorageFull`.
        """
        await self._flush()
        whole = replace(file, bytes=self.size, created_at=int(time.time()))
        await _on_disk(self._rename)
        try:
            await self._store.run(files.add, whole, quota)
        except Exception:  # not a cancellation: the row may come yet, and needs its content
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            raise
        return whole

    async def _flush(self) -> None:
        held, self._held, self._held_bytes = self._held, [], 0
        if held and self._file is not None:
            await _on_disk(self._file.writelines, held)

    def _rename(self) -> None:
        assert self._file is not None  # noqa: S101 - within the context
        sync(self._file)
        self._file.close()
        self._part.rename(self._path)
        self._file = None
        sync_folder(self._path.parent)

    def _drop(self) -> None:
        with contextlib.suppress(OSError):  # closing writes what is left, to a disk that is full
            self._file.close()  # type: ignore[union-attr]
        self._part.unlink(missing_ok=True)


def _create(path: Path) -> BinaryIO:
    return path.open("xb")


async def _on_disk(work: Callable[..., _T], *arguments: object) -> _T:
    """Work in a thread. Raises `StorageFull`, `Unavailable`."""
    try:
        return await asyncio.to_thread(work, *arguments)
    except OSError as error:
        raise storage_error(error) from error

"""The inputs that the engine was working on when it died, in a small file that outlives it."""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pathlib import Path


class StepRecord:
    """A small mapped file that names the inputs of the running step; it outlives the process.

    From it the gateway learns, after a crash, what the engine was working on.
    """

    _SIZE = 1 << 16
    _LENGTH = struct.Struct("<I")

    def __init__(self, path: str) -> None:
        with open(path, "ab+") as file:  # noqa: PTH123 - a path from our own gateway
            file.truncate(self._SIZE)
            self._map = mmap.mmap(file.fileno(), self._SIZE)

    @classmethod
    def reserve(cls, path: Path) -> None:
        """Make the file with all its blocks, or raise `OSError`.

        Where a folder is full, writing to the map would end the worker by a signal.
        """
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, cls._SIZE)

    def write(self, keys: list[tuple[int, int]]) -> None:
        """Name the (job, input) pairs that the next step holds; none after a step."""
        body = msgspec.msgpack.encode(keys[: self._SIZE // 32])
        self._map[: self._LENGTH.size] = self._LENGTH.pack(0)
        self._map[self._LENGTH.size : self._LENGTH.size + len(body)] = body
        self._map[: self._LENGTH.size] = self._LENGTH.pack(len(body))

    @classmethod
    def read(cls, path: Path) -> list[tuple[int, int]]:
        """Return what the step that a dead worker was in held."""
        try:
            raw = path.read_bytes()
            (length,) = cls._LENGTH.unpack_from(raw)
            body = raw[cls._LENGTH.size : cls._LENGTH.size + length]
            return msgspec.msgpack.decode(body, type=list[tuple[int, int]]) if length else []
        except (OSError, struct.error, msgspec.DecodeError):  # it died before it wrote anything
            return []

"""The instances that share a `state_dir`: each holds a lock that the kernel lets go when it dies.

A lease says who works on a batch; a lock tells at once that its holder is gone, where the lease
alone would be waited for. A wrong guess costs nothing but work: late writes are refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_NEW_S = 60.0


class Instance:
    """A process among those that share a folder. All of it blocks, for microseconds."""

    def __init__(self, folder: Path) -> None:
        self.name = secrets.token_hex(8)
        self._folder = folder
        folder.mkdir(mode=0o700, exist_ok=True)
        # Not inherited by the engines, which would hold it for longer than this process lives.
        self._lock = os.open(folder / self.name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Let go of the lock, and remove its file."""
        (self._folder / self.name).unlink(missing_ok=True)
        os.close(self._lock)

    def dead(self, names: Iterable[str]) -> list[str]:
        """Return those of other instances that are gone; their locks are removed."""
        return [name for name in names if name != self.name and self._is_dead(name)]

    def sweep(self) -> None:
        """Remove the locks of all that are gone, but for new ones: their makers may still be at it.

        Such an instance has no lease yet, so that `dead` is not asked about it.
        """
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # its instance has ended as it should
                if path.stat().st_mtime < time.time() - _NEW_S:
                    self.dead([path.name])

    def _is_dead(self, name: str) -> bool:
        path = self._folder / name
        try:
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:  # it ended as it should
            return True
        try:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
                return True
            return False
        finally:
            os.close(lock)

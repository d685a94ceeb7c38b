"""Jobs that have ended the engine, and are not let in again for a while."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

from embedding_service.errors import EngineFailed

if TYPE_CHECKING:
    from embedding_service.types import Batch

POISON_FOR_S = 600.0  # long enough for a client's retries, short enough for a mended engine
POISON_KEPT = 1024  # digests, the oldest of which go first


class Poison:
    """Digests of jobs that ended the engine, refused for ten minutes."""

    def __init__(self) -> None:
        self._until: dict[bytes, float] = {}

    def add(self, batch: Batch) -> EngineFailed:
        """Remember a job; return the error that its sender gets."""
        if len(self._until) >= POISON_KEPT:
            self._until.pop(next(iter(self._until)))
        self._until[_digest(batch)] = time.monotonic() + POISON_FOR_S
        culprit = "this input ends" if len(batch.ids) == 1 else "one of these inputs ends"
        return EngineFailed(f"{culprit} the engine; leave it out, and report it")

    def refuse(self, batch: Batch) -> None:
        """Raise `EngineFailed` if this very job is known to end the engine."""
        # Nearly always nothing is known, and no digest has to be made.
        if self._until and self._until.get(_digest(batch), 0) > time.monotonic():
            raise EngineFailed(
                "this ended the engine a short while ago, and is not tried again yet; "
                "leave it out, and report it"
            )


def _digest(batch: Batch) -> bytes:
    digest = hashlib.sha256()
    for ids in batch.ids:
        digest.update(len(ids).to_bytes(4, "little") + ids.tobytes())
    return digest.digest()

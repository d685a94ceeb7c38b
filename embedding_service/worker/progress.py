"""How the start of a worker goes, told to the gateway on standard output.

`engine/process.py` reads the lines; see `Progress` in `engine/protocol.py`.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from embedding_service.engine.protocol import PROGRESS, Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

_STATM = Path("/proc/self/statm")  # in pages; the second number is what is resident


def say(detail: str, /, **facts: Any) -> None:
    """Print a line that the gateway puts into its log."""
    _tell(Progress(detail=detail, **facts))


@contextmanager
def stage(name: str) -> Iterator[dict[str, Any]]:
    """Tell of a stage when it begins and when it has ended, with facts that the block adds."""
    _tell(Progress(stage=name))
    began, facts = time.monotonic(), dict[str, Any]()
    yield facts
    _tell(Progress(stage=name, seconds=round(time.monotonic() - began, 2), **facts))


def memory() -> dict[str, int]:
    """Return the bytes that this process has of the host, and PyTorch of a CUDA device."""
    pages = int(_STATM.read_text(encoding="ascii").split()[1])
    found = {"memory_bytes": pages * os.sysconf("SC_PAGE_SIZE")}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["device_memory_bytes"] = int(torch.cuda.memory_reserved())
    return found


def _tell(progress: Progress) -> None:
    print(PROGRESS + msgspec.json.encode(progress).decode(), flush=True)  # noqa: T201

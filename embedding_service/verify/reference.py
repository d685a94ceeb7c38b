"""The reference library of a model, as a side of a comparison: `libraries` in a child process.

It ends before an engine starts, so that both need not fit beside each other.
"""

from __future__ import annotations

import asyncio
import importlib.util
import multiprocessing
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedding_service.errors import BadConfiguration, NoVectors
from embedding_service.types import Output
from embedding_service.verify import libraries
from embedding_service.verify.checkpoint import SCORES
from embedding_service.verify.sides import About, Kind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from multiprocessing.connection import Connection

    from embedding_service.verify.checkpoint import Checkpoint
    from embedding_service.verify.sides import Answer

_LAST_WORDS = 300
_GRACE_S = 3.0  # to let go of what a kill would leave behind, if it is idle


class Reference:
    """A running library. `opened` starts and ends it."""

    def __init__(self, pipe: Connection, words: Path) -> None:
        self._pipe = pipe
        self._words = words
        self.about = About("the reference library")
        self.poolings: Sequence[str] = ()

    async def load(self) -> None:
        """Wait for the model. Raises `NoVectors`."""
        facts: libraries.Facts = await self._received()
        self.poolings = facts.poolings
        prompts = {Kind(kind): text for kind, text in facts.prompts.items()}
        self.about = About(facts.label, "float32", facts.max_tokens, prompts)

    async def lengths(self, texts: list[str]) -> list[int]:
        """Return the tokens of each text, uncut and without a prompt."""
        found: list[int] = await self._call("lengths", texts)
        return found

    async def ask(self, texts: list[str], kind: str) -> list[Answer]:
        """Return the rows of each text; a kind may also be a pooling. Raises `NoVectors`."""
        rows: libraries.Arrays = await self._call("encode", texts, str(kind))
        by_text = zip(*rows.values(), strict=True)
        return [dict(zip(map(Output, rows), each, strict=True)) for each in by_text]

    async def _call(self, method: str, *arguments: Any) -> Any:
        try:
            await asyncio.to_thread(self._pipe.send, (method, arguments))
        except OSError:  # it has ended
            raise self._failed() from None
        return await self._received()

    async def _received(self) -> Any:
        try:
            return await asyncio.to_thread(self._pipe.recv)
        except (EOFError, OSError):
            raise self._failed() from None

    def _failed(self) -> NoVectors:
        lines = self._words.read_text(errors="replace").strip().splitlines()
        last = lines[-1][:_LAST_WORDS] if lines else "it ended without a word"
        return NoVectors(f"the reference library failed: {last}")


@asynccontextmanager
async def opened(checkpoint: Checkpoint) -> AsyncIterator[Reference]:
    """Start the library of a model, and end it with the block.

    Raises `BadConfiguration` where it is not installed, and `NoVectors` where it fails.
    """
    library = checkpoint.library
    if library is None:
        raise BadConfiguration(SCORES.format(checkpoint.name))
    module = libraries.LIBRARIES[library].name.replace("-", "_")
    check_installed(module, checkpoint.name)
    context = multiprocessing.get_context("spawn")
    with tempfile.NamedTemporaryFile() as words:
        ours, theirs = context.Pipe()
        arguments = (theirs, words.name, library, checkpoint)
        process = context.Process(target=libraries.serve, args=arguments)
        process.start()
        theirs.close()  # so that the child's end is seen here
        try:
            reference = Reference(ours, Path(words.name))
            await reference.load()
            yield reference
        finally:
            ours.close()
            process.join(_GRACE_S)
            process.kill()
            process.join()


def check_installed(module: str, name: str) -> None:
    """Raise `BadConfiguration` with the way to install a library that is missing."""
    if importlib.util.find_spec(module) is None:
        raise BadConfiguration(
            f"{name} is compared with {module}, which is not installed: "
            "pip install 'embedding-service[verify]'"
        )

"""The reference library of a model, as a side of a comparison: `libraries` in a child process.

It ends before an engine starts, so that both need not fit beside each other.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np

from embedding_service.errors import BadConfiguration, NoVectors
from embedding_service.types import Output
from embedding_service.verify.checkpoint import SCORES
from embedding_service.verify.sides import About, Kind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from embedding_service.types import Rows
    from embedding_service.verify.checkpoint import Checkpoint
    from embedding_service.verify.sides import Answer

_NEEDED: Final = {
    "dense": "sentence_transformers",
    "sparse": "sentence_transformers",
    "bge-m3": "FlagEmbedding",
}
_LONGEST_LINE_BYTES = 1 << 20
_LENGTHS_AT_ONCE = 1000  # within that, however many there are
_LAST_WORDS = 300


class Reference:
    """A running library. `opened` starts and ends it."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, words: IO[bytes]) -> None:
        self._process = process
        self._folder = folder
        self._words = words
        self.about = About("the reference library")
        self.poolings: list[str] = []

    async def load(self, library: str, checkpoint: Checkpoint) -> None:
        """Load the model. Raises `NoVectors`."""
        facts = await self._request(
            library=library,
            folder=checkpoint.folder,
            max_tokens=checkpoint.max_tokens,
            trust_remote_code=checkpoint.trust_remote_code,
            prompts=checkpoint.prompts,
        )
        self.poolings = facts["poolings"]
        prompts = {Kind(kind): text for kind, text in facts["prompts"].items()}
        self.about = About(facts["label"], "float32", facts["max_tokens"], prompts)

    async def lengths(self, texts: list[str]) -> list[int]:
        """Return the tokens of each text, uncut and without a prompt."""
        found: list[int] = []
        for first in range(0, len(texts), _LENGTHS_AT_ONCE):
            some = texts[first : first + _LENGTHS_AT_ONCE]
            found += (await self._request(texts=some))["lengths"]
        return found

    async def ask(self, texts: list[str], kind: str) -> list[Answer]:
        """Return the rows of each text; a kind may also be a pooling. Raises `NoVectors`."""
        path = self._folder / "vectors.npz"
        await self._request(texts=texts, kind=kind, path=str(path))
        with np.load(path) as arrays:
            outputs = {name.partition(".")[0] for name in arrays.files}
            return [_rows(arrays, outputs, index) for index in range(len(texts))]

    async def _request(self, **request: Any) -> dict[str, Any]:
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None  # noqa: S101 - both are pipes
        assert answers is not None  # noqa: S101
        line = b""
        try:
            requests.write(json.dumps(request).encode() + b"\n")
            await requests.drain()
            line = await answers.readline()
        except ConnectionError:
            pass
        if not line:
            raise NoVectors(f"the reference library failed: {self._last_words()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def _last_words(self) -> str:
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:_LAST_WORDS] if lines else "it ended without a word"


def _rows(arrays: Any, outputs: set[str], index: int) -> Rows:
    return {Output(name): arrays[f"{name}.{index}"] for name in outputs}


@asynccontextmanager
async def opened(checkpoint: Checkpoint) -> AsyncIterator[Reference]:
    """Start the library of a model, and end it with the block.

    Raises `BadConfiguration` where it is not installed, and `NoVectors` where it fails.
    """
    library = checkpoint.library
    if library is None:
        raise BadConfiguration(SCORES.format(checkpoint.name))
    check_installed(_NEEDED[library], checkpoint.name)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as words:
        process = await _start(words)
        try:
            reference = Reference(process, Path(folder), words)
            await reference.load(library, checkpoint)
            yield reference
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _start(words: IO[bytes]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "embedding_service.verify.libraries"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=words,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        limit=_LONGEST_LINE_BYTES,
    )


def check_installed(module: str, name: str) -> None:
    """Raise `BadConfiguration` with the way to install a library that is missing."""
    if importlib.util.find_spec(module) is None:
        raise BadConfiguration(
            f"{name} is compared with {module}, which is not installed: "
            "pip install 'embedding-service[verify]'"
        )

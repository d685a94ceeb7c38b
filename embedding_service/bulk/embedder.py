"""Texts to vectors through an engine of this process, past the machinery of requests.

Prompts, tokenising and number formats are those of the service. There is no cache, no admission
and no deadline: the job sends no more than keeps the engine busy.
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from embedding_service.bulk.rows import Failure
from embedding_service.errors import (
    BadConfiguration,
    EngineFailed,
    InvalidRequest,
    JobStopped,
    ServiceError,
    Unavailable,
)
from embedding_service.service import checks
from embedding_service.service.outputs import KINDS
from embedding_service.service.vectors import is_finite
from embedding_service.types import Batch, BatchResult, Field, Priority

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedding_service.bulk.options import BulkOptions
    from embedding_service.service.prompts import Prepared
    from embedding_service.service.service import EmbeddingService
    from embedding_service.types import Output, Rows

_T = TypeVar("_T")
PROBE = "a"
# Two read ahead of the engine; a tokenizer is a library that lets go of the interpreter meanwhile.
_THREADS = 2
_PAUSE_S = 0.2
# More than a step of vLLM has on a GPU, where it has 256 texts.
_ROWS_AT_ONCE, _STEPS_AT_ONCE = 2048, 3
_NO_DEADLINE = float(1 << 40)  # monotonic seconds
_NAMES = {
    Field.INPUT: "the text",
    Field.DIMENSIONS: "--dimensions",
    Field.TRUNCATE: "--truncate right",
}


NOT_FINITE = Failure("not_finite", "the model gave numbers that are not finite")


class Answer(NamedTuple):
    """Vectors of the texts that have some, in their order; the others are in `failed` by index."""

    by_output: dict[Output, Any]
    failed: dict[int, Failure]
    tokens: int


class Embedder(Protocol):
    """Anything that turns texts into vectors."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides about its numbers, as JSON has it; `model` is its name."""

    @property
    def rows_at_once(self) -> int:
        """How many rows it should have at a time, so that it never waits."""

    @property
    def cached(self) -> int:
        """How many texts were not computed, since they had been before."""

    async def embed(self, texts: list[str]) -> Answer:
        """Embed at least one text, none of which is empty. Raises `JobStopped`."""


class _Read(NamedTuple):
    """Texts that have been tokenised: those at `good`, since the others `failed`."""

    good: list[int]
    failed: dict[int, Failure]
    prepared: Prepared | None


class EngineEmbedder:
    """The engine of one model of a service."""

    cached = 0

    def __init__(self, service: EmbeddingService, options: BulkOptions, name: str | None) -> None:
        self._settings = service.settings
        self._options = options
        self._model, alias = service.models.find(name or service.models.default.name)
        try:
            self._encoder = self._model.embedder()
            job = options.job([PROBE])
            checks.check_embed(service.settings, self._model, self._encoder, job)
            self._prefix = self._encoder.prompts.prefix(job, alias)
            self._encoder.prepare(job, self._prefix, max_total=sys.maxsize)
        except ServiceError as error:
            raise BadConfiguration(_worded(error)) from None
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="bulk")

    @property
    def identity(self) -> dict[str, Any]:
        """The model, the space of its vectors, and the text before each of the corpus."""
        space = self._model.vector_space.id
        return {"model": self._model.name, "vector_space": space, "prompt": self._prefix}

    @property
    def rows_at_once(self) -> int:
        """As many rows as fill three steps of every replica."""
        options = self._model.options
        step = 0 if options.max_batch_size == "auto" else options.max_batch_size
        return max(_ROWS_AT_ONCE, _STEPS_AT_ONCE * step) * options.replicas

    async def probe(self) -> Answer:
        """Embed a word, which shows the shape of vectors. Raises `BadConfiguration`."""
        answer = await self.embed([PROBE])
        if answer.failed:
            raise BadConfiguration(f"{self._model.name}: {answer.failed[0].reason}")
        return answer

    async def embed(self, texts: list[str]) -> Answer:
        """Embed texts, and those that fail together one by one. Raises `JobStopped`."""
        read = await self._run(self._read, texts)
        if read.prepared is None:
            return Answer({}, read.failed, 0)
        try:
            result = await self._compute(_batch(read.prepared, self._options))
        except EngineFailed as error:
            if len(read.good) == 1:
                failed = {read.good[0]: Failure("engine_failed", _worded(error))}
                return Answer({}, read.failed | failed, 0)
            result, read = await self._compute_apart(texts, read)
        return await self._run(self._finish, read, result)

    async def _run(self, work: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _compute(self, batch: Batch) -> BatchResult:
        """Have the engine work, once there is one. Raises `EngineFailed`, `JobStopped`."""
        engine = self._model.engine
        while not engine.out_of_service:
            try:
                return await engine.run(batch)
            except Unavailable:
                await asyncio.sleep(_PAUSE_S)
        raise JobStopped(
            f"the engine of {self._model.name} died too often, or is in quarantine (see the log); "
            "the same command goes on where this one ends"
        )

    async def _compute_apart(self, texts: list[str], read: _Read) -> tuple[BatchResult, _Read]:
        """Compute each text alone, since one of them failed them all.

        Alone in the engine's steps, so that its death has one culprit.
        """
        good: list[int] = []
        failed = dict(read.failed)
        results: list[Rows] = []
        for index in read.good:
            one = await self._run(self._read, [texts[index]])
            assert one.prepared is not None  # noqa: S101 - it was read before
            batch = replace(_batch(one.prepared, self._options), priority=Priority.ALONE)
            try:
                results += (await self._compute(batch)).results
            except EngineFailed as error:
                failed[index] = Failure("engine_failed", _worded(error))
            else:
                good.append(index)
        again = _Read([], {}, None)
        if good:
            again = await self._run(self._read, [texts[index] for index in good])
        return BatchResult(results), _Read(good, failed, again.prepared)

    def _read(self, texts: list[str]) -> _Read:
        """Tokenise, all at once; where that is refused, each by itself first."""
        every = list(range(len(texts)))
        try:
            return _Read(every, {}, self._prepare(texts))
        except InvalidRequest:
            failed: dict[int, Failure] = {}
        for index, text in enumerate(texts):
            try:
                self._prepare([text])
            except InvalidRequest as error:
                failed[index] = Failure(error.code or "invalid", _worded(error))
        good = [index for index in every if index not in failed]
        return _Read(good, failed, self._prepare([texts[i] for i in good]) if good else None)

    def _prepare(self, texts: list[str]) -> Prepared:
        """Return token ids. Raises `InvalidRequest` about the first text that is refused."""
        job, _ = checks.cut_texts(self._settings, self._options.job(texts))
        checks.check_characters(job.inputs, self._settings.max_text_characters, job.field)
        return self._encoder.prepare(job, self._prefix, max_total=sys.maxsize)

    def _finish(self, read: _Read, result: BatchResult) -> Answer:
        """Bring the engine's rows into their form; those that are no numbers have failed."""
        if read.prepared is None:
            return Answer({}, read.failed, 0)
        prepared, results, failed = read.prepared, result.results, read.failed
        if broken := _not_finite(prepared, results):
            failed = failed | {read.good[index]: NOT_FINITE for index in broken}
            prepared, results = _without(broken, prepared, results)
        by_output = self._write(prepared, results) if results else {}
        return Answer(by_output, failed, read.prepared.total)

    def _write(self, prepared: Prepared, results: list[Rows]) -> dict[Output, Any]:
        job = self._encoder.completed(self._options.job([]))
        by_output = {}
        for output in job.outputs:
            kind, rows = KINDS[output], [found[output] for found in results]
            by_output[output] = kind.write(kind.join(rows, prepared), job, self._model.ranges)
        return by_output


def _batch(prepared: Prepared, options: BulkOptions) -> Batch:
    outputs = frozenset(options.outputs)
    return Batch(prepared.ids, outputs, Priority.BULK, _NO_DEADLINE, prepared.boundaries)


def _not_finite(prepared: Prepared, results: list[Rows]) -> set[int]:
    """Return the inputs whose numbers are not all finite."""
    return {
        owner
        for owner, rows in zip(prepared.owner, results, strict=True)
        if not all(map(is_finite, rows.values()))
    }


def _without(
    broken: set[int], prepared: Prepared, results: list[Rows]
) -> tuple[Prepared, list[Rows]]:
    """Leave out some inputs, and number the others anew."""
    kept = [chunk for chunk, owner in enumerate(prepared.owner) if owner not in broken]
    owners = [prepared.owner[chunk] for chunk in kept]
    new = {owner: index for index, owner in enumerate(dict.fromkeys(owners))}
    ids = [prepared.ids[chunk] for chunk in kept]
    shorter = replace(prepared, ids=ids, owner=list(map(new.__getitem__, owners)))
    return shorter, [results[chunk] for chunk in kept]


def _worded(error: ServiceError) -> str:
    """Return an error in the words of the command line, about one text."""
    return error.worded(_NAMES)[0].replace(f"{_NAMES[Field.INPUT]}[0]", _NAMES[Field.INPUT])

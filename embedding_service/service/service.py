"""`EmbeddingService.embed`: the story of a request, readable top to bottom.

Between the dialects above and the engine below; knows neither HTTP nor ZeroMQ.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

import numpy as np

from embedding_service.errors import InvalidRequest, PermissionDenied
from embedding_service.service import checks, cl100k, late_interaction, slices
from embedding_service.service.admission import Gate
from embedding_service.service.checks import CHARACTERS_PER_TOKEN
from embedding_service.service.models import ModelRegistry
from embedding_service.service.outputs import check_finite, finish
from embedding_service.service.threads import Threads
from embedding_service.types import (
    Batch,
    Embeddings,
    EmbedJob,
    Field,
    Output,
    Priority,
    Scores,
    TokenIdPolicy,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from embedding_service.engine.pool import ModelEngine
    from embedding_service.service.call import Call
    from embedding_service.service.compute import Computed
    from embedding_service.service.models import ServedModel
    from embedding_service.service.pairs import PairEncoder
    from embedding_service.service.prompts import Encoder, Prepared, Token
    from embedding_service.service.shared_cache import SharedCache
    from embedding_service.service.slices import Steps
    from embedding_service.settings.gateway import Settings
    from embedding_service.settings.model import AliasSettings
    from embedding_service.telemetry import Metrics
    from embedding_service.types import RerankJob

    Inputs = list[str] | list[list[int]]

_T = TypeVar("_T")
INTERACTIVE_TEXTS = 8
# Work on less than this stays on the event loop: a thread costs 0.09 ms, 4,096 characters
# 1.7 ms to tokenise (MiniLM), 2**18 numbers 1.4 ms to normalise.
INLINE_CHARACTERS = 4096
INLINE_NUMBERS = 1 << 18
_INLINE_TEXTS = 256  # 5 to 8 µs each, however short (the fake tokenizer)
_CHARACTERS_AN_ID = 4  # about; those of cl100k_base have 1 to 128
_SCORE = frozenset({Output.SCORE})


class EmbeddingService:
    """All served models, and the bounds on requests in flight."""

    def __init__(
        self,
        settings: Settings,
        engines: Iterable[ModelEngine],
        metrics: Metrics,
        shared: SharedCache | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.models = ModelRegistry(settings, engines, shared)
        self.answers = Gate(settings.max_inflight_response_bytes, "bytes of answers")
        self.bodies = Gate(settings.max_inflight_body_bytes, "bytes of request bodies")
        self.requests = Gate(settings.max_concurrent_requests or sys.maxsize, "requests")
        self.threads = Threads()

    def close(self) -> None:
        """Let go of the threads."""
        self.threads.close()

    async def embed(self, job: EmbedJob, call: Call) -> Embeddings:
        """Answer a request before its deadline or raise a `ServiceError`.

        The bytes of the answer stay reserved in `call.leases` until they are sent.
        """
        settings = self.settings
        model, alias = self.models.find(job.model, call.tenant)
        encoder, call.field = self._allowed(model, call).embedder(), job.field
        call.enter(model.vector_space)
        job, cut = checks.cut_texts(settings, job)
        checks.check_embed(settings, model, encoder, job)
        self._count_in(call)
        prefix, job = encoder.prompts.prefix(job, alias), encoder.completed(job)
        prepared = await self._prepare(
            model,
            call,
            encoder.steps(job, prefix, max_total=settings.max_request_tokens),
            _size_of_inputs(job.inputs, prefix, model.options.token_ids),
        )
        held = checks.held_bytes(encoder, job, prepared)
        self.reserve(checks.answer_bytes(encoder, job, prepared), call, held=held)
        prepared = prepared.with_truncated(cut)
        computed = await self._compute(model, prepared, call, job.outputs)
        return await self._finish(model, encoder, job, prepared, computed, call)

    async def _finish(
        self,
        model: ServedModel,
        encoder: Encoder,
        job: EmbedJob,
        prepared: Prepared,
        computed: Computed,
        call: Call,
    ) -> Embeddings:
        """Check, join, cut and convert the engine's rows; large answers in a thread."""
        name, ranges = self._name(model, job.model), model.ranges
        ignored = encoder.prompts.ignored(job)
        answer = await self._in_thread(
            lambda: finish(job, name, prepared, computed, ranges=ranges, ignored=ignored),
            call,
            unless=checks.numbers(encoder, job, prepared) <= INLINE_NUMBERS,
        )
        self._count(model, len(job.inputs), prepared.total)
        return answer

    async def rerank(self, job: RerankJob, call: Call) -> Scores:
        """Score every pair before the deadline, with a cross-encoder or by late interaction."""
        model, _ = self.models.find(job.model, call.tenant, scores=True)
        pairs, call.field = self._allowed(model, call).pairs, Field.DOCUMENTS
        job, cut = checks.cut_pairs(self.settings, job)
        checks.check_rerank(self.settings, job)
        if pairs is None:
            scores = await self._rerank_late(model, job, call)
        else:
            scores = await self._rerank_pairs(model, pairs, job, call)
        truncated = tuple(sorted({*cut, *scores.truncated}))
        return replace(scores, truncated=truncated) if cut else scores

    async def _rerank_pairs(
        self, model: ServedModel, pairs: PairEncoder, job: RerankJob, call: Call
    ) -> Scores:
        """Score with a cross-encoder, which reads each query together with its document."""
        if job.weights is not None:
            raise InvalidRequest(
                f"weights are for models with three vectors; {model.name} scores pairs: "
                "leave them out",
                param="weights",
                code="not_supported_by_model",
            )
        self._count_in(call)
        prepared = await self._prepare(
            model,
            call,
            pairs.steps(job, max_total=self.settings.max_request_tokens),
            _size_of_pairs(job),
        )
        computed = await self._compute(model, prepared, call, _SCORE)
        rows = [found[Output.SCORE] for found in computed.result.results]
        check_finite(rows, prepared.owner, Field.DOCUMENTS)
        self._count(model, len(job.pairs), prepared.total)
        name, values = self._name(model, job.model), np.concatenate(rows)[:, 0]
        return Scores(
            name, values, prepared.total, prepared.truncated, logits=True, engine_s=computed.seconds
        )

    async def _rerank_late(self, model: ServedModel, job: RerankJob, call: Call) -> Scores:
        """Score with an embedding model, from the vectors of documents and queries."""
        checks.check_late_interaction(model, job)
        # In a thread: to find equal queries, it looks through all of them.
        embed, queries = await self._in_thread(
            lambda: late_interaction.embed_job(model.name, job),
            call,
            unless=_size_of_pairs(job).small,
        )
        with ExitStack() as leases:  # these vectors are not the answer
            inner = replace(call, leases=leases)
            found = await self.embed(embed, inner)
            call.space = inner.space
            checks.check_read_whole(job, found.truncated)
            values = await self._take(late_interaction.score_pairs(job, queries, found), call)
        name, tokens = self._name(model, job.model), found.total_tokens
        return Scores(name, values, tokens, found.truncated, logits=False, engine_s=found.engine_s)

    async def tokenize(
        self,
        job: EmbedJob,
        call: Call,
        write: Callable[[Iterable[Token]], bytes],
        *,
        add_special_tokens: bool,
    ) -> list[bytes]:
        """Return the tokens of each text and its prompt, uncut, as `write` has them."""
        (encoder, alias), limit = self._encoder(job.model, call), self.settings.max_request_tokens
        texts = cast("list[str]", job.inputs)
        checks.check_texts(self.settings, texts, Field.INPUT)
        call.leases.enter_context(self.requests.admit(1))
        prefix = _prefix_to_tokenize(encoder, job, alias)
        size = _size_of_inputs(texts, prefix)
        checks.check_total(size.characters // CHARACTERS_PER_TOKEN, limit, param=Field.INPUT)
        self._hold(checks.token_list_bytes(len(texts), size.characters, limit), call)
        steps = encoder.tokenize(
            (encoder.prompted(text, prefix) for text in texts),
            write,
            add_special_tokens=add_special_tokens,
            max_total=limit,
        )
        return slices.finish(steps) if size.small else await self._take(steps, call)

    async def decode(
        self, model: str | None, inputs: list[list[int]], call: Call, *, skip_special_tokens: bool
    ) -> list[str]:
        """Return the texts of token ids of a model, or of the default embedding model."""
        (encoder, _), tokens = self._encoder(model, call), sum(map(len, inputs))
        checks.check_count(len(inputs), self.settings.max_inputs, Field.INPUT)
        checks.check_total(tokens, self.settings.max_request_tokens, param=Field.INPUT)
        call.leases.enter_context(self.requests.admit(1))
        return await self._in_thread(
            lambda: encoder.decode(inputs, skip_special_tokens=skip_special_tokens),
            call,
            unless=tokens <= INLINE_CHARACTERS,
        )

    def reserve(self, amount: int, call: Call, *, held: int = 0) -> None:
        """Hold the bytes of an answer until it has been sent, or the more that are `held` for it.

        Raises `Overloaded`, or `InvalidRequest` for more than one answer may have.
        """
        checks.check_answer(amount, self.settings.max_response_bytes, call.field)
        self._hold(max(amount, held), call)

    def _count_in(self, call: Call) -> None:
        """Count a request among those that are computed or waiting; bulk work takes no place."""
        if not call.bulk:
            call.leases.enter_context(self.requests.admit(1))

    def _hold(self, amount: int, call: Call) -> None:
        if call.bulk:  # half of the room is for requests
            self.answers.check(amount + self.answers.limit // 2)
        call.leases.enter_context(self.answers.admit(amount, param=call.field))

    def _allowed(self, model: ServedModel, call: Call) -> ServedModel:
        """Return the model. Raises `PermissionDenied` if the caller's key is for others."""
        if not call.tenant.may_use(model.options.names):
            raise PermissionDenied(
                f"this key may not use {model.name}; use another key, or see /v1/models",
                param="model",
            )
        return model

    def _encoder(self, name: str | None, call: Call) -> tuple[Encoder, AliasSettings | None]:
        """Return a model's tokenizer and the prompt of its alias; without a name the default's.

        Raises `ModelNotFound`, `PermissionDenied`, `Unavailable`.
        """
        model, alias = self.models.default_for(scores=False), None
        if name is not None:
            model, alias = self.models.find(name, call.tenant)
        return self._allowed(model, call).embedder(), alias

    def _name(self, model: ServedModel, asked: str | None) -> str:
        """Return the model's name as answers have it."""
        if not self.settings.echo_model:
            return model.name
        return asked or next(iter(model.options.aliases), model.name)

    async def _prepare(
        self, model: ServedModel, call: Call, steps: Steps[Prepared], size: _Size
    ) -> Prepared:
        """Tokenise; short requests on the event loop, long ones step by step in threads."""
        limit = self.settings.max_request_tokens
        checks.check_total(size.characters // CHARACTERS_PER_TOKEN, limit, param=call.field)
        bulk = size.texts > INTERACTIVE_TEXTS
        if bulk or not size.small:  # a short request may be in the cache and need no room
            model.check_room(size.characters, limit)
        began = time.monotonic()
        model.preparing += 1
        try:
            small = size.small
            prepared = slices.finish(steps) if small else await self._take(steps, call)
        finally:
            model.preparing -= 1
            self._note(model, call, "tokenize", began, time.monotonic() - began)
        if bulk:
            model.note_length(size.characters, prepared.total)
        return prepared

    async def _take(self, steps: Steps[_T], call: Call) -> _T:
        """Take steps in a thread each; between them others have theirs.

        Here a client that leaves ends the work. Raises `DeadlineExceeded`, and what they raise.
        """
        advance: Callable[[], bool | _T] = slices.stepper(steps)
        step: bool | _T = False
        while isinstance(step, bool):
            step = await self.threads.run(advance, deadline=call.deadline, whole=step)
        return step

    async def _compute(
        self, model: ServedModel, prepared: Prepared, call: Call, outputs: frozenset[Output]
    ) -> Computed:
        """Have token ids computed, unless a cache knows the answer."""
        ids, began = prepared.ids, time.monotonic()
        few = len(ids) <= INTERACTIVE_TEXTS and not call.bulk
        priority = Priority.INTERACTIVE if few else Priority.BULK
        batch = Batch(ids, outputs, priority, call.deadline, prepared.boundaries)
        computed = await model.compute.run(batch, call=call, more_coming=model.preparing > 0)
        if not all(computed.cached):
            queued_s = computed.result.queued_s
            engine_s = max(0.0, computed.seconds - queued_s)
            self._note(model, call, "queue", began, queued_s)
            self._note(model, call, "engine", began + queued_s, engine_s)
        return computed

    def _count(self, model: ServedModel, inputs: int, tokens: int) -> None:
        """Count the inputs of a request that is answered, and the tokens that were read for it."""
        self.metrics.inputs.labels(model.name).inc(inputs)
        self.metrics.tokens.labels(model.name).inc(tokens)

    def _note(
        self, model: ServedModel, call: Call, stage: str, began: float, seconds: float
    ) -> None:
        call.stages[stage] = (began, seconds)
        self.metrics.stage.labels(model.name, stage).observe(seconds)

    async def _in_thread(self, work: Callable[[], _T], call: Call, *, unless: bool = False) -> _T:
        """Work in a thread, or here at once where that takes less than a thread."""
        if unless:
            return work()
        return await self.threads.run(work, deadline=call.deadline)


class _Size(NamedTuple):
    """How much is to be tokenised: texts, and about how many characters they have.

    `small`: so little that it is done at once. A character beyond ASCII may be many tokens.
    """

    texts: int
    characters: int
    small: bool


def _prefix_to_tokenize(encoder: Encoder, job: EmbedJob, alias: AliasSettings | None) -> str:
    """Return the prompt; none where a job names neither a model nor a prompt, as TEI does it."""
    asks = (job.model, job.instruction, job.prompt_name, job.input_type)
    return "" if asks == (None,) * 4 else encoder.prompts.prefix(job, alias)


def _size_of_inputs(
    inputs: Inputs, prefix: str, token_ids: TokenIdPolicy = TokenIdPolicy.REJECT
) -> _Size:
    """Measure texts with their prompt, or token ids as the characters that they stand for."""
    characters, texts = sum(map(len, inputs)), cast("Iterable[str]", inputs)
    if not isinstance(inputs[0], str):
        characters, texts = _characters_of_ids(inputs, characters, token_ids), ()
    characters += len(prefix) * len(inputs)
    return _Size(len(inputs), characters, _is_small(len(inputs), characters, prefix, texts))


def _characters_of_ids(inputs: Inputs, count: int, token_ids: TokenIdPolicy) -> int:
    """Return about how many characters so many ids are: a few of cl100k_base are looked up."""
    estimate = _CHARACTERS_AN_ID * count
    if token_ids is not TokenIdPolicy.CL100K or estimate > INLINE_CHARACTERS:
        return estimate
    lists = cast("list[list[int]]", inputs)
    return max(estimate, sum(map(cl100k.size_bytes, lists)))


def _size_of_pairs(job: RerankJob) -> _Size:
    """Measure pairs, each with the instruction."""
    instruction = job.instruction or ""
    characters = sum(len(query) + len(document) for query, document in job.pairs)
    characters += len(instruction) * len(job.pairs)
    texts = chain.from_iterable(job.pairs)
    count = len(job.pairs)
    return _Size(count, characters, _is_small(count, characters, instruction, texts))


def _is_small(count: int, characters: int, prefix: str, texts: Iterable[str]) -> bool:
    if count > _INLINE_TEXTS:
        return False
    if characters <= INLINE_CHARACTERS // 4:
        return True
    is_ascii = str.isascii
    return characters <= INLINE_CHARACTERS and prefix.isascii() and all(map(is_ascii, texts))

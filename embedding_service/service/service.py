"""`EmbeddingService.embed`: the story of a request, readable top to bottom.

Between the dialects above and the engine below; knows neither HTTP nor ZeroMQ.
"""

from __future__ import annotations

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from embedding_service.errors import ContextLengthExceeded, InvalidRequest, PermissionDenied
from embedding_service.service import checks, late_interaction
from embedding_service.service.admission import Gate
from embedding_service.service.finish import check_finite, finish
from embedding_service.service.models import ModelRegistry
from embedding_service.types import Batch, Embeddings, EmbedJob, Field, Output, Priority, Scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from embedding_service.engine.pool import ModelEngine
    from embedding_service.service.call import Call
    from embedding_service.service.compute import Computed
    from embedding_service.service.models import ServedModel
    from embedding_service.service.pairs import PairEncoder
    from embedding_service.service.prompts import Encoder, Prepared, Token
    from embedding_service.service.shared_cache import SharedCache
    from embedding_service.settings.gateway import Settings
    from embedding_service.telemetry import Metrics
    from embedding_service.types import RerankJob

    Inputs = list[str] | list[list[int]]
    Work = Callable[[], Prepared]

_T = TypeVar("_T")
INTERACTIVE_TEXTS = 8
# No natural language needs so few tokens. Longer requests are refused unread, since their tokens
# would fill the memory.
CHARACTERS_PER_TOKEN = 8
# Work on less than this stays on the event loop: a thread costs 0.09 ms, 4,096 characters
# 1.7 ms to tokenise (MiniLM), 2**18 numbers 1.4 ms to normalise.
INLINE_CHARACTERS = 4096
INLINE_NUMBERS = 1 << 18
_CHARACTERS_A_PIECE = {str: 1, list: 4}  # of a text a character, of a list a token id
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
        self.requests = Gate(settings.max_concurrent_requests or sys.maxsize, "requests")
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="service")

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def embed(self, job: EmbedJob, call: Call) -> Embeddings:
        """Answer a request before its deadline or raise a `ServiceError`.

        The bytes of the answer stay reserved in `call.leases` until they are sent.
        """
        settings = self.settings
        model, alias = self.models.find(job.model)
        encoder, call.field = self._allowed(model, call).embedder(), job.field
        job, cut = checks.cut_texts(settings, job)
        checks.check_embed(settings, model, encoder, job)
        call.leases.enter_context(self.requests.admit(1))
        prefix = encoder.prefix(job, alias)
        prepared = await self._prepare(
            model,
            call,
            lambda: encoder.prepare(job, prefix, max_total=settings.max_request_tokens),
            texts=len(job.inputs),
            characters=_characters(job.inputs, prefix),
        )
        needed = checks.answer_bytes(encoder, job, prepared, limit=settings.max_response_bytes)
        call.leases.enter_context(self.answers.admit(needed, param=call.field))
        prepared = replace(prepared, truncated=checks.both(cut, prepared.truncated))
        computed = await self._compute(model, prepared, call, job.outputs)
        return await self._finish(model, encoder, job, prepared, computed)

    async def _finish(
        self,
        model: ServedModel,
        encoder: Encoder,
        job: EmbedJob,
        prepared: Prepared,
        computed: Computed,
    ) -> Embeddings:
        """Check, join, cut and convert the engine's rows; large answers in a thread."""
        name, numbers = self._name(model, job.model), checks.numbers(encoder, job, prepared)
        answer = await self._in_thread(
            lambda: finish(job, name, prepared, computed, ranges=model.ranges),
            unless=numbers <= INLINE_NUMBERS,
        )
        self._count(model, len(job.inputs), prepared.total)
        return answer

    async def rerank(self, job: RerankJob, call: Call) -> Scores:
        """Score every pair before the deadline, with a cross-encoder or by late interaction."""
        model, _ = self.models.find(job.model, scores=True)
        pairs, call.field = self._allowed(model, call).pairs, Field.DOCUMENTS
        job, cut = checks.cut_pairs(self.settings, job)
        checks.check_rerank(self.settings, job)
        if pairs is None:
            scores = await self._rerank_late(model, job, call)
        else:
            scores = await self._rerank_pairs(model, pairs, job, call)
        return replace(scores, truncated=checks.both(cut, scores.truncated))

    async def _rerank_pairs(
        self, model: ServedModel, pairs: PairEncoder, job: RerankJob, call: Call
    ) -> Scores:
        """Score with a cross-encoder, which reads each query together with its document."""
        if job.weights is not None:
            raise InvalidRequest(
                f"weights are for models with three vectors; {model.name} scores pairs",
                param="weights",
            )
        call.leases.enter_context(self.requests.admit(1))
        prepared = await self._prepare(
            model,
            call,
            lambda: pairs.prepare(job, max_total=self.settings.max_request_tokens),
            texts=len(job.pairs),
            characters=sum(len(query) + len(document) for query, document in job.pairs),
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
        embed, queries = late_interaction.embed_job(model.name, job)
        with ExitStack() as leases:  # these vectors are not the answer
            found = await self.embed(embed, replace(call, leases=leases))
            if found.truncated and found.truncated[-1] >= len(job.pairs):
                raise ContextLengthExceeded(
                    "the query is longer than the model's context; shorten it", param="query"
                )
            values = await self._in_thread(
                lambda: late_interaction.score_pairs(job, queries, found)
            )
        name, tokens = self._name(model, job.model), found.total_tokens
        return Scores(name, values, tokens, found.truncated, logits=False, engine_s=found.engine_s)

    async def tokenize(
        self, texts: list[str], call: Call, *, add_special_tokens: bool, prompt_name: str | None
    ) -> list[list[Token]]:
        """Return the tokens of each text as the default embedding model reads them."""
        encoder = self._default_encoder(call)
        characters, limit = sum(map(len, texts)), self.settings.max_request_tokens
        checks.check_count(len(texts), self.settings.max_inputs, Field.INPUT)
        checks.check_characters(texts, self.settings.max_text_characters, Field.INPUT)
        call.leases.enter_context(self.requests.admit(1))
        checks.check_total(characters // CHARACTERS_PER_TOKEN, limit, param=Field.INPUT)
        if prompt_name:
            prefix = encoder.prefix(EmbedJob(None, texts, prompt_name=prompt_name), None)
            texts = [prefix + text for text in texts]
        return await self._in_thread(
            lambda: encoder.tokenize(texts, add_special_tokens=add_special_tokens, max_total=limit),
            unless=characters <= INLINE_CHARACTERS,
        )

    async def decode(
        self, inputs: list[list[int]], call: Call, *, skip_special_tokens: bool
    ) -> list[str]:
        """Return the texts of token ids of the default embedding model."""
        encoder, tokens = self._default_encoder(call), sum(map(len, inputs))
        checks.check_count(len(inputs), self.settings.max_inputs, Field.INPUT)
        checks.check_total(tokens, self.settings.max_request_tokens, param=Field.INPUT)
        call.leases.enter_context(self.requests.admit(1))
        return await self._in_thread(
            lambda: encoder.decode(inputs, skip_special_tokens=skip_special_tokens),
            unless=tokens <= INLINE_CHARACTERS,
        )

    def _allowed(self, model: ServedModel, call: Call) -> ServedModel:
        """Return the model. Raises `PermissionDenied` if the caller's key is for others."""
        if not call.tenant.may_use(model.options.names):
            raise PermissionDenied(f"this key may not use {model.name}", param="model")
        return model

    def _default_encoder(self, call: Call) -> Encoder:
        """Return the tokenizer of the default embedding model.

        Raises `PermissionDenied`, `Unavailable`.
        """
        default = self.models.default_for(scores=False)
        return self._allowed(default, call).embedder()

    def _name(self, model: ServedModel, asked: str | None) -> str:
        """Return the model's name as answers have it."""
        if not self.settings.echo_model:
            return model.name
        return asked or next(iter(model.options.aliases), model.name)

    async def _prepare(
        self, model: ServedModel, call: Call, work: Work, *, texts: int, characters: int
    ) -> Prepared:
        """Tokenise; short requests on the event loop, long ones in a thread."""
        limit = self.settings.max_request_tokens
        checks.check_total(characters // CHARACTERS_PER_TOKEN, limit, param=call.field)
        bulk = texts > INTERACTIVE_TEXTS
        if bulk:  # a short request may be in the cache and need no room
            model.check_room(characters, limit)
        began = time.monotonic()
        model.preparing += 1
        try:
            prepared = await self._in_thread(work, unless=characters <= INLINE_CHARACTERS)
        finally:
            model.preparing -= 1
            self._note(model, call, "tokenize", began, time.monotonic() - began)
        if bulk:
            model.note_length(characters, prepared.total)
        return prepared

    async def _compute(
        self, model: ServedModel, prepared: Prepared, call: Call, outputs: frozenset[Output]
    ) -> Computed:
        """Have token ids computed, unless a cache knows the answer."""
        ids, began = prepared.ids, time.monotonic()
        priority = Priority.INTERACTIVE if len(ids) <= INTERACTIVE_TEXTS else Priority.BULK
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

    async def _in_thread(self, work: Callable[[], _T], *, unless: bool = False) -> _T:
        """Work in a thread, or here at once where that takes less than a thread."""
        if unless:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _characters(inputs: Inputs, prefix: str) -> int:
    """Return about how many characters are to be tokenised; a token id counts as four."""
    per_piece = _CHARACTERS_A_PIECE[type(inputs[0])]
    return per_piece * sum(map(len, inputs)) + len(prefix) * len(inputs)

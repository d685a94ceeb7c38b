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
from embedding_service.service import vectors
from embedding_service.service.admission import Gate
from embedding_service.service.finish import check_finite, finish
from embedding_service.service.late_interaction import score_pairs
from embedding_service.service.models import ModelRegistry
from embedding_service.service.outputs import PER_TOKEN
from embedding_service.service.prompts import check_total
from embedding_service.types import (
    Batch,
    Embeddings,
    EmbedDtype,
    EmbedJob,
    Encoding,
    Field,
    Output,
    Priority,
    Scores,
    Truncate,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from embedding_service.engine.pool import ModelEngine
    from embedding_service.service.call import Call
    from embedding_service.service.compute import Computed
    from embedding_service.service.models import ServedModel
    from embedding_service.service.pairs import PreparedPairs
    from embedding_service.service.prompts import Encoder, Prepared, Token
    from embedding_service.service.shared_cache import SharedCache
    from embedding_service.settings.gateway import Settings
    from embedding_service.settings.model import AliasSettings
    from embedding_service.telemetry import Metrics
    from embedding_service.types import RerankJob, TokenIds

_T = TypeVar("_T")
_Prepared = TypeVar("_Prepared", "Prepared", "PreparedPairs")
INTERACTIVE_TEXTS = 8
# No natural language needs so few tokens. Longer requests are refused unread: their tokens would fill the memory.
CHARACTERS_PER_TOKEN = 8
# How much of the tokens that are expected from a request's length it is taken to have at least.
SURELY = 0.8
# Work on less than this stays on the event loop: a thread costs 0.09 ms, 4,096 characters
# 1.7 ms to tokenise (MiniLM), 2**18 numbers 1.4 ms to normalise.
INLINE_CHARACTERS = 4096
INLINE_NUMBERS = 1 << 18
# Formats whose scale can be calibrated.
SCALED = frozenset({EmbedDtype.INT8, EmbedDtype.UINT8})
# What a SPLADE model, which has no dense vectors, gives for a text: 100 to 300 weights, however long it is.
VOCABULARY_WEIGHTS = 256


class EmbeddingService:
    """All served models, and the bounds on what may be in flight."""

    def __init__(
        self, settings: Settings, engines: Iterable[ModelEngine], metrics: Metrics, shared: SharedCache | None = None
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.models = ModelRegistry(settings, engines, shared)
        self.answers = Gate(settings.max_inflight_response_bytes, "bytes of answers")
        self.requests = Gate(settings.max_concurrent_requests or sys.maxsize, "requests")
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="core")

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def embed(self, job: EmbedJob, call: Call) -> Embeddings:
        """Answer a request before its deadline or raise a `ServiceError`.

        The bytes of the answer stay reserved in `call.leases` until they are sent.
        """
        model, alias = self._find(job.model, call)
        encoder, call.field = model.embedder(), job.field
        self._check(model, encoder, job)
        call.leases.enter_context(self.requests.admit(1))
        prefix = encoder.prefix(job, alias)
        prepared = await self._prepare(
            model,
            call,
            lambda: encoder.prepare(job, prefix, max_total=self.settings.max_request_tokens),
            texts=len(job.inputs),
            characters=_characters(job, prefix),
        )
        needed = self._answer_bytes(encoder, job, prepared)
        call.leases.enter_context(self.answers.admit(needed, param=call.field))
        computed = await self._compute(model, prepared.ids, call, outputs=job.outputs)
        rows = prepared.total if job.outputs & PER_TOKEN else len(prepared.ids)
        return await self._maybe_in_thread(
            lambda: finish(job, self._name(model, job.model), prepared, computed, ranges=model.ranges),
            inline=rows * (encoder.facts.dimension or 1) <= INLINE_NUMBERS,
        )

    def _find(self, name: str | None, call: Call, *, scores: bool = False) -> tuple[ServedModel, AliasSettings | None]:
        """Return the model that is meant. Raises `PermissionDenied` where the caller's key is for others."""
        model, alias = self.models.find(name, scores=scores)
        if not call.tenant.may_use(model.names):
            raise PermissionDenied(f"this key may not use {model.name}", param="model")
        return model, alias

    def _check(self, model: ServedModel, encoder: Encoder, job: EmbedJob) -> None:
        """Refuse what this model cannot give, before any work."""
        facts = encoder.facts
        if not job.outputs.issubset(facts.outputs):
            missing = [output for output in Output if output in job.outputs and output not in facts.outputs]
            has = ", ".join(facts.outputs)
            raise InvalidRequest(
                f"{model.name} gives {has} and no {' or '.join(missing)}",
                param=f"return_{missing[0]}" if {Output.SPARSE, Output.COLBERT}.issuperset(missing) else "model",
            )
        self._check_count(len(job.inputs) - job.queries, job.field)
        self._check_characters(job.inputs, job.field)
        if job.dimensions is not None:
            self._check_dimensions(model, encoder, job.dimensions)
        if scaled := sorted(SCALED & {job.embed_dtype, *job.more_dtypes}):
            if not job.normalize:
                raise InvalidRequest(f"{scaled[0]} is made from unit vectors; leave normalize out", param="normalize")
            if model.ranges is not None and Output.DENSE in job.outputs:
                self._check_ranges(model, job.dimensions or facts.dimension, calibrated=model.ranges.shape[1])

    def _check_ranges(self, model: ServedModel, dimensions: int | None, *, calibrated: int) -> None:
        if dimensions != calibrated:
            raise InvalidRequest(
                f"int8 and uint8 of {model.name} are calibrated for {calibrated} dimensions, and these vectors have "
                f"{dimensions}; set {Field.DIMENSIONS} to {calibrated}, or ask for another format",
                param=Field.DIMENSIONS,
            )

    def _check_dimensions(self, model: ServedModel, encoder: Encoder, dimensions: int) -> None:
        full, sizes, field = encoder.facts.dimension, model.matryoshka, Field.DIMENSIONS
        if full is None:
            raise InvalidRequest(f"{model.name} has no dense vectors to shorten", param=field)
        if dimensions == full:
            return
        if sizes is None:
            raise InvalidRequest(
                f"{field} must be {full}: {model.name} was not trained for shorter vectors", param=field
            )
        least = encoder.profile.smallest_dimension
        if (sizes and dimensions not in sizes) or not least <= dimensions <= full:
            allowed = f"one of {', '.join(map(str, sizes))}" if sizes else f"between {least} and {full}"
            raise InvalidRequest(f"{field} must be {allowed} for {model.name}", param=field)

    def _check_count(self, items: int, field: str) -> None:
        if items > self.settings.max_inputs:
            raise InvalidRequest(
                f"{field} has {items} items; this server takes at most {self.settings.max_inputs} a request",
                param=field,
            )

    def _check_characters(self, inputs: list[str] | list[list[int]], field: str) -> None:
        limit = self.settings.max_text_characters
        if limit is None or max(map(len, inputs)) <= limit:
            return
        for index, text in enumerate(inputs):
            if isinstance(text, str) and len(text) > limit:
                where = f"{field}[{index}]"
                raise InvalidRequest(
                    f"{where} has {len(text)} characters; this server takes at most {limit}", param=where
                )

    def _name(self, model: ServedModel, asked: str | None) -> str:
        """Return what an answer calls the model."""
        if not self.settings.echo_model:
            return model.name
        return asked or next(iter(model.options.aliases), model.name)

    def _default_encoder(self, call: Call) -> Encoder:
        """Return what the default embedding model reads with. Raises `PermissionDenied`, `Unavailable`."""
        model, _ = self._find(self.models.default_for(scores=False).name, call)
        return model.embedder()

    async def tokenize(
        self, texts: list[str], call: Call, *, add_special_tokens: bool, prompt_name: str | None
    ) -> list[list[Token]]:
        """Return the tokens of each text as the default embedding model reads them."""
        encoder = self._default_encoder(call)
        self._check_count(len(texts), Field.INPUT)
        self._check_characters(texts, Field.INPUT)
        call.leases.enter_context(self.requests.admit(1))
        limit = self.settings.max_request_tokens
        check_total(sum(map(len, texts)) // CHARACTERS_PER_TOKEN, limit, param=Field.INPUT)
        prefix = encoder.prefix(EmbedJob(None, texts, prompt_name=prompt_name), None) if prompt_name else ""
        return await self._maybe_in_thread(
            lambda: encoder.tokenize(
                [prefix + text for text in texts], add_special_tokens=add_special_tokens, max_total=limit
            ),
            inline=sum(map(len, texts)) <= INLINE_CHARACTERS,
        )

    async def decode(self, inputs: list[list[int]], call: Call, *, skip_special_tokens: bool) -> list[str]:
        """Return the texts of token ids of the default embedding model."""
        encoder = self._default_encoder(call)
        self._check_count(len(inputs), Field.INPUT)
        check_total(sum(map(len, inputs)), self.settings.max_request_tokens, param=Field.INPUT)
        call.leases.enter_context(self.requests.admit(1))
        return await self._maybe_in_thread(
            lambda: encoder.decode(inputs, skip_special_tokens=skip_special_tokens),
            inline=sum(map(len, inputs)) <= INLINE_CHARACTERS,
        )

    async def rerank(self, job: RerankJob, call: Call) -> Scores:
        """Score every pair before the deadline, with a cross-encoder or by late interaction."""
        model, _ = self._find(job.model, call, scores=True)
        call.field = Field.DOCUMENTS
        self._check_count(len(job.pairs), Field.DOCUMENTS)
        self._check_characters([document for _, document in job.pairs], Field.DOCUMENTS)
        if model.pairs is None:
            return await self._rerank_late(model, job, call)
        if job.weights is not None:
            raise InvalidRequest(
                f"weights are for models with three vectors; {model.name} scores pairs", param="weights"
            )
        call.leases.enter_context(self.requests.admit(1))
        pairs = model.pairs
        prepared = await self._prepare(
            model,
            call,
            lambda: pairs.prepare(job, max_total=self.settings.max_request_tokens),
            texts=len(job.pairs),
            characters=sum(len(query) + len(document) for query, document in job.pairs),
        )
        computed = await self._compute(
            model, prepared.ids, call, outputs=frozenset({Output.SCORE}), boundaries=prepared.boundaries
        )
        rows = [found[Output.SCORE] for found in computed.result.results]
        check_finite(rows, range(len(rows)), Field.DOCUMENTS)
        return Scores(
            self._name(model, job.model),
            np.concatenate(rows)[:, 0],
            prepared.total,
            prepared.truncated,
            logits=True,
            engine_s=computed.seconds,
        )

    async def _rerank_late(self, model: ServedModel, job: RerankJob, call: Call) -> Scores:
        """Score with an embedding model: MaxSim of its ColBERT vectors, or a weighted sum of all three kinds."""
        if Output.COLBERT not in model.embedder().facts.outputs:
            raise InvalidRequest(f"{model.name} has no ColBERT vectors to score pairs with", param="model")
        if job.instruction is not None or job.max_tokens_per_document is not None:
            name = "instruction" if job.instruction is not None else "max_tokens_per_doc"
            raise InvalidRequest(f"{name} is for cross-encoders; {model.name} scores by late interaction", param=name)
        queries = list(dict.fromkeys(query for query, _ in job.pairs))
        n = len(job.pairs)  # documents come first, so that errors give the place that they were sent at
        texts = [*(document for _, document in job.pairs), *queries]
        outputs = frozenset({Output.COLBERT} if job.weights is None else {Output.DENSE, Output.SPARSE, Output.COLBERT})
        embed = EmbedJob(
            model.name,
            texts,
            outputs,
            truncate=Truncate.RIGHT,
            encoding=Encoding.BASE64,
            field=Field.DOCUMENTS,
            queries=len(queries),
        )
        with ExitStack() as leases:  # these vectors are not the answer
            vectors_ = await self.embed(embed, replace(call, leases=leases))
            if vectors_.truncated and vectors_.truncated[-1] >= n:
                raise ContextLengthExceeded("the query is longer than the model's context; shorten it", param="query")
            values = await self._maybe_in_thread(lambda: score_pairs(job, queries, vectors_), inline=False)
        name = self._name(model, job.model)
        return Scores(name, values, vectors_.total_tokens, vectors_.truncated, logits=False, engine_s=vectors_.engine_s)

    async def _prepare(
        self, model: ServedModel, call: Call, work: Callable[[], _Prepared], *, texts: int, characters: int
    ) -> _Prepared:
        """Tokenise; short requests on the event loop, long ones in a thread.

        While the queue is full, a bulk request is refused unread if its tokens, going by the last ones,
        will not fit. A short one may be in the cache and need no room.
        """
        check_total(characters // CHARACTERS_PER_TOKEN, self.settings.max_request_tokens, param=call.field)
        if texts > INTERACTIVE_TEXTS:
            expected = min(characters / model.characters_per_token, self.settings.max_request_tokens)
            model.gate.check(int(SURELY * expected))
        began = time.monotonic()
        model.preparing += 1
        try:
            prepared = await self._maybe_in_thread(work, inline=characters <= INLINE_CHARACTERS)
        finally:
            model.preparing -= 1
            self._note(model, call, "tokenize", began, time.monotonic() - began)
        if texts > INTERACTIVE_TEXTS:
            model.characters_per_token += (characters / prepared.total - model.characters_per_token) / 16
        return prepared

    def _note(self, model: ServedModel, call: Call, stage: str, began: float, seconds: float) -> None:
        call.stages[stage] = (began, seconds)
        self.metrics.stage.labels(model.name, stage).observe(seconds)

    async def _compute(
        self,
        model: ServedModel,
        ids: list[TokenIds],
        call: Call,
        *,
        outputs: frozenset[Output],
        boundaries: list[int] | None = None,
    ) -> Computed:
        """Have token ids computed, unless a cache knows the answer."""
        batch = Batch(
            ids=ids,
            outputs=outputs,
            priority=Priority.INTERACTIVE if len(ids) <= INTERACTIVE_TEXTS else Priority.BULK,
            deadline=call.deadline,
            boundaries=boundaries,
        )
        began = time.monotonic()
        computed = await model.compute.run(batch, call=call, more_coming=model.preparing > 0)
        queued_s = computed.result.queued_s
        if not all(computed.cached):
            self._note(model, call, "queue", began, queued_s)
            self._note(model, call, "engine", began + queued_s, max(0.0, computed.seconds - queued_s))
        self.metrics.inputs.labels(model.name).inc(len(ids))
        self.metrics.tokens.labels(model.name).inc(sum(map(len, ids)))
        return computed

    def _answer_bytes(self, encoder: Encoder, job: EmbedJob, prepared: Prepared) -> int:
        """Return about how large the answer will be. Raises `InvalidRequest` where that is too much."""
        full = encoder.facts.dimension or 0
        numbers = len(job.inputs) * (job.dimensions or full) if Output.DENSE in job.outputs else 0
        numbers += len(job.outputs & PER_TOKEN) * prepared.total * full
        dtypes = [(job.embed_dtype, job.encoding), *((dtype, Encoding.FLOAT) for dtype in job.more_dtypes)]
        needed = sum(vectors.written_bytes(numbers, *each) for each in dtypes) + 100 * len(job.inputs)
        if Output.SPARSE in job.outputs:
            weights = prepared.total if full else VOCABULARY_WEIGHTS * len(job.inputs)
            needed += 24 * weights
        if needed > self.settings.max_response_bytes:
            raise InvalidRequest(
                f"the answer would have about {needed} bytes, and this server sends at most "
                f"{self.settings.max_response_bytes}; ask for encoding_format base64, embed_dtype float16 "
                "or fewer texts",
                param=job.field,
            )
        return needed

    async def _maybe_in_thread(self, work: Callable[[], _T], *, inline: bool) -> _T:
        return work() if inline else await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _characters(job: EmbedJob, prefix: str) -> int:
    """Return about how many characters are to be tokenised; a token id stands for four."""
    per_item = 1 if isinstance(job.inputs[0], str) else 4
    return per_item * sum(map(len, job.inputs)) + len(prefix) * len(job.inputs)

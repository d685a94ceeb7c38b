"""Whether a worker computes what its model promises: the same files as the first, and canaries.

Canaries go through prompts, tokenizer, the worker itself and finishing, past pool and caches.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from embedding_service.engine.examination import PASSED, Verdict
from embedding_service.errors import DeadlineExceeded, ModelNotLoaded, ServiceError
from embedding_service.service import canaries, checks
from embedding_service.service.compute import Computed
from embedding_service.service.outputs import finish
from embedding_service.types import Batch, EmbedJob, Output, Priority, Truncate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embedding_service.engine.generation import Generation
    from embedding_service.service.canaries import Directions, Pinned
    from embedding_service.service.models import ServedModel
    from embedding_service.settings.gateway import Settings
    from embedding_service.types import InputType

    Asked = tuple[str, InputType | None]

# Those of a hidden state or a score are not vectors to search with.
PINNED = frozenset({Output.DENSE, Output.SPARSE, Output.COLBERT})
_WITHIN_S = 300.0
_MOST_TOKENS = 1 << 20


class Examiner:
    """Examines the workers of one model; opens it with the first of them."""

    def __init__(self, model: ServedModel, settings: Settings, pinned: Pinned | None) -> None:
        self._model = model
        self._settings = settings
        self._pinned = pinned
        self._first: object = None

    async def __call__(self, worker: Generation, replica: int) -> Verdict:
        """Return a verdict. Raises `ModelNotLoaded` if the file is for another kind of model."""
        model, ingredients = self._model, worker.model.ingredients.space
        if model.facts is None:
            await asyncio.to_thread(model.open, self._settings)
            self._first = ingredients
            self._check_file()
        if ingredients != self._first:
            return Verdict(
                passed=False,
                outdated=True,
                reason="the model's files have changed since the service started: other workers "
                "and stored vectors are in another vector space; restart the service to serve them",
            )
        if self._pinned is None:
            return PASSED
        return await self._compare(self._pinned, worker, replica)

    def _check_file(self) -> None:
        """Raise `ModelNotLoaded` about a file that this model's vectors cannot be compared with."""
        model, pinned = self._model, self._pinned
        if pinned is None or model.facts is None:
            return
        facts = model.facts
        of = f"{model.name}: canary_file: pinned for {pinned.space}"
        if model.encoder is None:
            raise ModelNotLoaded(f"{of}, and this model scores pairs; leave canary_file out")
        if missing := pinned.outputs - set(facts.outputs):
            raise ModelNotLoaded(
                f"{of} with {min(missing)} vectors, and this model has none; use its own pins"
            )
        if pinned.dimension not in (None, facts.dimension):
            raise ModelNotLoaded(
                f"{of} with {pinned.dimension} dimensions, and this model has {facts.dimension}; "
                "use the model that it was pinned for, or pin anew"
            )

    async def _compare(self, pinned: Pinned, worker: Generation, replica: int) -> Verdict:
        """Have the canaries computed and compared."""
        model, began = self._model, time.monotonic()
        texts = [(canary.text, canary.input_type) for canary in pinned.texts]
        try:
            found = await vectors(model, self._settings, worker, texts, pinned.outputs)
        except DeadlineExceeded as error:
            return Verdict(passed=False, reason=f"no canaries: {error.message}", answered=False)
        except ServiceError as error:
            model.canary_cosines[replica] = 0.0
            return Verdict(passed=False, reason=f"no canaries: {error.message}")
        least = canaries.threshold(pinned.dtype, worker.model.facts.dtype)
        cosine, place = await asyncio.to_thread(canaries.worst, pinned, found)
        model.canary_cosines[replica] = cosine
        log = {"cosine": round(cosine, 7), "threshold": least, "pinned": pinned.space}
        log["seconds"] = round(time.monotonic() - began, 3)
        if cosine >= least:
            return Verdict(passed=True, log=log)
        reason = f"canary {place} is too far from its pinned vector: cosine {cosine:.6f} < {least}"
        return Verdict(passed=False, reason=reason, log={**log, "space": str(model.space)})


async def vectors(
    model: ServedModel,
    settings: Settings,
    worker: Generation,
    texts: Sequence[Asked],
    outputs: frozenset[Output],
) -> list[Directions]:
    """Have texts embedded by one worker, each for its use, as a request has them.

    Raises what the engine and the encoder raise.
    """
    found: list[Directions] = [{}] * len(texts)
    for use in dict.fromkeys(use for _, use in texts):
        places = [place for place, (_, each) in enumerate(texts) if each is use]
        job = _job(model, settings, [texts[place][0] for place in places], use, outputs)
        computed = await _embed(model, settings, worker, job)
        for place, vector in zip(places, computed, strict=True):
            found[place] = vector
    return found


def _job(
    model: ServedModel,
    settings: Settings,
    texts: list[str],
    use: InputType | None,
    outputs: frozenset[Output],
) -> EmbedJob:
    """Return what requests that do not say more ask for; what is too long is cut."""
    job = EmbedJob(model.name, texts, outputs=outputs, input_type=use, truncate=Truncate.RIGHT)
    default = settings.default_truncate
    return job if default is Truncate.ERROR else replace(job, truncate=default)


async def _embed(
    model: ServedModel, settings: Settings, worker: Generation, job: EmbedJob
) -> list[Directions]:
    if settings.over_long_texts == "cut":
        job, _ = checks.cut_texts(settings, job)
    encoder = model.embedder()
    prefix, job = encoder.prompts.prefix(job, None), encoder.completed(job)
    prepared = await asyncio.to_thread(encoder.prepare, job, prefix, max_total=_MOST_TOKENS)
    deadline = time.monotonic() + _WITHIN_S
    batch = Batch(prepared.ids, job.outputs, Priority.BULK, deadline, prepared.boundaries)
    result = await worker.run(batch, more_coming=False)
    computed = Computed(result, [False] * len(prepared.ids), 0.0)
    answer = finish(job, model.name, prepared, computed, ranges=None)
    return [canaries.directions(answer.by_output, index) for index in range(len(job.inputs))]

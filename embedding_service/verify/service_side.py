"""The configured models in this process, as a side of a comparison: the service without HTTP."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import numpy as np

from embedding_service.errors import ServiceError
from embedding_service.service.call import Call
from embedding_service.types import EmbedJob, InputType, Output, Truncate
from embedding_service.verify.sides import COMPARED, TEXTS_AT_ONCE, About, Kind, Refused

if TYPE_CHECKING:
    from embedding_service.service.models import ServedModel
    from embedding_service.service.service import EmbeddingService
    from embedding_service.settings.gateway import Settings
    from embedding_service.settings.model import ModelOptions
    from embedding_service.types import Embeddings, Rows
    from embedding_service.verify.sides import Answer

_DEADLINE_S = 3600.0
_TYPES: Final = {Kind.PLAIN: None, Kind.QUERY: InputType.QUERY, Kind.DOCUMENT: InputType.DOCUMENT}


def alone_settings(settings: Settings, models: list[ModelOptions]) -> Settings:
    """Return settings for these models under which every vector is computed, also the second time.

    Limits for clients do not count here.
    """
    return settings.model_copy(
        update={
            # Not quarantined for what is to be found out.
            "models": tuple(model.model_copy(update={"canary_file": None}) for model in models),
            "cache_max_bytes": 0,
            "redis_url": None,
            "max_inputs": TEXTS_AT_ONCE,
            "max_text_characters": None,
            "max_concurrent_requests": None,
        }
    )


class ServiceSide:
    """One model of a running service."""

    def __init__(self, service: EmbeddingService, model: ServedModel) -> None:
        self._service = service
        self._model = model
        facts = model.facts
        assert facts is not None  # noqa: S101 - it is loaded
        self._outputs = frozenset(facts.outputs) & COMPARED
        label = f"{model.name} here, vLLM {facts.engine_version} on {facts.device}"
        self.about = About(label, facts.dtype, facts.max_tokens, own=True)

    async def ask(self, texts: list[str], kind: Kind) -> list[Answer]:
        """Return the rows of each text. Raises `Refused`."""
        job = EmbedJob(
            self._model.name,
            texts,
            outputs=self._outputs,
            input_type=_TYPES[kind],
            truncate=Truncate.MODEL,
        )
        with ExitStack() as leases:
            call = Call(time.monotonic() + _DEADLINE_S, leases=leases)
            try:
                answer = await self._service.embed(job, call)
            except ServiceError as error:
                raise Refused(error.message) from None
            return [_rows(answer, index) for index in range(len(texts))]


def _rows(answer: Embeddings, index: int) -> Rows:
    found: Rows = {}
    if answer.dense is not None:
        found[Output.DENSE] = np.asarray(answer.dense[index], np.float32)[None]
    if answer.sparse is not None:
        sparse = answer.sparse[index]
        found[Output.SPARSE] = np.stack([sparse.indices, sparse.values], axis=1).astype(np.float32)
    if answer.colbert is not None:
        found[Output.COLBERT] = np.asarray(answer.colbert[index], np.float32)
    return found

"""TEI itself: its dialect's errors for everything, and probes that answer without a body."""

from __future__ import annotations

import time

from embedding_service.dialects import openai, tei, tei_fields
from embedding_service.dialects.dialect import Answer, Dialect, Request, probe
from embedding_service.dialects.embedding import refuse_nothing
from embedding_service.dropin.preset import Preset
from embedding_service.errors import Unavailable

_RETRY_S = 5.0


async def health(request: Request[None]) -> Answer:
    """Answer 200 without a body once the gateway is ready."""
    if not request.lifecycle.ready:
        raise Unavailable(
            f"not ready: {request.lifecycle.phase}; try again shortly", retry_after_s=_RETRY_S
        )
    return Answer(media_type=None)


async def create_embeddings(request: Request[openai.EmbeddingsRequest]) -> Answer:
    """Answer OpenAI's request, with TEI's headers."""
    began = time.monotonic()
    answer = await openai.create_embeddings(request)
    return tei.timed(request, answer, request.fields.input, began)


_SUMMARY, _ERRORS = "Is the service up?", tei_fields.ERRORS.responses()
_PROBES = [probe(path, health, _SUMMARY, responses=_ERRORS) for path in ("/", "/health", "/ping")]
PROBES = Dialect("TEI", tei_fields.ERRORS, tuple(_PROBES))
OPENAI = openai.dialect(create=create_embeddings, check=refuse_nothing("input"))
PRESET = Preset(
    name=tei.PRESET,
    errors=tei_fields.ERRORS,
    dialects=lambda _: (PROBES, tei.DIALECT),
    instead={"OpenAI": OPENAI},
    errors_at={operation.path: tei_fields.OPENAI_ERRORS for operation in OPENAI.operations},
)

"""matching-service: records of a property market, its health, its words for a used-up rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedding_service.dialects.dialect import Answer, Dialect, Request, probe
from embedding_service.dialects.errors import DetailResponse, ErrorShape, Failure, Written
from embedding_service.dropin import records
from embedding_service.dropin.model_identity import model_identity
from embedding_service.dropin.preset import Preset
from embedding_service.errors import RateLimited
from embedding_service.service.checksum import UNKNOWN

if TYPE_CHECKING:
    from embedding_service.settings.gateway import Settings


def _write(failure: Failure) -> Written:
    """Write an error as the original did; a used-up rate had slowapi's shape there."""
    if isinstance(failure.error, RateLimited):
        return failure.status, {"error": f"Rate limit exceeded: {failure.message}"}
    return failure.status, {"detail": failure.message}


ERRORS = ErrorShape(DetailResponse, _write)


async def health(request: Request[None]) -> Answer:
    """Describe model and cache; 503 until the model is loaded and its checksum known."""
    lifecycle, models = request.lifecycle, request.service.models
    model, cache = models.default_for(scores=False), models.cache
    identity = await model_identity(request.settings, model, wait=False)
    ready = lifecycle.ready and identity["model_checksum"] != UNKNOWN
    status = "reading weights" if lifecycle.ready else str(lifecycle.phase)
    body = {
        "status": "healthy" if ready else status,
        "model": model.name,
        "dimensions": model.facts.dimension if model.facts else None,
        "version": identity["model_version"],
        "model_checksum": identity["model_checksum"],
        "cache_enabled": cache is not None,
        "cache_size": cache.entries if cache else 0,
    }
    return Answer.json(body, status=200 if ready else 503)


HEALTH = probe("/health", health, "Health of the model")


def dialects(settings: Settings) -> tuple[Dialect, ...]:
    """Return records without the other dialects at `/embed`, and this system's health."""
    return records.dialect(settings), Dialect("matching-service", ERRORS, (HEALTH,))


PRESET = Preset(name="matching-service", errors=ERRORS, dialects=dialects)

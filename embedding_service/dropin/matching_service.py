"""matching-service: records of a property market, its health, its words for a used-up rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embedding_service import __version__
from embedding_service.dialects.dialect import Answer, Dialect, Request, get, probe, whole
from embedding_service.dialects.errors import DetailResponse, ErrorShape, Failure, Written
from embedding_service.dropin import matching_metrics, records
from embedding_service.dropin.model_info import model_identity
from embedding_service.dropin.preset import Preset
from embedding_service.errors import RateLimited

if TYPE_CHECKING:
    from embedding_service.settings.gateway import Settings


def _write(failure: Failure) -> Written:
    """Write an error as the original did; a used-up rate had slowapi's shape there."""
    if isinstance(failure.error, RateLimited):
        return failure.status, {"error": f"Rate limit exceeded: {failure.message}"}
    return failure.status, {"detail": failure.message}


ERRORS = ErrorShape(DetailResponse, _write)


async def health(request: Request[None]) -> Answer:
    """Describe model and cache; 503 until the model is loaded."""
    lifecycle, models = request.lifecycle, request.models
    model, cache = models.default_for(scores=False), models.cache
    identity = model_identity(request.settings, model)
    body = {
        "status": lifecycle.status("healthy"),
        "model": model.name,
        "dimensions": model.facts.dimension if model.facts else None,
        "version": __version__,
        "model_checksum": identity["model_checksum"],
        "cache_enabled": cache is not None,
        "cache_size": cache.entries if cache else 0,
    }
    return Answer.json(body, status=200 if lifecycle.ready else 503)


async def info(request: Request[None]) -> Answer:
    """Describe the service, its limits and its routes."""
    settings, models = request.settings, request.models
    model = models.default_for(scores=False)
    identity = model_identity(settings, model)
    paths = settings.rate_limit_paths
    body = {
        "service": settings.service_name,
        "version": __version__,
        "type": "STATELESS",
        "description": "Makes vectors of records and texts, and keeps none.",
        "model": model.name,
        "model_checksum": identity["model_checksum"],
        "status": request.lifecycle.status("running"),
        "limits": {
            "max_batch_size": settings.max_inputs,
            "max_text_length": settings.max_text_characters,
            "rate_limit": paths.get("/embed"),
            "rate_limit_batch": paths.get("/batch"),
        },
        "cache": {
            "enabled": models.cache is not None,
            "ttl_seconds": whole(settings.cache_ttl_s),
            "max_size": settings.cache_max_entries,
        },
        "endpoints": _ENDPOINTS,
        "docs": "/docs",
    }
    return Answer.json(body)


_ENDPOINTS = {
    "POST /embed": "A text's vector",
    "POST /prepare-and-embed": "A record's text and vector",
    "POST /reindex": "A changed record's text and vector",
    "POST /batch": "Several records",
    "POST /reindex-batch": "Several changed records",
    "GET /health": "Is the service up?",
    "GET /model-info": "The model, for pgvector",
    "GET /metrics": "For Prometheus",
}
INFO = get("/", info, "Which service is this?", response=dict[str, Any])
HEALTH = probe("/health", health, "Health of the model")


def dialects(settings: Settings) -> tuple[Dialect, ...]:
    """Return records without the other dialects at `/embed`, and this system's health."""
    return records.dialect(settings), Dialect("matching-service", ERRORS, (HEALTH, INFO))


PRESET = Preset(
    name="matching-service", errors=ERRORS, dialects=dialects, metrics=matching_metrics.register
)

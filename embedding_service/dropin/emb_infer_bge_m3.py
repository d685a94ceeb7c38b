"""emb-infer-bge-m3: three vectors by default, its statistics, its words about keys."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from embedding_service import __version__
from embedding_service.dialects import openai
from embedding_service.dialects.dialect import Access, Answer, Dialect, Request, get, probe, whole
from embedding_service.dialects.errors import DetailResponse, ErrorShape, Failure, Written
from embedding_service.dropin.blank import refuse_blank
from embedding_service.dropin.preset import KeyRules, Preset
from embedding_service.errors import BadConfiguration, Overloaded
from embedding_service.settings.keys import KeySettings

if TYPE_CHECKING:
    from embedding_service.settings.gateway import Settings
    from embedding_service.settings.model import ModelOptions

_AUTO_BATCH_SIZE = 32


def _write(failure: Failure) -> Written:
    """Write an error as the original did: a full queue is a 503 there."""
    status = 503 if isinstance(failure.error, Overloaded) else failure.status
    return status, {"detail": failure.message}


ERRORS = ErrorShape(DetailResponse, _write)


def _limits(request: Request[None]) -> dict[str, Any]:
    options = request.models.default.options
    return {
        "batch_size": _batch_size(options),
        "timeout_ms": whole(options.batch_timeout_ms),
        "max_queue_size": request.settings.max_concurrent_requests,
    }


def _batch_size(options: ModelOptions) -> int:
    size = options.max_batch_size
    return _AUTO_BATCH_SIZE if size == "auto" else size


def _statistics(request: Request[None]) -> dict[str, float]:
    """Return the same figures under both sets of names that the original had."""
    replicas = request.models.default.engine.replicas
    totals = [replica.totals for replica in replicas]  # restarts included
    batches = sum(each.steps for each in totals)
    texts = sum(each.texts for each in totals)
    busy_s = sum(each.busy_s for each in totals)
    texts_a_batch = round(texts / batches, 2) if batches else 0.0
    seconds_a_batch = round(busy_s / batches, 4) if batches else 0.0
    return {
        "queue_size": sum(each.progress.waiting for each in replicas if each.progress),
        "processed_requests": texts,
        "average_batch_size": texts_a_batch,
        "average_processing_time": seconds_a_batch,
        "total_batches": batches,
        "total_requests": texts,
        "avg_batch_size": texts_a_batch,
        "last_batch_time": seconds_a_batch,
    }


async def health(request: Request[None]) -> Answer:
    """Answer 200 once the gateway is ready."""
    status = 200 if request.lifecycle.ready else 503
    return Answer.json({"status": request.lifecycle.status("ok")}, status=status)


async def detailed_health(request: Request[None]) -> Answer:
    """Describe the model and the batching."""
    model = request.models.default
    body = {
        "status": request.lifecycle.status("ok"),
        "timestamp": time.time(),
        "model": {"name": model.name, "status": "loaded" if model.ready else "loading"},
        "batching": {"enabled": True, **_limits(request), "stats": _statistics(request)},
    }
    return Answer.json(body)


async def stats(request: Request[None]) -> Answer:
    """Count the texts and batches that were computed."""
    body = {"batching": _statistics(request), "config": _limits(request), "timestamp": time.time()}
    return Answer.json(body)


async def info(request: Request[None]) -> Answer:
    """Describe the service, its routes and its batching."""
    body = {
        "name": "emb-infer-bge-m3",
        "description": "BGE-M3 embedding inference API with selective vector generation",
        "version": __version__,
        "model": request.models.default.name,
        "status": request.lifecycle.status("running"),
        "docs_url": "/docs",
        "endpoints": _ENDPOINTS,
        "supported_vectors": ["dense", "sparse", "colbert"],
        "batching": {"enabled": True, **_limits(request)},
    }
    return Answer.json(body)


_ENDPOINTS = {
    "embeddings": "/v1/embeddings",
    "models": "/v1/models",
    "health": "/health",
    "health_detailed": "/health/detailed",
    "stats": "/stats",
}
_PLACEHOLDER = "your_api_token_here"  # of the original's documents and compose files


def check(settings: Settings) -> None:
    """Refuse to start without a token of one's own. Raises `BadConfiguration`."""
    placeholder = KeySettings.model_validate(_PLACEHOLDER).digest
    in_environment = any(os.environ.get(name) == _PLACEHOLDER for name in settings.api_keys_env)
    if in_environment or placeholder in (key.digest for key in settings.api_keys):
        raise BadConfiguration(
            f"API_TOKEN: {_PLACEHOLDER} is in public documents, so anybody knows it; set another"
        )
    if not (settings.has_keys or settings.allow_anonymous):
        raise BadConfiguration(
            "API_TOKEN: it has to be set; this preset does not start without a token"
        )


_INPUT = refuse_blank(
    "input",
    message="Text at index {index} is too short (minimum 1 characters)",
    empty="Input cannot be empty",
)
DIALECT = Dialect(
    "emb-infer-bge-m3",
    ERRORS,
    (
        get("/", info, "Which service is this?", access=Access.OPEN),
        probe("/health", health, "Is the service up?"),
        get("/health/detailed", detailed_health, "Health of model and batching"),
        get("/stats", stats, "Texts and batches computed"),
    ),
)
PRESET = Preset(
    name="emb-infer-bge-m3",
    errors=ERRORS,
    dialects=lambda _: (DIALECT,),
    instead={"OpenAI": openai.dialect(create=openai.create_all_embeddings)},
    checks=dict.fromkeys(("/v1/embeddings", "/embeddings"), _INPUT),
    keys=KeyRules(missing="Missing API token", wrong="Invalid API token", bare=True),
    check=check,
)

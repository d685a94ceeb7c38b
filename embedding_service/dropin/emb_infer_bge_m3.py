"""emb-infer-bge-m3: three vectors by default, its statistics, its words about keys."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from embedding_service.dialects import openai
from embedding_service.dialects.dialect import Answer, Dialect, Handler, Operation, Request, probe
from embedding_service.dialects.errors import DetailResponse, ErrorShape, Failure, Written
from embedding_service.dropin.preset import KeyRules, Preset
from embedding_service.errors import BadConfiguration, Overloaded

if TYPE_CHECKING:
    from embedding_service.settings.gateway import Settings

_AUTO_BATCH_SIZE = 32


def _write(failure: Failure) -> Written:
    """Write an error as the original did: a full queue is a 503 there."""
    status = 503 if isinstance(failure.error, Overloaded) else failure.status
    return status, {"detail": failure.message}


ERRORS = ErrorShape(DetailResponse, _write)


def _status(request: Request[None]) -> str:
    return "ok" if request.lifecycle.ready else str(request.lifecycle.phase)


def _limits(request: Request[None]) -> dict[str, Any]:
    options = request.service.models.default.options
    size = options.max_batch_size
    return {
        "batch_size": _AUTO_BATCH_SIZE if size == "auto" else size,
        "timeout_ms": options.batch_timeout_ms,
        "max_queue_size": request.settings.max_concurrent_requests,
    }


def _statistics(request: Request[None]) -> dict[str, float]:
    """Return the same figures under both sets of names that the original had."""
    replicas = request.service.models.default.engine.replicas
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


def _now() -> str:
    return datetime.now(UTC).isoformat()


async def health(request: Request[None]) -> Answer:
    """Answer 200 once the gateway is ready."""
    status = 200 if request.lifecycle.ready else 503
    return Answer.json({"status": _status(request)}, status=status)


async def detailed_health(request: Request[None]) -> Answer:
    """Describe the model and the batching."""
    model = request.service.models.default
    body = {
        "status": _status(request),
        "timestamp": _now(),
        "model": {"name": model.name, "status": "loaded" if model.ready else "loading"},
        "batching": {"enabled": True, **_limits(request), "stats": _statistics(request)},
    }
    return Answer.json(body)


async def stats(request: Request[None]) -> Answer:
    """Count the texts and batches that were computed."""
    body = {
        "batching": _statistics(request),
        "config": _limits(request),
        "timestamp": _now(),
    }
    return Answer.json(body)


def check(settings: Settings) -> None:
    """Refuse to start without a token, as the original did. Raises `BadConfiguration`."""
    if not (settings.has_keys or settings.allow_anonymous):
        raise BadConfiguration(
            "API_TOKEN: it has to be set; this preset does not start without a token"
        )


def _get(path: str, handle: Handler, summary: str) -> Operation:
    return Operation(path=path, method="GET", handle=handle, summary=summary)


DIALECT = Dialect(
    "emb-infer-bge-m3",
    ERRORS,
    (
        probe("/health", health, "Is the service up?"),
        _get("/health/detailed", detailed_health, "Health of model and batching"),
        _get("/stats", stats, "Texts and batches computed"),
    ),
)
PRESET = Preset(
    name="emb-infer-bge-m3",
    errors=ERRORS,
    dialects=lambda _: (DIALECT,),
    instead={"OpenAI": openai.dialect(create=openai.create_all_embeddings)},
    open_paths=frozenset({"/"}),
    keys=KeyRules(missing="Missing API token", wrong="Invalid API token", bare=True),
    check=check,
)

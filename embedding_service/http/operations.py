"""Operators and balancers: service info, health, liveness, readiness, the cache."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field

from embedding_service import __version__
from embedding_service.dialects.dialect import (
    Answer,
    Dialect,
    Operation,
    Request,
    get,
    probe,
    whole,
)
from embedding_service.dialects.errors import OPENAI
from embedding_service.engine.states import State
from embedding_service.errors import ModelNotFound, PermissionDenied, Unavailable
from embedding_service.service.cache import MemoryCache

if TYPE_CHECKING:
    from embedding_service.dialects.errors import Responses

SERVICE_NAME = "embedding-service"
_RETRY_S = 5.0


class ServiceInfo(BaseModel):
    """Which service this is; `status` is `running`, or the phase it is in."""

    service: str
    version: str
    model: str
    status: str


class Alive(BaseModel):
    """The gateway's event loop runs."""

    status: Literal["alive"]


class Readiness(BaseModel):
    """The states of every model's replicas."""

    status: Literal["ready"]
    models: dict[str, list[State]]


class Health(BaseModel):
    """The default model; `status` is `healthy`, or the phase the gateway is in."""

    status: str
    model: str
    gpu_memory_utilization: float
    max_model_len: int | None
    device: str | None


class CacheState(BaseModel):
    """The cache's size in entries and bytes, and how often it knew the answer."""

    enabled: bool
    current_size: int
    max_size: int | None
    bytes: int
    max_bytes: int
    utilization_percent: float = Field(
        description="Of `max_size` or `max_bytes`, whichever is nearer."
    )
    ttl_seconds: int | float
    hits: int
    misses: int


class Cleared(BaseModel):
    """How many results were forgotten."""

    message: str
    cleared: int


async def info(request: Request[None]) -> Answer:
    """Tell which service this is."""
    ready, phase = request.lifecycle.ready, request.lifecycle.phase
    body = {
        "service": request.settings.service_name,
        "version": __version__,
        "model": request.models.default.name,
        "status": "running" if ready else phase,
    }
    return Answer.json(body)


async def livez(request: Request[None]) -> Answer:  # noqa: ARG001
    """Answer, whatever the engines do."""
    return Answer.json({"status": "alive"})


async def readyz(request: Request[None]) -> Answer:
    """Answer 200 only while all required models, or the one that is asked about, can work."""
    models, phase = request.models, request.lifecycle.phase
    ready = _is_ready(request, request.query.get("model"))
    states = {model.name: model.engine.states for model in models}
    if not ready:
        by_model = "; ".join(f"{name}: {', '.join(each)}" for name, each in states.items())
        raise Unavailable(
            f"not ready; gateway: {phase}; {by_model}; try again shortly", retry_after_s=_RETRY_S
        )
    return Answer.json({"status": "ready", "models": states})


def _is_ready(request: Request[None], name: str | None) -> bool:
    if name is None:
        return request.lifecycle.ready
    model = request.models.get(name)
    if model is None:
        raise ModelNotFound("no model by that name is served here; see /v1/models", param="model")
    return model.ready and request.lifecycle.phase == "ready"


async def health(request: Request[None]) -> Answer:
    """Describe the default model; 503 until the gateway is ready."""
    model, lifecycle = request.models.default, request.lifecycle
    facts = model.facts
    body = {
        "status": lifecycle.status("healthy"),
        "model": model.name,
        "gpu_memory_utilization": model.options.gpu_memory_utilization,
        "max_model_len": facts.max_tokens if facts else model.options.max_model_len,
        "device": facts.device if facts else None,
    }
    return Answer.json(body, status=200 if lifecycle.ready else 503)


async def cache_stats(request: Request[None]) -> Answer:
    """Count what the cache holds."""
    cache = request.models.cache
    state = cache or MemoryCache(0, 0)
    share_of_bytes = state.bytes / (state.max_bytes or 1)
    share_of_entries = state.entries / (state.max_entries or sys.maxsize)
    body = CacheState(
        enabled=cache is not None,
        current_size=state.entries,
        max_size=state.max_entries,
        bytes=state.bytes,
        max_bytes=state.max_bytes,
        utilization_percent=round(100 * max(share_of_bytes, share_of_entries), 2),
        ttl_seconds=whole(state.ttl_s),
        hits=state.hits,
        misses=state.misses,
    )
    return Answer.json(body)


async def cache_clear(request: Request[None]) -> Answer:
    """Forget all results, here and in Redis; for keys that may use all models."""
    if request.call.tenant.models is not None:
        raise PermissionDenied(
            "the cache belongs to all models; use a key without `models` to clear it"
        )
    models = request.models
    cleared = await models.cache.clear() if models.cache else 0
    if models.shared is not None:
        cleared += await models.shared.clear()
    return Answer.json({"message": f"{cleared} results forgotten", "cleared": cleared})


def _documented(*statuses: int) -> Responses:
    errors = OPENAI.responses()
    return {status: errors[status] for status in statuses}


INFO = get("/", info, "Which service is this?", response=ServiceInfo)
_MODEL = {
    "name": "model",
    "in": "query",
    "required": False,
    "schema": {
        "anyOf": [{"type": "string"}, {"type": "null"}],
        "description": "Ask about one model.",
        "title": "Model",
    },
    "description": "Ask about one model.",
}
_NO_KEY_FOR_ALL = {**OPENAI.responses()[403], "description": "The key is not for all models."}
_REDIS_GONE = {
    **OPENAI.responses()[503],
    "description": "Redis does not answer; what it holds is not forgotten.",
}
DIALECT = Dialect(
    "Operations",
    OPENAI,
    (
        INFO,
        probe("/livez", livez, "Is the gateway alive?", response=Alive),
        probe(
            "/readyz",
            readyz,
            "Should a balancer send requests here?",
            response=Readiness,
            responses=_documented(404, 503),
            parameters=(_MODEL,),
        ),
        probe(
            "/health",
            health,
            "Health of the default model",
            response=Health,
            responses={503: {"model": Health, "description": "Not ready."}},
        ),
        probe("/ping", livez, "Is the gateway alive?", response=Alive, documented=False),
        get("/cache/stats", cache_stats, "What does the cache hold?", response=CacheState),
        Operation(
            path="/cache/clear",
            handle=cache_clear,
            summary="Forget all results",
            response=Cleared,
            responses={403: _NO_KEY_FOR_ALL, 503: _REDIS_GONE},
        ),
    ),
)

"""What operators and balancers ask: service info, health, liveness, readiness, the documentation."""

from __future__ import annotations

import sys
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic import BaseModel, Field
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from embedding_service import __version__
from embedding_service.engine.states import State
from embedding_service.errors import ModelNotFound, PermissionDenied, Unavailable
from embedding_service.http.middleware import exchange_of
from embedding_service.http.problems import ERRORS
from embedding_service.service.cache import MemoryCache

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedding_service.service.lifecycle import Lifecycle

SERVICE_NAME = "embedding-service"


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
    """What the cache holds, in entries and bytes, and how often it knew the answer."""

    enabled: bool
    current_size: int
    max_size: int | None
    bytes: int
    max_bytes: int
    utilization_percent: float = Field(description="Of `max_size` or `max_bytes`, whichever is nearer.")
    ttl_seconds: float
    hits: int
    misses: int


class Cleared(BaseModel):
    """How many results were forgotten."""

    message: str
    cleared: int


class Endpoints:
    """What the routes do."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self.lifecycle = lifecycle
        self.models = lifecycle.service.models
        self.settings = lifecycle.service.settings

    async def info(self) -> dict[str, Any]:
        """Tell which service this is."""
        return {
            "service": self.settings.service_name,
            "version": __version__,
            "model": self.models.default.name,
            "status": "running" if self.lifecycle.ready else self.lifecycle.phase,
        }

    async def livez(self) -> dict[str, str]:
        """Answer, whatever the engines do."""
        return {"status": "alive"}

    async def readyz(
        self, model: Annotated[str | None, Query(description="Ask about one model.")] = None
    ) -> dict[str, Any]:
        """Answer 200 only while all required models, or the one that is asked about, can work."""
        if model is None:
            ready = self.lifecycle.ready
        else:
            served = self.models.get(model)
            if served is None:
                raise ModelNotFound("no model by that name is served here", param="model")
            ready = served.ready and self.lifecycle.phase == "ready"
        states = {each.name: [replica.state for replica in each.engine.replicas] for each in self.models}
        if not ready:
            raise Unavailable(f"not ready: {self.lifecycle.phase}, {states}", retry_after_s=5)
        return {"status": "ready", "models": states}

    async def health(self) -> Response:
        """Describe the default model; 503 until the gateway is ready."""
        served, ready = self.models.default, self.lifecycle.ready
        card = served.card()
        body = {
            "status": "healthy" if ready else str(self.lifecycle.phase),
            "model": served.name,
            "gpu_memory_utilization": served.options.gpu_memory_utilization,
            "max_model_len": card.max_tokens if card else served.options.max_model_len,
            "device": card.device if card else None,
        }
        return JSONResponse(body, 200 if ready else 503)

    async def cache_stats(self) -> CacheState:
        """Count what the cache holds."""
        state = (self.models.cache or MemoryCache(0, 0)).stats()
        shares = state.bytes / (state.max_bytes or 1), state.entries / (state.max_entries or sys.maxsize)
        return CacheState(
            enabled=self.models.cache is not None,
            current_size=state.entries,
            max_size=state.max_entries,
            bytes=state.bytes,
            max_bytes=state.max_bytes,
            utilization_percent=round(100 * max(shares), 2),
            ttl_seconds=state.ttl_s,
            hits=state.hits,
            misses=state.misses,
        )

    async def cache_clear(self, request: Request) -> Cleared:
        """Forget all results, here and in Redis; for keys that may use all models."""
        if exchange_of(request.scope).call.tenant.models is not None:
            raise PermissionDenied("the cache belongs to all models; only a key for all of them may clear it")
        cleared = self.models.cache.clear() if self.models.cache else 0
        if self.models.shared is not None:
            cleared += await self.models.shared.clear()
        return Cleared(message=f"{cleared} results forgotten", cleared=cleared)


def router(lifecycle: Lifecycle) -> APIRouter:
    """Return the routes; probes answer HEAD as well."""
    routes, do = APIRouter(tags=["Operations"]), Endpoints(lifecycle)
    not_ready: dict[int | str, Any] = {503: {"model": Health, "description": "Not ready."}}
    probes: list[tuple[str, Callable[..., Any], str, type[BaseModel], dict[int | str, Any]]] = [
        ("/livez", do.livez, "Is the gateway alive?", Alive, {}),
        ("/readyz", do.readyz, "Should a balancer send requests here?", Readiness, {s: ERRORS[s] for s in (404, 503)}),
        ("/health", do.health, "Health of the default model", Health, not_ready),
    ]
    routes.get("/", summary="Which service is this?", response_model=ServiceInfo)(do.info)
    for path, endpoint, summary, response, errors in probes:
        routes.get(path, summary=summary, response_model=response, responses=errors)(endpoint)
        routes.head(path, include_in_schema=False)(endpoint)
    routes.api_route("/ping", methods=["GET", "HEAD"], include_in_schema=False)(do.livez)
    routes.get("/cache/stats", summary="What does the cache hold?", response_model=CacheState)(do.cache_stats)
    routes.post(
        "/cache/clear",
        summary="Forget all results",
        response_model=Cleared,
        responses={
            403: {**ERRORS[403], "description": "The key is not for all models."},
            503: {**ERRORS[503], "description": "Redis does not answer; what it holds is not forgotten."},
        },
    )(do.cache_clear)
    return routes


def add_documentation(app: FastAPI) -> None:
    """Serve `/docs` with its assets from this host: no browser is sent anywhere else."""
    assets = files("fastapi_offline") / "static"
    app.mount("/docs/assets", StaticFiles(directory=str(assets)), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=SERVICE_NAME,
            swagger_js_url="/docs/assets/swagger-ui-bundle.js",
            swagger_css_url="/docs/assets/swagger-ui.css",
            swagger_favicon_url="/docs/assets/favicon.png",
        )

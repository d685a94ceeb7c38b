"""The composition root of the HTTP side: routes, and the onion around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from embedding_service import __version__
from embedding_service.api import bge, metrics, openai, ops, problems, rerank
from embedding_service.api.auth import OPEN_PATHS, Auth
from embedding_service.api.middleware import Body, RequestLog
from embedding_service.api.ratelimit import RateLimit
from embedding_service.errors import ServiceError

if TYPE_CHECKING:
    from starlette.types import ASGIApp
    from structlog.typing import FilteringBoundLogger

    from embedding_service.core.rates import Rates
    from embedding_service.keys import KeyRing
    from embedding_service.lifecycle import Lifecycle
    from embedding_service.settings import Settings
    from embedding_service.tracing import Tracer

EXPOSED_HEADERS = (
    *("x-request-id", "openai-processing-ms", "x-truncated-inputs", "x-chunked-inputs", "x-cache", "retry-after"),
    *(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")),
)


def create_app(
    settings: Settings,
    lifecycle: Lifecycle,
    *,
    keys: KeyRing,
    rates: Rates,
    tracer: Tracer | None,
    log: FilteringBoundLogger,
) -> ASGIApp:
    """Return the whole gateway as one ASGI application."""
    app = create_routes(settings, lifecycle)
    open_paths = OPEN_PATHS | ({"/metrics"} if settings.metrics == "open" else set())
    if settings.docs == "open":
        assets = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
        open_paths |= {"/docs", "/openapi.json", *(f"/docs/assets/{name}" for name in assets)}
    onion: ASGIApp = Body(app, max_bytes=settings.max_body_bytes, pause_s=settings.body_timeout_s)
    onion = RateLimit(onion, rates=rates, exempt=open_paths)
    onion = Auth(
        onion, keys=keys, open_paths=open_paths, local_paths={"/metrics"} if settings.metrics == "loopback" else set()
    )
    onion = RequestLog(onion, lifecycle=lifecycle, timeout_s=settings.request_timeout_s, log=log, tracer=tracer)
    if settings.cors_origins:
        onion = CORSMiddleware(
            onion,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    return onion


def create_routes(settings: Settings, lifecycle: Lifecycle) -> FastAPI:
    """Return the routes alone, with their OpenAPI document."""
    app = FastAPI(
        title="embedding-service",
        version=__version__,
        description="OpenAI-compatible embeddings, backed by vLLM.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # behind a proxy that ends TLS, the redirect would lead to plain HTTP
        openapi_url=None if settings.docs == "off" else "/openapi.json",
        exception_handlers={
            ServiceError: problems.service_error,
            HTTPException: problems.http_error,
            Exception: problems.unexpected_error,
        },
    )
    app.include_router(openai.router(lifecycle.service))
    app.include_router(bge.router(lifecycle.service, settings))
    app.include_router(rerank.router(lifecycle.service))
    app.include_router(ops.router(lifecycle))
    app.include_router(metrics.router(lifecycle, expose_metrics=settings.metrics != "off"))
    if settings.docs != "off":
        ops.add_documentation(app)
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = describe()
            for model in (openai.EmbeddingsRequest, bge.SparseRequest, rerank.RerankRequest):
                schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
                document["components"]["schemas"] |= schema.pop("$defs", {}) | {model.__name__: schema}
            _forget_422(document)
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}, {}]  # without configured keys none is needed
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _forget_422(document: dict[str, Any]) -> None:
    """Take out what FastAPI documents for every route with a parameter: wrong requests get a 400 here."""
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)

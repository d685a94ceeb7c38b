"""The composition root of the HTTP side: which dialect answers where, and the onion around the routes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from embedding_service import __version__
from embedding_service.dialects import bge, cohere, openai, rerank, tei, wire
from embedding_service.dropin import records, services
from embedding_service.errors import InvalidRequest, ServiceError
from embedding_service.http import metrics, operations, problems
from embedding_service.http.auth import OPEN_PATHS, Auth, Words
from embedding_service.http.direct import DirectRoute, Shortcut
from embedding_service.http.middleware import Body, RequestLog
from embedding_service.http.ratelimit import RateLimit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import BaseModel
    from starlette.responses import Response
    from starlette.types import ASGIApp
    from structlog.typing import FilteringBoundLogger

    from embedding_service.http.keys import KeyRing
    from embedding_service.http.tracing import Tracer
    from embedding_service.service.lifecycle import Lifecycle
    from embedding_service.service.rates import Rates
    from embedding_service.settings.gateway import Settings


@dataclass(frozen=True, slots=True)
class Surface:
    """What a preset changes: its own routes win over the default ones, and errors have its envelope.

    `embeddings` and `rerank` are options of these dialects' routers.
    """

    envelope: problems.Envelope = problems.DETAIL
    routes: Callable[[Lifecycle], APIRouter] | None = None
    embeddings: Mapping[str, Any] = field(default_factory=dict)
    rerank: Mapping[str, Any] = field(default_factory=dict)
    open_paths: frozenset[str] = OPEN_PATHS
    words: Words = field(default_factory=Words)


SURFACES: dict[str | None, Surface] = {
    None: Surface(problems.OPENAI),
    "qwen3-embedding": Surface(embeddings={"check": services.refuse_blank}),
    "qwen3-reranker": Surface(),
    "embed": Surface(routes=services.embed),
    "emb-infer-bge-m3": Surface(
        problems.EMB_INFER,
        services.emb_infer,
        embeddings={"all_kinds": True},
        open_paths=OPEN_PATHS | {"/"},
        words=Words(missing="Missing API token", wrong="Invalid API token", bare=True),
    ),
    "bge-inference-service": Surface(
        routes=services.bge_inference, rerank={"raw_scores": True, "return_documents": True}
    ),
    "matching-service": Surface(problems.MATCHING, records.preset),
    "tei": Surface(problems.TEI, tei.preset, open_paths=OPEN_PATHS | {"/"}),
}
# Paths of several dialects: without a preset of its own for them, the field that is sent decides.
SHARED = {
    "/embed": {"inputs": "tei", "texts": "embed", "text": "records"},
    "/rerank": {"texts": "tei", "documents": "rerank", "pairs": "rerank"},
}
TEI_PATHS = {"/", "/embed", "/embed_all", "/embed_sparse", "/similarity", "/tokenize", "/decode", "/info"}
COHERE_PATHS = {"/v2/embed", "/v2/rerank"}
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
    surface = SURFACES[settings.preset]
    open_paths = surface.open_paths | ({"/metrics"} if settings.metrics == "open" else set())
    if settings.docs == "open":
        assets = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
        open_paths |= {"/docs", "/openapi.json", *(f"/docs/assets/{name}" for name in assets)}
    onion: ASGIApp = Body(Shortcut(app), max_bytes=settings.max_body_bytes, pause_s=settings.body_timeout_s)
    onion = RateLimit(onion, rates=rates)
    onion = Auth(
        onion,
        keys=keys,
        words=surface.words,
        open_paths=open_paths,
        local_paths={"/metrics"} if settings.metrics == "loopback" else set(),
    )
    onion = RequestLog(
        onion,
        lifecycle=lifecycle,
        timeout_s=settings.request_timeout_s,
        send_timeout_s=settings.send_timeout_s,
        envelope_of=_envelope if settings.preset is None else lambda _: surface.envelope,
        log=log,
        tracer=tracer,
    )
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
    for router in _routers(settings, lifecycle):
        known = {
            (route.path, method) for route in app.routes if isinstance(route, APIRoute) for method in route.methods
        }
        router.routes = [
            route
            for route in router.routes
            if isinstance(route, APIRoute) and known.isdisjoint((route.path, method) for method in route.methods)
        ]
        app.include_router(router)
    if settings.docs != "off":
        operations.add_documentation(app)
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = describe()
            for route in app.routes:
                for model in _requests(route):
                    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
                    document["components"]["schemas"] |= schema.pop("$defs", {}) | {model.__name__: schema}
            _forget_422(document)
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}, {}]  # without configured keys none is needed
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _routers(settings: Settings, lifecycle: Lifecycle) -> list[APIRouter]:
    """Return the dialects' routes, those that win first."""
    service, surface = lifecycle.service, SURFACES[settings.preset]
    dialects = {
        "openai": openai.router(service, **surface.embeddings),
        "bge": bge.router(service, settings),
        "rerank": rerank.router(service, **surface.rerank),
        "cohere": cohere.router(service),
        "tei": tei.router(service),
        "records": records.router(lifecycle),
        "ops": operations.router(lifecycle),
        "metrics": metrics.router(lifecycle, expose_metrics=settings.metrics != "off"),
    }
    own = [surface.routes(lifecycle)] if surface.routes else []
    by_field = {**dialects, "embed": services.embed(lifecycle)}
    shared = [
        _by_field(path, {name: by_field[d] for name, d in fields.items()}, envelopes=settings.preset is None)
        for path, fields in SHARED.items()
    ]
    return [*own, *shared, *dialects.values()]


def _by_field(path: str, dialects: dict[str, APIRouter], *, envelopes: bool) -> APIRouter:
    """Return a route that hands a request to the dialect whose field it has; none or two is a 400."""
    routes = {name: _route(router, path) for name, router in dialects.items()}

    async def choose(request: Request) -> Response:
        tree = await wire.read_object(request)
        named = {name: route for name, route in routes.items() if name in tree}
        if len({id(route) for route in named.values()}) != 1:
            if envelopes:
                problems.use(request.scope, problems.OPENAI)
            raise InvalidRequest(f"send exactly one of {', '.join(routes)}", param=next(iter(named), None))
        route = next(iter(named.values()))
        if envelopes:
            problems.use(request.scope, problems.TEI if "TEI" in route.tags else problems.OPENAI)
        response: Response = await route.endpoint(request)
        return response

    distinct = {id(route): route for route in routes.values()}.values()
    shared = APIRouter(tags=[tag for route in distinct for tag in route.tags])
    shared.add_api_route(
        path,
        choose,
        methods=["POST"],
        route_class_override=DirectRoute,
        summary=f"By field: {', '.join(routes)}",
        response_model=reduce(or_, (route.response_model for route in distinct)),
        responses={
            **problems.TEI.responses,
            **problems.ERRORS,
            400: {
                "model": problems.OPENAI.model | problems.TEI.model,
                "description": problems.ERRORS[400]["description"],
            },
        },
        openapi_extra=wire.RequestSchema(*(model for route in distinct for model in _requests(route))),
        operation_id=path.strip("/"),
    )
    return shared


def _requests(route: object) -> tuple[type[BaseModel], ...]:
    """Return the models that describe a route's body."""
    extra = getattr(route, "openapi_extra", None)
    return extra.models if isinstance(extra, wire.RequestSchema) else ()


def _envelope(path: str) -> problems.Envelope:
    """Return how errors are written at a path, where no preset says so."""
    if path in TEI_PATHS:
        return problems.TEI
    return problems.COHERE if path in COHERE_PATHS else problems.OPENAI


def _route(router: APIRouter, path: str) -> APIRoute:
    return next(route for route in router.routes if isinstance(route, APIRoute) and route.path == path)


def _forget_422(document: dict[str, Any]) -> None:
    """Take out what FastAPI documents for every route with a parameter: wrong requests get a 400 here."""
    for methods in document["paths"].values():
        for operation in methods.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)

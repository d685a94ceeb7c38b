"""The composition root of the HTTP side: all dialects, mounted, and the middleware around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from embedding_service import __version__
from embedding_service.dialects import bge, cohere, openai, rerank, tei, vllm
from embedding_service.dialects.dialect import Access
from embedding_service.dialects.errors import OPENAI
from embedding_service.dropin import embed, records
from embedding_service.dropin.presets import NO_PRESET, PRESETS
from embedding_service.errors import ServiceError
from embedding_service.http import documentation, metrics, operations, page, problems
from embedding_service.http.auth import Auth
from embedding_service.http.body import Body
from embedding_service.http.dispatch import Dispatcher, Shortcut
from embedding_service.http.openapi import EXPOSED, document, route_options
from embedding_service.http.paths import Paths
from embedding_service.http.rate_limits import RateLimit
from embedding_service.http.request_log import RequestLog
from embedding_service.http.routes import RouteTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from starlette.responses import Response
    from starlette.types import ASGIApp
    from structlog.typing import FilteringBoundLogger

    from embedding_service.batches.batches import Batches
    from embedding_service.dialects.dialect import Dialect
    from embedding_service.dropin.preset import Preset
    from embedding_service.http.keys import KeyRing
    from embedding_service.http.routes import Resource
    from embedding_service.http.tracing import Tracer
    from embedding_service.service.lifecycle import Lifecycle
    from embedding_service.service.rates import Rates
    from embedding_service.settings.gateway import Settings

# A new dialect is a file and a line here. At a path that several have, the first one's errors are
# written until the body has shown which of them is meant.
DIALECTS: tuple[Dialect | Callable[[Settings], Dialect], ...] = (
    openai.DIALECT,
    bge.DIALECT,
    rerank.DIALECT,
    cohere.DIALECT,
    tei.DIALECT,
    vllm.DIALECT,
    embed.DIALECT,
    records.dialect,
    operations.DIALECT,
)


def create_app(  # noqa: PLR0913 - all parts of a gateway meet here
    settings: Settings,
    lifecycle: Lifecycle,
    *,
    keys: KeyRing,
    rates: Rates,
    tracer: Tracer | None,
    log: FilteringBoundLogger,
    batches: Batches | None = None,
    dialects: Sequence[Dialect | Callable[[Settings], Dialect]] = DIALECTS,
) -> ASGIApp:
    """Return the whole gateway as one ASGI application; `batches` answer their lines by it."""
    preset = PRESETS[settings.preset] if settings.preset else NO_PRESET
    app = _fastapi()
    table = create_table(
        settings, lifecycle, app, preset=preset, dialects=dialects, batches=batches
    )
    if preset.metrics is not None:
        preset.metrics(lifecycle)
    dispatcher = _dispatcher(app, table, lifecycle)
    if batches is not None:
        _answer_lines(batches, dispatcher, table, log)

    onion: ASGIApp = Body(
        Shortcut(app, dispatcher, table),
        max_bytes=settings.max_body_bytes,
        pause_s=settings.body_timeout_s,
        gate=lifecycle.service.bodies,
    )
    onion = RateLimit(onion, rates=rates)
    onion = Auth(onion, keys=keys, rules=preset.keys)
    onion = RequestLog(
        onion,
        lifecycle=lifecycle,
        table=table,
        timeout_s=settings.request_timeout_s,
        send_timeout_s=settings.send_timeout_s,
        log=log,
        tracer=tracer,
    )
    return _outermost(onion, table, settings)


def _fastapi() -> FastAPI:
    return FastAPI(
        title="embedding-service",
        version=__version__,
        description="OpenAI-compatible embeddings, backed by vLLM.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # behind a proxy that ends TLS, it would lead to plain HTTP
        exception_handlers={
            ServiceError: problems.service_error,
            HTTPException: problems.http_error,
            Exception: problems.unexpected_error,
        },
    )


def _outermost(app: ASGIApp, table: RouteTable, settings: Settings) -> ASGIApp:
    """Return the app behind what sees a request first: a proxy's prefix, and browsers' CORS."""
    app = Paths(
        app,
        table,
        root_path=settings.root_path,
        trusted=settings.trusted_proxies,
        front=page.PATH if settings.ui == "open" and not settings.preset else None,
    )
    if not settings.cors_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=EXPOSED,
    )


def _answer_lines(
    batches: Batches, dispatcher: Dispatcher, table: RouteTable, log: FilteringBoundLogger
) -> None:
    from embedding_service.http.lines import LineReader  # noqa: PLC0415 - as in `_stored`

    batches.reader = LineReader(dispatcher, table, log)


def _stored(batches: Batches, settings: Settings) -> Iterator[Dialect]:
    """Yield the operations on files and batches, which take 130 ms to import."""
    from embedding_service.http import batches as batch_routes  # noqa: PLC0415
    from embedding_service.http import files  # noqa: PLC0415

    yield files.dialect(batches.store, settings)
    yield batch_routes.dialect(batches)


def create_table(
    settings: Settings,
    lifecycle: Lifecycle,
    app: FastAPI,
    *,
    preset: Preset,
    dialects: Sequence[Dialect | Callable[[Settings], Dialect]],
    batches: Batches | None = None,
) -> RouteTable:
    """Return which operation answers where."""

    def mounted() -> Iterator[Dialect]:
        for entry in dialects:
            yield preset.adapt(entry(settings) if callable(entry) else entry)
        if batches is not None:
            yield from map(preset.adapt, _stored(batches, settings))
        yield metrics.dialect(lifecycle, batches)
        if settings.docs != "off":
            access = Access.OPEN if settings.docs == "open" else Access.KEY
            yield documentation.dialect(app.title, lambda: document(app, table), access)
        if settings.ui == "open":
            yield page.dialect(lambda: table.with_body, shows_docs=settings.docs == "open")

    table = RouteTable(
        mounted(),
        preset=preset.dialects(settings),
        errors=preset.errors,
        errors_at=preset.errors_at,
        default_errors=OPENAI,
    )
    return table


def _dispatcher(app: FastAPI, table: RouteTable, lifecycle: Lifecycle) -> Dispatcher:
    """Register every path, and return what answers there."""
    dispatcher = Dispatcher(lifecycle, table.errors)
    for resource in table:
        _add_routes(app, resource, dispatcher)
    return dispatcher


def _add_routes(app: FastAPI, resource: Resource, dispatcher: Dispatcher) -> None:
    """Register a path with FastAPI, which documents it, serves GET, and refuses other methods."""

    async def endpoint(request: Request) -> Response:
        return await dispatcher.answer(request.scope, resource)

    for method, mounted in resource.methods.items():
        options = route_options(mounted)
        if method == "HEAD":
            options["include_in_schema"] = False
        app.add_api_route(resource.path, endpoint, methods=[method], **options)

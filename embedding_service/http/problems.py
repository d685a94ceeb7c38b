"""Every error as an answer: the only place that turns a `ServiceError` into HTTP."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import orjson
from starlette.responses import Response

from embedding_service.dialects.errors import Failure
from embedding_service.errors import (
    BodyTooLarge,
    InvalidApiKey,
    MethodNotAllowed,
    ServiceError,
    Unavailable,
)
from embedding_service.http.exchange import exchange_of

if TYPE_CHECKING:
    from starlette.requests import Request

    from embedding_service.http.exchange import Exchange

_SHOWN_DETAIL_CHARACTERS = 200


def internal_error() -> ServiceError:
    """Return the error for a defect of ours, which is in the log."""
    return ServiceError(
        "an unexpected error happened in the server, whose log has the details; report it with "
        "the answer's x-request-id",
        code="internal_error",
    )


def respond(error: ServiceError, exchange: Exchange) -> Response:
    """Answer as the request's dialect writes errors, with the headers that OpenAI's SDKs obey."""
    status, body = exchange.errors.write(Failure.of(error, exchange.names))
    exchange.code = error.code
    return Response(orjson.dumps(body), status, _headers(error), media_type="application/json")


def _headers(error: ServiceError) -> dict[str, str]:
    headers = {"x-error-code": error.code}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if error.should_retry is not None:
        headers["x-should-retry"] = "true" if error.should_retry else "false"
    if isinstance(error, InvalidApiKey):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, Unavailable | BodyTooLarge):
        # The next try should be free to reach another instance; a body is not read to its end.
        headers["connection"] = "close"
    return headers


async def service_error(request: Request, error: Exception) -> Response:
    """Handle a `ServiceError` that a route raised."""
    assert isinstance(error, ServiceError)  # noqa: S101 - registered for it alone
    return respond(error, exchange_of(request.scope))


async def http_error(request: Request, error: Exception) -> Response:
    """Handle an error of Starlette's router: a path that has not this method."""
    exchange, status = exchange_of(request.scope), getattr(error, "status_code", 500)
    if status == MethodNotAllowed.status:
        headers = getattr(error, "headers", None) or {}
        return _method_not_allowed(request.method, exchange, headers.get("Allow", ""))
    detail = str(getattr(error, "detail", ""))[:_SHOWN_DETAIL_CHARACTERS]
    return respond(ServiceError(detail), exchange)


def _method_not_allowed(method: str, exchange: Exchange, allowed: str) -> Response:
    message = f"{method} is not allowed here; use {allowed or 'another method'}"
    response = respond(MethodNotAllowed(message), exchange)
    if allowed:
        response.headers["allow"] = allowed
    return response


async def unexpected_error(request: Request, _: Exception) -> Response:
    """Handle a defect of ours; Starlette raises it again, so that the log has it."""
    return respond(internal_error(), exchange_of(request.scope))

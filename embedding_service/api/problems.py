"""Every error as an answer: the only place that turns a `ServiceError` into HTTP."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel
from starlette.responses import Response

from embedding_service.errors import (
    BodyTooLarge,
    InvalidApiKey,
    MethodNotAllowed,
    RouteNotFound,
    ServiceError,
    Unavailable,
)

if TYPE_CHECKING:
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

INTERNAL = "an unexpected error happened in the server; its log has the details under this request's id"


class ErrorBody(BaseModel):
    """Why a request was not served."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """OpenAI's error envelope."""

    error: ErrorBody


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        400: "The request is wrong; `param` names the field.",
        401: "No key, or an unknown one.",
        403: "The key may not use this model.",
        404: "No such model.",
        413: "The body is too large.",
        429: "A rate is used up, or too much is waiting; `Retry-After` says when to come back.",
        500: "The engine could not compute this.",
        503: "The model is loading, restarting, or the server is shutting down.",
        504: "Not done before the deadline.",
    }.items()
}


class Problem(Response):
    """An error as an answer; leaves its code for the metrics."""

    code = "other"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        if (exchange := scope.get("state", {}).get("exchange")) is not None:
            exchange.code = self.code
        await super().__call__(scope, receive, send)


def respond(error: ServiceError) -> Response:
    """Answer in OpenAI's envelope, with the headers that its SDKs obey."""
    body = {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if error.should_retry is not None:
        headers["x-should-retry"] = "true" if error.should_retry else "false"
    if isinstance(error, InvalidApiKey):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, Unavailable | BodyTooLarge):
        # Whoever comes back should be free to reach another instance; a body is not read to its end.
        headers["connection"] = "close"
    problem = Problem(orjson.dumps(body), error.status, headers, media_type="application/json")
    problem.code = error.code or error.type
    return problem


async def service_error(_: Request, error: Exception) -> Response:
    """Handle a `ServiceError` that a route raised."""
    assert isinstance(error, ServiceError)  # noqa: S101 - registered for it alone
    return respond(error)


async def http_error(request: Request, error: Exception) -> Response:
    """Handle what Starlette's router raises: no such path, or not with this method."""
    status = getattr(error, "status_code", 500)
    if status == MethodNotAllowed.status:
        allowed = (getattr(error, "headers", None) or {}).get("Allow", "")
        response = respond(MethodNotAllowed(f"{request.method} is not allowed here; use {allowed or 'another method'}"))
        if allowed:
            response.headers["allow"] = allowed
        return response
    if status == RouteNotFound.status:
        return respond(RouteNotFound(f"there is nothing at {request.method} {request.url.path[:100]}"))
    exception: HTTPException = error  # type: ignore[assignment]
    return respond(ServiceError(str(exception.detail)[:200]))


async def unexpected_error(_: Request, __: Exception) -> Response:
    """Handle a defect of ours; Starlette raises it again, so that the log has it."""
    return respond(ServiceError(INTERNAL, code="internal_error"))

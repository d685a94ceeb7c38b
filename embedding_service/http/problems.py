"""Every error as an answer: the only place that turns a `ServiceError` into HTTP.

Each dialect has its `Envelope`; `use` chooses the one of a request, which is OpenAI's otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import orjson
from pydantic import BaseModel
from starlette.responses import Response

from embedding_service.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    EngineFailed,
    InvalidApiKey,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    RateLimited,
    RouteNotFound,
    ServiceError,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

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


class DetailResponse(BaseModel):
    """The error envelope of a FastAPI application."""

    detail: str


class TeiErrorResponse(BaseModel):
    """The error envelope of Hugging Face's text-embeddings-inference."""

    error: str
    error_type: Literal["Empty", "Validation", "Tokenizer", "Backend", "Overloaded", "Unhealthy"]


class MessageResponse(BaseModel):
    """Cohere's error envelope."""

    message: str


@dataclass(frozen=True, slots=True)
class Envelope:
    """How a dialect writes errors: `write` gives status and body, `model` describes the body."""

    model: type[BaseModel]
    write: Callable[[ServiceError], tuple[int, dict[str, Any]]]

    @property
    def responses(self) -> dict[int | str, dict[str, Any]]:
        """Document the errors of a route that computes something."""
        statuses = {self.write(error)[0]: description for error, description in _DOCUMENTED.items()}
        return {status: {"model": self.model, "description": text} for status, text in statuses.items()}


EMPTY = "empty_input"
_DOCUMENTED: dict[ServiceError, str] = {
    InvalidRequest("", code=EMPTY): "There is nothing to compute.",
    InvalidRequest(""): "The request is wrong; the message names the field.",
    InvalidApiKey(""): "No key, or an unknown one.",
    PermissionDenied(""): "The key may not use this model.",
    ModelNotFound(""): "No such model.",
    BodyTooLarge(""): "The body is too large.",
    Overloaded(""): "A rate is used up, or too much is waiting; `Retry-After` says when to come back.",
    EngineFailed(""): "The engine could not compute this.",
    Unavailable(""): "The model is loading, restarting, or the server is shutting down.",
    DeadlineExceeded(""): "Not done before the deadline.",
}


def _openai(error: ServiceError) -> tuple[int, dict[str, Any]]:
    body = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return error.status, {"error": body}


def _tei(error: ServiceError) -> tuple[int, dict[str, Any]]:
    """Return what TEI's router answers (router/src/http/server.rs, `impl From<&ErrorType> for StatusCode`)."""
    status, kind = error.status, "Validation"
    if isinstance(error, InvalidRequest):
        status, kind = (400, "Empty") if error.code == EMPTY else (422, "Validation")
    elif isinstance(error, Overloaded | RateLimited):
        kind = "Overloaded"
    elif isinstance(error, Unavailable):
        kind = "Unhealthy"
    elif status >= ServiceError.status:
        status, kind = 424, "Backend"
    return status, {"error": error.message, "error_type": kind}


def _emb_infer(error: ServiceError) -> tuple[int, dict[str, Any]]:
    """Return emb-infer's answer, which knows a full queue as 503."""
    return 503 if isinstance(error, Overloaded) else error.status, {"detail": error.message}


def _matching(error: ServiceError) -> tuple[int, dict[str, Any]]:
    """Return matching-service's answer; a used-up quota had slowapi's shape there."""
    if isinstance(error, RateLimited):
        return error.status, {"error": f"Rate limit exceeded: {error.message}"}
    return error.status, {"detail": error.message}


OPENAI = Envelope(ErrorResponse, _openai)
DETAIL = Envelope(DetailResponse, lambda error: (error.status, {"detail": error.message}))
TEI = Envelope(TeiErrorResponse, _tei)
COHERE = Envelope(MessageResponse, lambda error: (error.status, {"message": error.message}))
EMB_INFER = Envelope(DetailResponse, _emb_infer)
MATCHING = Envelope(DetailResponse, _matching)
ERRORS = OPENAI.responses


def use(scope: Scope, envelope: Envelope) -> None:
    """Write the errors of this request in `envelope`."""
    scope.setdefault("state", {})["envelope"] = envelope


class Problem(Response):
    """An error as an answer; leaves its code for the metrics."""

    code = "other"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        if (exchange := scope.get("state", {}).get("exchange")) is not None:
            exchange.code = self.code
        await super().__call__(scope, receive, send)


def respond(error: ServiceError, scope: Scope) -> Response:
    """Answer in the request's envelope, with the headers that OpenAI's SDKs obey."""
    envelope: Envelope = scope.get("state", {}).get("envelope", OPENAI)
    status, body = envelope.write(error)
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
    problem = Problem(orjson.dumps(body), status, headers, media_type="application/json")
    problem.code = error.code or error.type
    return problem


async def service_error(request: Request, error: Exception) -> Response:
    """Handle a `ServiceError` that a route raised."""
    assert isinstance(error, ServiceError)  # noqa: S101 - registered for it alone
    return respond(error, request.scope)


async def http_error(request: Request, error: Exception) -> Response:
    """Handle what Starlette's router raises: no such path, or not with this method."""
    status = getattr(error, "status_code", 500)
    if status == MethodNotAllowed.status:
        allowed = (getattr(error, "headers", None) or {}).get("Allow", "")
        message = f"{request.method} is not allowed here; use {allowed or 'another method'}"
        response = respond(MethodNotAllowed(message), request.scope)
        if allowed:
            response.headers["allow"] = allowed
        return response
    if status == RouteNotFound.status:
        missing = RouteNotFound(f"there is nothing at {request.method} {request.url.path[:100]}")
        return respond(missing, request.scope)
    exception: HTTPException = error  # type: ignore[assignment]
    return respond(ServiceError(str(exception.detail)[:200]), request.scope)


async def unexpected_error(request: Request, _: Exception) -> Response:
    """Handle a defect of ours; Starlette raises it again, so that the log has it."""
    return respond(ServiceError(INTERNAL, code="internal_error"), request.scope)

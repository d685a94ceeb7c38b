"""How dialects write errors: the shape of the body, and the status that goes with it.

Shapes that several dialects have are here; one that a single dialect has is in that dialect's file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from embedding_service.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    EngineFailed,
    InvalidApiKey,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    ServiceError,
    Unavailable,
    VectorSpaceMismatch,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from embedding_service.types import Field

EMPTY = "empty_input"
_DOCUMENTED: dict[ServiceError, str] = {
    InvalidRequest("", code=EMPTY): "There is nothing to compute.",
    InvalidRequest(""): "The request is wrong; the message names the field.",
    InvalidApiKey(""): "No key, or an unknown one.",
    PermissionDenied(""): "The key may not use this model.",
    ModelNotFound(""): "No such model.",
    VectorSpaceMismatch(""): "The model's vectors live in another space than is required.",
    BodyTooLarge(""): "The body is too large.",
    Overloaded(
        ""
    ): "A rate is used up, or too much is waiting; `Retry-After` says when to come back.",
    EngineFailed(""): "The engine could not compute this.",
    Unavailable(""): "The model is loading, restarting, or the server is shutting down.",
    DeadlineExceeded(""): "Not done before the deadline.",
}
Written = tuple[int, dict[str, Any]]
Responses = dict[int | str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Failure:
    """An error in a dialect's words for the fields."""

    error: ServiceError
    message: str
    param: str | None

    @classmethod
    def of(cls, error: ServiceError, names: Mapping[Field, str]) -> Failure:
        """Fill in the names of the fields that an error is about."""
        return cls(error, *error.worded(names))

    @property
    def status(self) -> int:
        """The status, where the dialect has no other."""
        return self.error.status


@dataclass(frozen=True, slots=True)
class ErrorShape:
    """`write` gives status and body of an error, `model` describes the body."""

    model: type[BaseModel]
    write: Callable[[Failure], Written]

    def responses(self) -> Responses:
        """Document the errors of an operation that computes something."""
        return {
            self.write(Failure.of(error, {}))[0]: {"model": self.model, "description": text}
            for error, text in _DOCUMENTED.items()
        }


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


class MessageResponse(BaseModel):
    """Cohere's error envelope."""

    message: str


def _openai(failure: Failure) -> Written:
    error = failure.error
    body = {
        "message": failure.message,
        "type": error.type,
        "param": failure.param,
        "code": error.code,
    }
    return failure.status, {"error": body}


OPENAI = ErrorShape(ErrorResponse, _openai)
DETAIL = ErrorShape(DetailResponse, lambda failure: (failure.status, {"detail": failure.message}))
MESSAGE = ErrorShape(
    MessageResponse, lambda failure: (failure.status, {"message": failure.message})
)

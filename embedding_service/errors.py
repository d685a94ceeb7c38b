"""Every error that leaves the service, as one tree. A dialect may answer with another status.

ServiceError                        status  code
├── InvalidRequest                  400     (by cause)
│   └── ContextLengthExceeded       400     context_length_exceeded
├── InvalidApiKey                   401     invalid_api_key
├── PermissionDenied                403     permission_denied
├── ModelNotFound                   404     model_not_found
├── RouteNotFound                   404     not_found
├── MethodNotAllowed                405     method_not_allowed
├── VectorSpaceMismatch             409     vector_space_mismatch
├── BodyTooLarge                    413     request_too_large
├── RateLimited                     429     rate_limit_exceeded   a quota: the client's own doing
├── Overloaded                      429     engine_overloaded     capacity: nobody's doing
├── EngineFailed                    500     engine_failed         this input, or a defect of ours
├── Unavailable                     503     unavailable           start-up, restart, drain
└── DeadlineExceeded                504     deadline_exceeded

StartupError                        ends the process: `exit_code`
├── BadConfiguration                2
├── PortInUse                       3
├── ModelNotLoaded                  4
└── NoModelLeft                     5                             while serving
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from embedding_service.types import Field

if TYPE_CHECKING:
    from collections.abc import Mapping


_DEFAULT_NAMES = {
    Field.INPUT: "input",
    Field.DOCUMENTS: "documents",
    Field.DIMENSIONS: "dimensions",
    Field.TRUNCATE: "truncate to left, right or chunk_mean",
}
_PLACEHOLDER = re.compile("|".join(map(re.escape, Field)))


class ServiceError(Exception):
    """An error with an answer for the client.

    The message is written for a person and never quotes more than a little of the input; `param`
    names the request field at fault. Both may hold placeholders of `Field`. `should_retry` is sent
    as `x-should-retry` when it is not None.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "api_error"
    code: str | None = None
    should_retry: bool | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self._message = message
        self._param = param
        self.code = code or self.code
        self.retry_after_s = retry_after_s

    @property
    def message(self) -> str:
        """The message in OpenAI's words."""
        return self.worded({})[0]

    @property
    def param(self) -> str | None:
        """The field at fault in OpenAI's words."""
        return self.worded({})[1]

    def worded(self, names: Mapping[Field, str]) -> tuple[str, str | None]:
        """Return message and `param` with the names that a dialect has for the fields."""
        known = {**_DEFAULT_NAMES, **names}

        def fill(text: str) -> str:
            return _PLACEHOLDER.sub(lambda found: known[Field(found[0])], text)

        return fill(self._message), None if self._param is None else fill(self._param)


class InvalidRequest(ServiceError):
    """The request cannot be understood or served as it is."""

    status = 400
    type = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    """One input has more tokens than the model can read."""

    code = "context_length_exceeded"


class InvalidApiKey(ServiceError):
    """No key, or a key that is not known."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class PermissionDenied(ServiceError):
    """The key is known and may not do this."""

    status = 403
    type = "permission_error"
    code = "permission_denied"


class ModelNotFound(ServiceError):
    """No model by that name is served here."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class RouteNotFound(ServiceError):
    """No such path."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class MethodNotAllowed(ServiceError):
    """The path exists for another method."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class VectorSpaceMismatch(ServiceError):
    """The model's vectors live in another space than the one that is required."""

    status = 409
    type = "invalid_request_error"
    code = "vector_space_mismatch"
    should_retry = False


class BodyTooLarge(ServiceError):
    """The request body is larger than this server reads."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class RateLimited(ServiceError):
    """A quota of this client is used up."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class Overloaded(ServiceError):
    """More work is waiting than may wait."""

    status = 429
    type = "overloaded_error"
    code = "engine_overloaded"


class EngineFailed(ServiceError):
    """The engine could not compute this; trying again does not help."""

    code = "engine_failed"
    should_retry = False


class Unavailable(ServiceError):
    """No replica of the model is ready, or the server is shutting down."""

    status = 503
    type = "service_unavailable_error"
    code = "unavailable"


class DeadlineExceeded(ServiceError):
    """The work could not be done in the time that was given."""

    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"
    should_retry = False


class StartupError(Exception):
    """Start-up ends here, with one line for the person who started it."""

    exit_code: ClassVar[int] = 1


class BadConfiguration(StartupError):
    """A setting is unknown, wrong, or at odds with another."""

    exit_code = 2


class PortInUse(StartupError):
    """The address to listen on is taken or not ours."""

    exit_code = 3


class ModelNotLoaded(StartupError):
    """A model could not be loaded or gave no vector.

    `lacking`: the machine has no memory, process, descriptor or room for a worker, which says
    nothing about the model.
    """

    exit_code = 4

    def __init__(self, message: str, *, lacking: bool = False) -> None:
        super().__init__(message)
        self.lacking = lacking


class NoModelLeft(StartupError):
    """Every model has died too often; who started the service should hear of it."""

    exit_code = 5

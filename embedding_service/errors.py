"""Every error that leaves the service, as one tree. A dialect may answer with another status.

ServiceError                        status  code
├── InvalidRequest                  400     invalid_value         or one of BY_CAUSE
│   └── ContextLengthExceeded       400     context_length_exceeded
├── InvalidApiKey                   401     invalid_api_key
├── PermissionDenied                403     permission_denied
├── ModelNotFound                   404     model_not_found
├── ObjectNotFound                  404     not_found             a file or a batch, or another's
├── RouteNotFound                   404     not_found
├── MethodNotAllowed                405     method_not_allowed
├── VectorSpaceMismatch             409     vector_space_mismatch
├── BodyTooLarge                    413     request_too_large
├── RateLimited                     429     rate_limit_exceeded   a quota: the client's own doing
├── Overloaded                      429     engine_overloaded     capacity: nobody's doing
├── EngineFailed                    500     engine_failed         this input, or a defect of ours
├── Unavailable                     503     unavailable           start-up, restart, drain
├── DeadlineExceeded                504     deadline_exceeded
└── StorageFull                     507     storage_full

StartupError                        ends the process: `exit_code`
├── BadConfiguration                2
├── PortInUse                       3
├── ModelNotLoaded                  4
├── NoModelLeft                     5                             while serving
├── NoVectors                       6                             in `verify` and `canary pin`
├── BadInput                        10                            of a bulk job, from here on
├── JobStopped                      11                            the same command goes on
└── RowsFailed                      12                            and all others are done
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from embedding_service.types import Field

if TYPE_CHECKING:
    from collections.abc import Mapping


class Cause(NamedTuple):
    """One of several reasons for the same error, and what helps."""

    cause: str
    remedy: str


# Codes of `InvalidRequest` that say more than its own; docs/errors.md is written from them.
BY_CAUSE = {
    "invalid_body": Cause(
        "The body is no JSON object, is not sent as JSON, or is compressed in a way that cannot be "
        "read.",
        "Send strict JSON with `content-type: application/json`; compress it with gzip or not at "
        "all.",
    ),
    "missing_required_parameter": Cause(
        "A field that the operation needs is not there.", "Add the field that `param` names."
    ),
    "empty_input": Cause(
        "There is nothing to compute, in TEI's dialect; the others say `invalid_value`.",
        "Send at least one text.",
    ),
    "too_many_inputs": Cause(
        "A list has more items than `max_inputs`.", "Send them in several requests."
    ),
    "text_too_long": Cause(
        "A text has more characters than `max_text_characters`.", "Shorten it, or send it in parts."
    ),
    "max_tokens_per_request": Cause(
        "All inputs together have more tokens than `max_request_tokens`, or one has no place where "
        "it could be read in parts.",
        "Send fewer or shorter inputs in each request.",
    ),
    "too_many_values": Cause(
        "The body has more JSON values than `max_body_values`.", "Send fewer at a time."
    ),
    "request_never_fits": Cause(
        "The request needs more than the server ever holds at once.",
        "Send fewer inputs; the operator can raise `max_queued_tokens` or "
        "`max_inflight_response_bytes`.",
    ),
    "response_too_large": Cause(
        "The answer would have more bytes than `max_response_bytes`.",
        "Ask for base64, for a smaller number format, or for fewer texts.",
    ),
    "not_supported_by_model": Cause(
        "This model does not do what is asked: it has no such vectors, takes no instruction, or "
        "scores where it should embed.",
        "Leave the field out, or name another model; `/v1/models` lists what each one gives.",
    ),
    "dimensions_not_supported": Cause(
        "The model's vectors cannot be cut to this size.",
        "Ask for one of the sizes in the message, or for none.",
    ),
    "body_timeout": Cause(
        "The body stopped arriving for longer than `body_timeout_s`.",
        "Send it without a pause, or in smaller requests.",
    ),
}
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
    as `x-should-retry` when it is not None. `remedy` tells a client what to do.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "api_error"
    remedy: ClassVar[str] = "Report it with the answer's `x-request-id`; the log has the details."
    code: str = "internal_error"
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

    remedy = "Change the field that `param` and the message name."
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    """One input has more tokens than the model can read."""

    remedy = "Shorten the input, or set `truncate` (left, right, chunk_mean)."
    code = "context_length_exceeded"


class InvalidApiKey(ServiceError):
    """No key, or a key that is not known."""

    remedy = "Send a known key as `Authorization: Bearer KEY` or `X-API-Key: KEY`."
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class PermissionDenied(ServiceError):
    """The key is known and may not do this."""

    remedy = "Use another key, or a model that `/v1/models` lists for this one."
    status = 403
    type = "permission_error"
    code = "permission_denied"


class ModelNotFound(ServiceError):
    """No model by that name is served here."""

    remedy = "Send one of the names that `/v1/models` lists."
    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class ObjectNotFound(ServiceError):
    """No file or batch with this id, or it belongs to somebody else."""

    remedy = "See the lists at `/v1/files` and `/v1/batches`."
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class RouteNotFound(ServiceError):
    """No such path."""

    remedy = "See `/docs` for the paths; a client's base URL usually ends in `/v1`."
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class MethodNotAllowed(ServiceError):
    """The path exists for another method."""

    remedy = "Use the method that the answer's `Allow` names."
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class VectorSpaceMismatch(ServiceError):
    """The model's vectors live in another space than the one that is required."""

    remedy = (
        "Ask for the model that filled the index, or fill a new one; `/v1/models` lists the space "
        "of each."
    )
    status = 409
    type = "invalid_request_error"
    code = "vector_space_mismatch"
    should_retry = False


class BodyTooLarge(ServiceError):
    """The request body is larger than this server reads."""

    remedy = "Send fewer inputs at a time; the operator can raise `max_body_bytes`."
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class RateLimited(ServiceError):
    """A quota of this client is used up."""

    remedy = "Try again after `Retry-After`; `x-ratelimit-*` say how much is left."
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class Overloaded(ServiceError):
    """More work is waiting than may wait."""

    remedy = "Try again after `Retry-After`, or at another instance."
    status = 429
    type = "overloaded_error"
    code = "engine_overloaded"


class EngineFailed(ServiceError):
    """The engine could not compute this; trying again does not help."""

    remedy = "Leave this input out and report it: trying again gives the same."
    code = "engine_failed"
    should_retry = False


class Unavailable(ServiceError):
    """No replica of the model is ready, or the server is shutting down."""

    remedy = "Try again after `Retry-After`, or at another instance; `/readyz` says when."
    status = 503
    type = "service_unavailable_error"
    code = "unavailable"


class DeadlineExceeded(ServiceError):
    """The work could not be done in the time that was given."""

    remedy = "Send fewer inputs, or give more time (`request_timeout_s`)."
    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"
    should_retry = False


class StorageFull(ServiceError):
    """The disk has no room for what the client sends."""

    remedy = "Delete files that are not needed; the operator can give `state_dir` more room."
    status = 507
    type = "storage_error"
    code = "storage_full"
    should_retry = False


class StartupError(Exception):
    """Start-up ends here, with one line for the person who started it."""

    exit_code: ClassVar[int] = 1
    remedy: ClassVar[str] = ""


class BadConfiguration(StartupError):
    """A setting is unknown, wrong, or at odds with another."""

    remedy = "Mend the setting that the line names; `embedding-service settings NAME` explains it."
    exit_code = 2


class PortInUse(StartupError):
    """The address to listen on is taken or not ours."""

    remedy = "Set another `port`, `host` or `uds`, or end what listens there."
    exit_code = 3


class ModelNotLoaded(StartupError):
    """A model could not be loaded or gave no vector.

    `lacking`: the machine has no memory, process, descriptor or room for a worker, which says
    nothing about the model.
    """

    remedy = "Mend the file, setting or device that the line names; docs/models.md has models."
    exit_code = 4

    def __init__(self, message: str, *, lacking: bool = False) -> None:
        super().__init__(message)
        self.lacking = lacking


class NoModelLeft(StartupError):
    """Every model has died too often, or files of one have changed while it was served."""

    remedy = "Look for `engine_died` in the log, mend what it says, and start again."
    exit_code = 5


class NoVectors(StartupError):
    """A server or a library that is compared with another gave no vectors."""

    remedy = "Try the other server with a single request, or use another `--against`."
    exit_code = 6


class BadInput(StartupError):
    """The input of a bulk job cannot be read, or is not of the kind that it is taken for."""

    remedy = (
        "Mend the file and begin a new folder, or pass over such lines with `--bad-lines skip`."
    )
    exit_code = 10


class JobStopped(StartupError):
    """A bulk job cannot go on: no space, no engine, no server. All that is done is kept."""

    remedy = "Mend what the message names; the same command goes on."
    exit_code = 11


class RowsFailed(StartupError):
    """A bulk job is done, and some of its rows have no vectors."""

    remedy = "See `_errors.jsonl` in the output folder for the rows and their reasons."
    exit_code = 12

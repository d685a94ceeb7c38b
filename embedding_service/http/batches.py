"""OpenAI's batches: `/v1/batches`, where `state_dir` is set."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from embedding_service.batches import ledger
from embedding_service.batches.ledger import Batch
from embedding_service.batches.lines import ENDPOINTS
from embedding_service.batches.store import new_id
from embedding_service.dialects.dialect import Answer, Dialect, Operation, Request, get
from embedding_service.dialects.errors import OPENAI
from embedding_service.dialects.fields import BareFields, Fields
from embedding_service.errors import InvalidRequest
from embedding_service.http.files import (
    PAGE,
    Page,
    checked_ttl_s,
    operation_on,
    page_answer,
    page_size,
)

if TYPE_CHECKING:
    from embedding_service.batches.batches import Batches
    from embedding_service.types import Json

_WINDOW, _WINDOW_S = "24h", 86_400
_MOST_METADATA = 16
_MOST_BATCHES_A_PAGE, _BATCHES_A_PAGE = 100, 20
_MetadataKey = Annotated[str, StringConstraints(max_length=64)]
_MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class ExpiresAfter(BareFields):
    """How long results are kept."""

    anchor: str
    seconds: int


class BatchRequest(Fields):
    """A batch to make."""

    input_file_id: str = Field(description="A file uploaded with the purpose `batch`.")
    endpoint: str = Field(description=f"One of {', '.join(ENDPOINTS)}.")
    completion_window: str = Field(description="24h.")
    metadata: dict[_MetadataKey, _MetadataValue] | None = Field(None, max_length=_MOST_METADATA)
    output_expires_after: ExpiresAfter | None = None


class BatchFault(BaseModel):
    """A reason why a batch failed."""

    code: str
    message: str
    param: str | None
    line: int | None


class BatchFaults(BaseModel):
    """The reasons why a batch failed."""

    object: Literal["list"] = "list"
    data: list[BatchFault]


class RequestCounts(BaseModel):
    """Lines by how they ended."""

    total: int
    completed: int
    failed: int


class BatchUsage(BaseModel):
    """Tokens of the lines that were answered."""

    input_tokens: int
    input_tokens_details: dict[str, int] = {"cached_tokens": 0}
    output_tokens: int = 0
    output_tokens_details: dict[str, int] = {"reasoning_tokens": 0}
    total_tokens: int


class BatchObject(BaseModel):
    """A batch, as OpenAI describes it."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchFaults | None
    input_file_id: str
    completion_window: str
    status: Literal[ledger.STATUSES]  # type: ignore[valid-type]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None


_SAME = BatchObject.model_fields.keys() & Batch.__dataclass_fields__.keys() - {"errors"}


class BatchList(Page):
    """A page of batches."""

    data: list[BatchObject]


class BatchRoutes:
    """The operations on batches of one store."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._store = batches.store

    async def create(self, request: Request[BatchRequest]) -> Answer:
        """Have the lines of a file computed, when nothing else is waiting."""
        fields, now = request.fields, int(time.time())
        _check(fields)
        batch = Batch(
            id=new_id("batch_"),
            owner=request.call.tenant.name,
            endpoint=fields.endpoint,
            input_file_id=fields.input_file_id,
            completion_window=fields.completion_window,
            created_at=now,
            expires_at=now + _WINDOW_S,
            metadata=fields.metadata,
            output_ttl_s=_output_ttl_s(fields.output_expires_after),
            required_spaces=[sorted(ids) for ids in request.call.required] or None,
        )
        most = request.settings.max_batches
        made = await self._store.run(ledger.create, batch, most=most)
        self._batches.wake()
        request.log["batch"] = made.id
        return Answer.json(shown(made))

    async def list(self, request: Request[None]) -> Answer:
        """List the key's batches, the newest first."""
        found, has_more = await self._store.read(
            ledger.page,
            request.call.tenant.name,
            after=request.query.get("after"),
            limit=page_size(request.query, _MOST_BATCHES_A_PAGE, default=_BATCHES_A_PAGE),
        )
        return await page_answer(request, found, _described, has_more=has_more)

    async def retrieve(self, request: Request[None]) -> Answer:
        """Describe a batch."""
        return Answer.json(shown(await self._store.read(ledger.find, *_asked(request))))

    async def cancel(self, request: Request[None]) -> Answer:
        """Have a batch end early; the results that it has are kept."""
        batch = await self._store.run(ledger.cancel, *_asked(request))
        self._batches.wake()
        return Answer.json(shown(batch))


def _asked(request: Request[None]) -> tuple[str, str]:
    """Return the owner and the id of the batch that is asked about."""
    return request.call.tenant.name, request.path["batch_id"]


def _check(fields: BatchRequest) -> None:
    """Raise `InvalidRequest` for what is not offered."""
    if fields.endpoint not in ENDPOINTS:
        names = " or ".join(ENDPOINTS)
        raise InvalidRequest(f"endpoint must be {names}", param="endpoint")
    if fields.completion_window != _WINDOW:
        raise InvalidRequest(f"completion_window must be {_WINDOW}", param="completion_window")


def _output_ttl_s(expires: ExpiresAfter | None) -> int | None:
    if expires is None:
        return None
    return checked_ttl_s(expires.anchor, expires.seconds, "output_expires_after")


def shown(batch: Batch) -> BatchObject:
    """Return a batch in OpenAI's shape."""
    same = {name: getattr(batch, name) for name in _SAME}
    faults = None if batch.errors is None else BatchFaults.model_validate({"data": batch.errors})
    counts = RequestCounts(total=batch.total, completed=batch.completed, failed=batch.failed)
    usage = BatchUsage(input_tokens=batch.tokens, total_tokens=batch.tokens)
    return BatchObject(errors=faults, request_counts=counts, usage=usage, **same)


def _described(batch: Batch) -> Json:
    return shown(batch).model_dump()


def dialect(batches: Batches) -> Dialect:
    """Return the operations on batches."""
    routes, path = BatchRoutes(batches), "/v1/batches/{batch_id}"
    on_batch = partial(operation_on, "batch", response=BatchObject)
    example = {
        "input_file_id": "file-abc123",
        "endpoint": ENDPOINTS[0],
        "completion_window": _WINDOW,
    }
    return Dialect(
        "Batches",
        OPENAI,
        (
            Operation(
                path="/v1/batches",
                handle=routes.create,
                summary="Make a batch",
                request=BatchRequest,
                example=example,
                response=BatchObject,
            ),
            get("/v1/batches", routes.list, "List batches", response=BatchList, parameters=PAGE),
            on_batch(path, routes.retrieve, "Describe a batch", method="GET"),
            on_batch(f"{path}/cancel", routes.cancel, "Cancel a batch"),
        ),
    )

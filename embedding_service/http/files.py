"""OpenAI's files: `/v1/files`, where `state_dir` is set."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel

from embedding_service.batches import files
from embedding_service.batches.files import Quota, StoredFile
from embedding_service.batches.store import new_id
from embedding_service.batches.uploads import Upload
from embedding_service.dialects.dialect import Answer, Dialect, Operation, Request, get
from embedding_service.dialects.errors import OPENAI
from embedding_service.errors import InvalidRequest, ObjectNotFound, Overloaded
from embedding_service.http.multipart import OVERHEAD_BYTES, Form

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import BinaryIO

    from embedding_service.batches.store import Store
    from embedding_service.dialects.errors import Responses
    from embedding_service.settings.gateway import Settings
    from embedding_service.types import Json

_T = TypeVar("_T")
SHORTEST_TTL_S, LONGEST_TTL_S = 3600, 2_592_000  # OpenAI's: an hour, thirty days
_MOST_FILES_A_PAGE = 10_000
_MOST_UPLOADS, _UPLOAD_RETRY_S = 8, 5.0  # of one key at a time


class FileObject(BaseModel, from_attributes=True):
    """A file, as OpenAI describes it."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: str | None = None


class Page(BaseModel):
    """Some of several objects, of type `data`."""

    object: Literal["list"] = "list"
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileList(Page):
    """A page of files."""

    data: list[FileObject]


class FileDeleted(BaseModel):
    """A file that is no more."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool


class FileRoutes:
    """The operations on files of one store."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._quota = Quota(settings.max_files, settings.max_stored_bytes)
        self._uploads: Counter[str] = Counter()

    async def create(self, request: Request[None]) -> Answer:
        """Take a file in for a batch: a form with `file`, `purpose` and perhaps `expires_after`."""
        form = Form(request.content_type)
        file_id, max_bytes = new_id("file-"), self._settings.max_file_bytes
        assert request.parts is not None  # noqa: S101 - the body is streamed
        owner = request.call.tenant.name
        await self._store.read(self._quota.check, owner, 1)  # no file is empty
        with self._uploading(owner):
            async with Upload(self._store, file_id, max_bytes=max_bytes) as upload:
                async for part in request.parts:
                    await upload.write(form.feed(part))
                _check_form(form, upload.size)
                ttl_s = _ttl_s(form.fields, self._settings.file_ttl_s)
                name, expires_at = form.filename or "file", int(time.time() + ttl_s)
                file = StoredFile(file_id, owner, "batch", name, 0, 0, expires_at)
                kept = await upload.keep(file, self._quota)
        request.log |= {"file": kept.id, "bytes": kept.bytes}
        return Answer.json(shown(kept))

    @contextmanager
    def _uploading(self, owner: str) -> Iterator[None]:
        """Count an upload, whose bytes are in no quota yet. Raises `Overloaded` for too many."""
        if self._uploads[owner] >= _MOST_UPLOADS:
            raise Overloaded(
                f"{_MOST_UPLOADS} uploads of this key are under way; try again shortly",
                retry_after_s=_UPLOAD_RETRY_S,
            )
        self._uploads[owner] += 1
        try:
            yield
        finally:
            self._uploads[owner] -= 1
            if not self._uploads[owner]:
                del self._uploads[owner]

    async def list(self, request: Request[None]) -> Answer:
        """List the key's files, the newest first."""
        found, has_more = await self._store.read(
            files.page,
            request.call.tenant.name,
            after=request.query.get("after"),
            limit=page_size(request.query, _MOST_FILES_A_PAGE, default=_MOST_FILES_A_PAGE),
            ascending=_is_ascending(request.query),
            purpose=request.query.get("purpose"),
        )
        return await page_answer(request, found, shown, has_more=has_more)

    async def retrieve(self, request: Request[None]) -> Answer:
        """Describe a file."""
        return Answer.json(shown(await self._find(request)))

    async def content(self, request: Request[None]) -> Answer:
        """Return the content of a file."""
        file = await self._find(request)
        try:
            opened: BinaryIO = await asyncio.to_thread(self._store.path(file.id).open, "rb")
        except FileNotFoundError:  # deleted a moment ago
            raise ObjectNotFound(
                "there is no file with this id; see /v1/files", param="file_id"
            ) from None
        length = {"content-length": str(file.bytes)}
        return Answer(headers=length, media_type="application/octet-stream", file=opened)

    async def delete(self, request: Request[None]) -> Answer:
        """Delete a file, unless a batch is reading it."""
        file_id = request.path["file_id"]
        await self._store.run(files.delete, request.call.tenant.name, file_id)
        await asyncio.to_thread(files.remove, self._store, [file_id])
        return Answer.json(FileDeleted(id=file_id, deleted=True))

    async def _find(self, request: Request[None]) -> StoredFile:
        owner = request.call.tenant.name
        return await self._store.read(files.find, owner, request.path["file_id"])


def _check_form(form: Form, size: int) -> None:
    """Raise `InvalidRequest` if the form is not a file for a batch."""
    if not form.complete:
        raise InvalidRequest("the form ends too early; send all of it")
    if form.filename is None:
        raise InvalidRequest("file: this field is required; send a file in it", param="file")
    if form.fields.get("purpose") != "batch":
        raise InvalidRequest("purpose must be batch: files are for batches here", param="purpose")
    if not size:
        raise InvalidRequest("file: it is empty; write a request into each line", param="file")


def _ttl_s(fields: Mapping[str, str], longest_s: float) -> float:
    """Return how long a file is kept: as asked for, and no longer than the server's `file_ttl_s`.

    The SDKs write an object within a form as `expires_after[seconds]`.
    """
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return longest_s
    return min(longest_s, checked_ttl_s(anchor, seconds, "expires_after"))


def checked_ttl_s(anchor: object, seconds: object, name: str) -> int:
    """Return the seconds of OpenAI's `expires_after`. Raises `InvalidRequest` that names it."""
    if anchor != "created_at":
        raise InvalidRequest(f"{name}.anchor must be created_at", param=f"{name}.anchor")
    digits = str(seconds)
    if re.fullmatch(r"[0-9]{1,9}", digits) and SHORTEST_TTL_S <= int(digits) <= LONGEST_TTL_S:
        return int(digits)
    raise InvalidRequest(
        f"{name}.seconds must be from {SHORTEST_TTL_S} to {LONGEST_TTL_S}", param=f"{name}.seconds"
    )


def shown(file: StoredFile) -> Json:
    """Return a file in OpenAI's shape."""
    return FileObject.model_validate(file).model_dump()


async def page_answer(
    request: Request[None], found: list[_T], show: Callable[[_T], Json], *, has_more: bool
) -> Answer:
    """Answer with a page of objects, in a thread: ten thousand files take 0.12 s."""

    def write() -> Answer:
        return Answer.json(page_of(list(map(show, found)), has_more=has_more))

    return await request.service.threads.run(write, deadline=request.call.deadline)


def page_of(data: list[Json], *, has_more: bool) -> Json:
    """Return a page of objects in OpenAI's shape."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }


def page_size(query: Mapping[str, str], most: int, *, default: int) -> int:
    """Return `limit`. Raises `InvalidRequest`."""
    given = query.get("limit", str(default))
    if not re.fullmatch(r"[0-9]{1,6}", given) or not 1 <= int(given) <= most:
        raise InvalidRequest(f"limit must be a number from 1 to {most}", param="limit")
    return int(given)


def _is_ascending(query: Mapping[str, str]) -> bool:
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("order must be asc or desc", param="order")
    return order == "asc"


PAGE = tuple(
    {"name": name, "in": "query", "required": False, "schema": {"type": kind}}
    for name, kind in (("after", "string"), ("limit", "integer"))
)
_WANTED = tuple(
    {"name": name, "in": "query", "required": False, "schema": {"type": "string"}}
    for name in ("order", "purpose")
)


def operation_on(kind: str, path: str, *arguments: Any, **fields: Any) -> Operation:
    """Return an operation on one object of a kind, whose id is in the path."""
    by_id = {"name": f"{kind}_id", "in": "path", "required": True, "schema": {"type": "string"}}
    missing = f"No {kind} with this id belongs to the key."
    errors: Responses = {404: {**OPENAI.responses()[404], "description": missing}}
    return Operation(path, *arguments, parameters=(by_id,), responses=errors, **fields)


def dialect(store: Store, settings: Settings) -> Dialect:
    """Return the operations on files."""
    routes, errors = FileRoutes(store, settings), OPENAI.responses()
    on_file, path = partial(operation_on, "file"), "/v1/files/{file_id}"
    listed = (*PAGE, *_WANTED)
    return Dialect(
        "Files",
        OPENAI,
        (
            Operation(
                path="/v1/files",
                handle=routes.create,
                summary="Upload a file",
                response=FileObject,
                streamed_bytes=settings.max_file_bytes + OVERHEAD_BYTES,
                responses={status: errors[status] for status in (400, 401, 413, 429, 503)},
            ),
            get("/v1/files", routes.list, "List files", response=FileList, parameters=listed),
            on_file(path, routes.retrieve, "Describe a file", method="GET", response=FileObject),
            on_file(path, routes.delete, "Delete a file", method="DELETE", response=FileDeleted),
            on_file(f"{path}/content", routes.content, "Download a file", method="GET"),
        ),
    )

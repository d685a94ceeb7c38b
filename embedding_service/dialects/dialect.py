"""A dialect as data: how its errors are written, what it calls the fields, which operations it has.

`http/` mounts dialects. Keys, rates, limits, deadlines, strict JSON and the OpenAPI document are
the same for all of them; an operation is a function from `Request` to `Answer` and knows no HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, TypeVar

import orjson
from pydantic import BaseModel

from embedding_service.types import Field

if TYPE_CHECKING:
    from embedding_service.dialects.errors import ErrorShape
    from embedding_service.dialects.fields import BareFields
    from embedding_service.service.call import Call
    from embedding_service.service.lifecycle import Lifecycle
    from embedding_service.service.models import ModelRegistry
    from embedding_service.service.service import EmbeddingService
    from embedding_service.settings.gateway import Settings

FieldsT = TypeVar("FieldsT", bound="BareFields | None")
Tree = Mapping[str, Any]
Names = Mapping[Field, str]
Work = Callable[[Callable[[], Any]], Awaitable[Any]]


@dataclass(slots=True)
class Request(Generic[FieldsT]):
    """One request, as its operation sees it.

    `fields` are the validated body (None for GET), and `ignored` names the fields of the body that
    the operation does not know. `log` goes into the request's log line. `names` is what
    errors call the fields; an operation may change it once it knows better. `prefix` is the path
    under which a proxy serves this gateway, `sent_path` the path as it was sent. `known` are the
    entity tags that the client has (If-None-Match). `work` does what grows with the body: at once
    if that is small, else in a thread. `parts` are those of a streamed body, as they arrive.
    """

    fields: FieldsT
    lifecycle: Lifecycle
    call: Call
    log: dict[str, Any]
    names: dict[Field, str]
    work: Work
    ignored: list[str] = field(default_factory=list)
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    accept: str = ""
    known: str = ""
    prefix: str = ""
    sent_path: str = ""
    content_type: str = ""
    parts: AsyncIterator[bytes] | None = None

    def note(self, model: str, tokens: int, engine_s: float) -> None:
        """Keep for the log line what an answer took."""
        self.log |= {"model": model, "tokens": tokens, "engine_s": round(engine_s, 4)}

    @property
    def service(self) -> EmbeddingService:
        """The models, and what bounds them."""
        return self.lifecycle.service

    @property
    def models(self) -> ModelRegistry:
        """The models by name."""
        return self.lifecycle.service.models

    @property
    def settings(self) -> Settings:
        """All that can be set."""
        return self.lifecycle.service.settings


def whole(number: float) -> float:
    """Return a whole number as an integer: JSON's `3600.0` is none to clients with typed fields."""
    return int(number) if float(number).is_integer() else number


@dataclass(slots=True)
class Answer:
    """An answer: `body` in one piece, or in small ones that are rendered while they are sent.

    A `file` is sent in place of it, from its beginning to its end, and closed.
    """

    body: bytes | Iterator[bytes] = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200
    media_type: str | None = "application/json"
    file: BinaryIO | None = None

    @classmethod
    def json(
        cls, value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Return plain values, pydantic models and numpy arrays as JSON."""
        if isinstance(value, BaseModel):
            value = value.model_dump(mode="json")
        body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
        return cls(body, headers or {}, status)


Handler = Callable[[Request[Any]], Awaitable[Answer]]


class Sends:
    """Whether a body is meant for an operation that shares its path: it has one of these fields."""

    def __init__(self, *fields: str) -> None:
        self.fields = fields

    def __call__(self, tree: Tree) -> bool:
        """Look at a body."""
        return any(name in tree for name in self.fields)


class Access(Enum):
    """Whom an operation serves where keys are set."""

    KEY = "key"
    LOCAL = "local"  # programs on this machine need none; others do, also where none is set
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that can be asked at one path.

    `example` is a body that works with any model; the document shows it, and tests send it. `when`
    tells operations apart that share a path; one without it takes what no other does.
    `check` may refuse a body before its fields are validated. `errors` is for an operation whose
    errors are not written like those of its dialect. `alias_of` is the path whose rate counts here,
    too. A `probe` is served while draining, logged
    only when it fails, and answers HEAD too. With `streamed_bytes`, a body of at most so many is
    handed over as it arrives, in place of being read first.
    """

    path: str
    handle: Handler
    summary: str
    _: KW_ONLY
    request: type[BareFields] | None = None
    example: Tree | None = None
    response: Any = None
    method: str = "POST"
    id: str | None = None
    when: Sends | None = None
    check: Callable[[Tree], None] | None = None
    names: Names = field(default_factory=dict)
    errors: ErrorShape | None = None
    access: Access = Access.KEY
    probe: bool = False
    alias_of: str | None = None
    streamed_bytes: int | None = None
    documented: bool = True
    parameters: tuple[dict[str, Any], ...] = ()
    responses: Mapping[int | str, dict[str, Any]] | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """The HTTP methods that this operation answers."""
        return (self.method, "HEAD") if self.probe else (self.method,)


def get(path: str, handle: Handler, summary: str, **options: Any) -> Operation:
    """Return an operation that reads, and has no body."""
    return Operation(path, handle, summary, method="GET", **options)


def probe(path: str, handle: Handler, summary: str, **options: Any) -> Operation:
    """Return an operation that balancers ask without a key."""
    return get(path, handle, summary, access=Access.OPEN, probe=True, **options)


@dataclass(frozen=True, slots=True)
class Dialect:
    """An API that is spoken here."""

    name: str
    errors: ErrorShape
    operations: tuple[Operation, ...]

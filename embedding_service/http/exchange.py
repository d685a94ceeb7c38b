"""One request on its way through the middleware: its clock, its resource, its log line."""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers

from embedding_service.service.call import Call

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Scope

    from embedding_service.dialects.dialect import Operation
    from embedding_service.dialects.errors import ErrorShape
    from embedding_service.http.routes import Resource
    from embedding_service.types import Field

_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_LONGEST_TIMEOUT_DIGITS = 9  # more would not shorten anything


class ClientGone(Exception):
    """The client closed the connection before it had its answer, or stopped reading it."""


@dataclass(slots=True)
class Exchange:
    """One request: noted by each layer for the others, and summed up in the log line.

    `resource` is served at its path, if anything is, and `operation` is the only one that the
    request can mean before its body is known. `headers` go out with any answer; `body` is complete
    once `Body` has read it, or `parts` are handed on as they arrive. Errors are written as `errors`
    and call fields by `names`; `code` is that of the error that was answered. `owner` is the key's
    name where there are several to share what bodies may hold.
    """

    id: str
    started: float
    call: Call
    errors: ErrorShape
    resource: Resource | None = None
    operation: Operation | None = None
    names: dict[Field, str] = field(default_factory=dict)
    log: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 0
    code: str = "other"
    answered: bool = False
    body: bytes = b""
    parts: AsyncIterator[bytes] | None = None
    owner: str | None = None

    @property
    def route(self) -> str:
        """The path as its route has it; `other` for none, so that clients cannot make labels."""
        return self.resource.path if self.resource else "other"

    @property
    def is_probe(self) -> bool:
        """Whether a balancer or Prometheus asks: served while draining, hardly logged."""
        return self.operation is not None and self.operation.probe


def exchange_of(scope: Scope) -> Exchange:
    """Return the exchange that `RequestLog` keeps of this request."""
    exchange: Exchange = scope["state"]["exchange"]
    return exchange


def begin(scope: Scope, timeout_s: float, errors: ErrorShape) -> Exchange:
    """Begin an exchange: the client may name it, and may shorten its deadline."""
    headers = Headers(scope=scope)
    now = time.monotonic()
    wish = headers.get("x-request-timeout-ms", "")
    if wish.isascii() and wish.isdigit() and len(wish) <= _LONGEST_TIMEOUT_DIGITS:
        timeout_s = min(timeout_s, int(wish) / 1000)
    sent = headers.get("x-request-id", "")
    request_id = sent if _REQUEST_ID.fullmatch(sent) else secrets.token_hex(16)
    exchange = Exchange(request_id, now, Call(now + timeout_s), errors)
    scope.setdefault("state", {})["exchange"] = exchange
    return exchange

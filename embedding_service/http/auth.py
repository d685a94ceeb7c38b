"""API keys: deny by default; a known key says on whose behalf a request comes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from embedding_service.dialects.dialect import Access
from embedding_service.errors import InvalidApiKey
from embedding_service.http.exchange import exchange_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from embedding_service.dropin.preset import KeyRules
    from embedding_service.http.keys import KeyRing

_LOOPBACK = frozenset({"127.0.0.1", "::1"})
_LOCAL_HOST = re.compile(rb"(localhost|127\.\d+\.\d+\.\d+|\[::1\])?(:\d+)?", re.IGNORECASE)
_FORWARDED = frozenset(
    {b"x-forwarded-for", b"forwarded", b"x-real-ip", b"x-forwarded-host", b"via"}
)


class Auth:
    """Middleware that lets through open operations, and requests with a known key."""

    def __init__(self, app: ASGIApp, *, keys: KeyRing, rules: KeyRules) -> None:
        self.app = app
        self.keys = keys
        self.rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises `InvalidApiKey` unless it may be served."""
        if scope["type"] == "http" and not self._is_open(scope):
            headers = dict(scope["headers"])
            sent = self._bearer(headers.get(b"authorization", b"")) or headers.get(
                b"x-api-key", b""
            )
            tenant = self.keys.find(sent) if sent else None
            if tenant is None:
                raise InvalidApiKey(self.rules.wrong if sent else self.rules.missing)
            exchange = exchange_of(scope)
            exchange.call.tenant = tenant
            exchange.owner = tenant.name if len(self.keys.names) > 1 else None
            exchange.log["key"] = tenant.name
        await self.app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        operation = exchange_of(scope).operation
        access = operation.access if operation is not None else Access.KEY
        if access is Access.LOCAL:
            return is_local(scope)  # others need a key, and are refused where there is none
        return not self.keys or access is Access.OPEN

    def _bearer(self, authorization: bytes) -> bytes:
        scheme, _, bearer = authorization.partition(b" ")
        if scheme.lower() == b"bearer":
            return bytes(bearer.strip())
        return authorization.strip() if self.rules.bare else b""


def is_local(scope: Scope) -> bool:
    """Tell a program on this machine from a proxy on this machine that asks for somebody else.

    A proxy adds a header, or leaves the name that its client asked for. One that does neither, as
    nginx with nothing but `proxy_pass`, looks like a program here: docs/operations.md says so.
    """
    client, headers = scope.get("client"), scope["headers"]
    if any(name in _FORWARDED for name, _ in headers):
        return False
    if client is None:  # a Unix socket
        return True
    return client[0] in _LOOPBACK and bool(_LOCAL_HOST.fullmatch(dict(headers).get(b"host", b"")))

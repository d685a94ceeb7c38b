"""API keys: deny by default; a known key says who is asking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedding_service.errors import InvalidApiKey
from embedding_service.http import problems
from embedding_service.http.middleware import exchange_of

if TYPE_CHECKING:
    from collections.abc import Container

    from starlette.types import ASGIApp, Receive, Scope, Send

    from embedding_service.http.keys import KeyRing

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health", "/ping"})
_LOOPBACK = frozenset({"127.0.0.1", "::1"})
_FORWARDED = frozenset({b"x-forwarded-for", b"forwarded", b"x-real-ip"})


@dataclass(frozen=True, slots=True)
class Words:
    """What is said without a key and to a wrong one; `bare` takes a key without `Bearer` too."""

    missing: str = "You didn't provide an API key. Send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."
    wrong: str = "Incorrect API key provided. Send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."
    bare: bool = False


class Auth:
    """Middleware that lets through open paths (to read), and requests with a known key."""

    def __init__(
        self, app: ASGIApp, *, keys: KeyRing, words: Words, open_paths: Container[str], local_paths: Container[str] = ()
    ) -> None:
        self.app = app
        self.keys = keys
        self.words = words
        self.open_paths = open_paths
        self.local_paths = local_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 unless the path is open to this client, no key is set, or one of ours is sent."""
        if scope["type"] == "http" and not self._is_open(scope):
            headers = dict(scope["headers"])
            sent = self._bearer(headers.get(b"authorization", b"")) or headers.get(b"x-api-key", b"")
            tenant = self.keys.find(sent) if sent else None
            if tenant is None:
                error = InvalidApiKey(self.words.wrong if sent else self.words.missing)
                await problems.respond(error, scope)(scope, receive, send)
                return
            exchange = exchange_of(scope)
            exchange.call.tenant = tenant
            exchange.log["key"] = tenant.name
        await self.app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path = scope["path"]
        if path in self.local_paths:
            return is_local(scope)  # others need a key, and are refused where there is none
        return not self.keys or (path in self.open_paths and scope["method"] in ("GET", "HEAD"))

    def _bearer(self, authorization: bytes) -> bytes:
        scheme, _, bearer = authorization.partition(b" ")
        if scheme.lower() == b"bearer":
            return bytes(bearer.strip())
        return authorization.strip() if self.words.bare else b""


def is_local(scope: Scope) -> bool:
    """Tell whether a program on this machine asks, and not a proxy on this machine for somebody else."""
    client = scope.get("client")
    forwarded = any(name in _FORWARDED for name, _ in scope["headers"])
    return not forwarded and (client is None or client[0] in _LOOPBACK)

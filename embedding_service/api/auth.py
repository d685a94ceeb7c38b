"""API keys: deny by default, compare digests over all keys in constant time."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

from embedding_service.api import problems
from embedding_service.errors import InvalidApiKey

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import SecretStr
    from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health", "/ping"})


def digest(key: str) -> bytes:
    """Return the sha256 of a key; `sha256:HEX` is one already."""
    if key.startswith("sha256:"):
        return bytes.fromhex(key.removeprefix("sha256:"))
    return hashlib.sha256(key.encode()).digest()


class Auth:
    """Middleware that lets through open paths, and requests with a known key."""

    def __init__(self, app: ASGIApp, *, keys: Iterable[SecretStr], open_paths: frozenset[str]) -> None:
        self.app = app
        self.digests = [digest(key.get_secret_value()) for key in keys]
        self.open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 unless the path is open, no key is set, or one of ours is sent."""
        if scope["type"] == "http" and self.digests and scope["path"] not in self.open_paths:
            headers = dict(scope["headers"])
            scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
            sent = bearer.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
            if not (sent and self._known(sent)):
                what = "Incorrect API key provided." if sent else "You didn't provide an API key."
                error = InvalidApiKey(f"{what} Send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'.")
                await problems.respond(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _known(self, sent: bytes) -> bool:
        presented = hashlib.sha256(sent).digest()
        matches = [hmac.compare_digest(presented, known) for known in self.digests]
        return any(matches)

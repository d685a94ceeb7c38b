"""API keys: deny by default, compare digests over all keys in constant time."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Words:
    """What is said without a key and to a wrong one; `bare` takes a key without `Bearer` too."""

    missing: str = "You didn't provide an API key. Send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."
    wrong: str = "Incorrect API key provided. Send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."
    bare: bool = False


class Auth:
    """Middleware that lets through open paths (to read), and requests with a known key."""

    def __init__(
        self, app: ASGIApp, *, keys: Iterable[SecretStr], open_paths: frozenset[str], words: Words = Words()
    ) -> None:
        self.app = app
        self.digests = [digest(key.get_secret_value()) for key in keys]
        self.open_paths = open_paths
        self.words = words

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 unless the path is open, no key is set, or one of ours is sent."""
        if scope["type"] == "http" and self.digests and not self._is_open(scope):
            headers = dict(scope["headers"])
            sent = self._bearer(headers.get(b"authorization", b"")) or headers.get(b"x-api-key", b"")
            if not (sent and self._known(sent)):
                error = InvalidApiKey(self.words.wrong if sent else self.words.missing)
                await problems.respond(error, scope)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        return scope["path"] in self.open_paths and scope["method"] in ("GET", "HEAD")

    def _bearer(self, authorization: bytes) -> bytes:
        scheme, _, bearer = authorization.partition(b" ")
        if scheme.lower() == b"bearer":
            return bytes(bearer.strip())
        return authorization.strip() if self.words.bare else b""

    def _known(self, sent: bytes) -> bool:
        presented = hashlib.sha256(sent).digest()
        matches = [hmac.compare_digest(presented, known) for known in self.digests]
        return any(matches)

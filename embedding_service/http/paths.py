"""The path of a request as the routes have it: without a proxy's prefix and stray slashes.

`https://host/v1/` and `/embeddings` make `/v1//embeddings` in many clients. Nobody is redirected: a
redirected POST loses its body, and behind a proxy that ends TLS it would lead to plain HTTP.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Receive, Scope, Send

    from embedding_service.http.routes import RouteTable

_SLASHES = re.compile("/{2,}")
_OF_PROGRAMS = ("application/json", "image/gif")
_PREFIX = re.compile(r"(/[\w.~-]+)+/?", re.ASCII)


class Paths:
    """Middleware around everything else; believes `trusted` proxies about client and prefix.

    A browser that opens the root gets what is served at `front`, if that is set.
    """

    def __init__(
        self,
        app: ASGIApp,
        table: RouteTable,
        *,
        root_path: str,
        trusted: Sequence[str],
        front: str | None = None,
    ) -> None:
        self.app = app
        self.front = front
        self.table = table
        self.root_path = root_path.rstrip("/")
        self._believes = bool(trusted)
        self._proxies = ProxyHeadersMiddleware(app, [*trusted])  # type: ignore[arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request under its plain path."""
        if scope["type"] == "http":
            prefix = self._prefix(scope) if self._believes else self.root_path
            path, plain = scope["path"], _plain(scope, prefix)
            scope.setdefault("state", {}).update(prefix=prefix, sent_path=path)
            if self.front and plain == "/" and _is_browser(scope):
                scope = {**scope, "path": self.front}
            elif plain != path:
                scope = {**scope, "path": self._served(path, plain)}
        app = self._proxies if self._believes else self.app
        await app(scope, receive, send)  # type: ignore[arg-type]

    def _served(self, path: str, plain: str) -> str:
        """Return the path as it was sent where that is served, as a model's name is."""
        exactly = self.table.is_served
        as_sent = exactly(path) or (self.table.find(path) and not exactly(plain))
        return path if as_sent else plain

    def _prefix(self, scope: Scope) -> str:
        """Return the path under which a proxy serves this gateway, or nothing."""
        sent = Headers(scope=scope).get("x-forwarded-prefix", "")
        if _PREFIX.fullmatch(sent) and self._trusts(scope.get("client")):
            return sent.rstrip("/")
        return self.root_path

    def _trusts(self, peer: tuple[str, int] | None) -> bool:
        return peer is not None and peer[0] in self._proxies.trusted_hosts


def _is_browser(scope: Scope) -> bool:
    """Tell a person's browser, which asks for a page, from programs.

    Java's `HttpURLConnection` names HTML and pictures unless it is told otherwise.
    """
    accept = Headers(scope=scope).get("accept", "")
    is_page = "text/html" in accept and not any(kind in accept for kind in _OF_PROGRAMS)
    return is_page and scope["method"] in ("GET", "HEAD")


def _plain(scope: Scope, prefix: str) -> str:
    """Return the path without the prefix, which most proxies take off, and with single slashes.

    Those of a path with an escaped one stay: a proxy in front may have taken it for another path.
    """
    path: str = scope["path"]
    if b"%2f" not in scope.get("raw_path", b"").lower():
        path = _SLASHES.sub("/", path).rstrip("/") or "/"
    is_below = prefix and f"{path}/".startswith(f"{prefix}/")
    return (path.removeprefix(prefix) or "/") if is_below else path

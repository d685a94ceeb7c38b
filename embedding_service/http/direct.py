"""Routes whose endpoint takes the request and returns the response: FastAPI documents them, and is not in their way.

On the way to such an endpoint FastAPI and Starlette match some fifty patterns, catch exceptions three times and open
two exit stacks, none of which these routes need: errors are caught by `RequestLog`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi.routing import APIRoute
from starlette.requests import Request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi import FastAPI
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send


class DirectRoute(APIRoute):
    """A POST route without parameters, served by its endpoint alone."""

    def __init__(self, path: str, endpoint: Callable[[Request], Awaitable[Response]], **options: Any) -> None:
        super().__init__(path, endpoint, **options)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            response = await endpoint(Request(scope, receive, send))
            await response(scope, receive, send)

        self.app = app


class Shortcut:
    """Goes to a direct route by its path, and to the application for everything else."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self._direct = {route.path: route for route in app.routes if isinstance(route, DirectRoute)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises what its endpoint raises."""
        route = self._direct.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if route is None:
            await self.app(scope, receive, send)
        else:
            scope["route"] = route
            await route.app(scope, receive, send)

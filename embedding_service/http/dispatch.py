"""From a request to its operation: read the body, choose, validate, run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, QueryParams

from embedding_service.dialects.dialect import Request
from embedding_service.dialects.fields import read_fields
from embedding_service.http.answers import AnswerResponse
from embedding_service.http.exchange import exchange_of
from embedding_service.http.json_body import parse_object

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from embedding_service.dialects.dialect import Operation, Tree
    from embedding_service.dialects.errors import ErrorShape
    from embedding_service.http.exchange import Exchange
    from embedding_service.http.routes import Resource
    from embedding_service.service.lifecycle import Lifecycle

# Larger bodies are read in a thread: 300,000 token ids, which are 2 MB, keep a core busy for 50 ms.
INLINE_BYTES = 128 << 10


class Dispatcher:
    """Runs operations. `default_errors` is how a body is refused that means none, or several."""

    def __init__(self, lifecycle: Lifecycle, default_errors: ErrorShape) -> None:
        self.lifecycle = lifecycle
        self.default_errors = default_errors

    async def answer(self, scope: Scope, resource: Resource) -> AnswerResponse:
        """Return the answer of the operation that a request means. Raises `ServiceError`."""
        exchange = exchange_of(scope)
        headers = Headers(scope=scope)
        tree: Tree = {}
        if exchange.operation is None or exchange.operation.request is not None:
            tree = await _read_tree(exchange.body, headers.get("content-type"))
        operation = self._choose(exchange, resource, scope["method"], tree)
        fields, ignored = await _read_fields(operation, tree, len(exchange.body))
        request = Request(
            fields=fields,
            lifecycle=self.lifecycle,
            call=exchange.call,
            log=exchange.log,
            names=exchange.names,
            ignored=ignored,
            path=scope.get("path_params", {}),
            query=QueryParams(scope["query_string"]) if scope["query_string"] else {},
            accept=headers.get("accept", ""),
            prefix=scope["state"].get("prefix", ""),
        )
        return AnswerResponse(await operation.handle(request))

    def _choose(self, exchange: Exchange, resource: Resource, method: str, tree: Tree) -> Operation:
        """Return the operation that is meant; from then on errors are in its dialect's words."""
        if len(resource.methods[method]) > 1:
            exchange.errors = self.default_errors
        mounted = resource.choose(method, tree)
        exchange.errors = mounted.errors
        exchange.names |= mounted.operation.names
        return mounted.operation


class Shortcut:
    """Runs POST operations straight from the table of routes; leaves all else to FastAPI.

    By way of FastAPI a request of one text costs a quarter more of the gateway's CPU (738 us in
    place of 584, fake engine, 64 clients): it tries patterns, opens two exit stacks and catches
    exceptions twice.
    """

    def __init__(self, app: ASGIApp, dispatcher: Dispatcher) -> None:
        self.app = app
        self.dispatcher = dispatcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises `ServiceError`, which `RequestLog` answers."""
        resource = exchange_of(scope).resource if scope["type"] == "http" else None
        if resource is None or scope["method"] != "POST" or "POST" not in resource.methods:
            await self.app(scope, receive, send)
            return
        response = await self.dispatcher.answer(scope, resource)
        await response(scope, receive, send)


async def _read_tree(body: bytes, content_type: str | None) -> Tree:
    if len(body) <= INLINE_BYTES:
        return parse_object(body, content_type)
    return await asyncio.to_thread(parse_object, body, content_type)


async def _read_fields(operation: Operation, tree: Tree, body_bytes: int) -> tuple[Any, list[str]]:
    if operation.check is not None:
        operation.check(tree)
    if operation.request is None:
        return None, []
    if body_bytes <= INLINE_BYTES:
        return read_fields(operation.request, tree)
    return await asyncio.to_thread(read_fields, operation.request, tree)

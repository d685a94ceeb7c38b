"""From a request to its operation: read the body, choose, validate, run."""

from __future__ import annotations

from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, QueryParams

from embedding_service.dialects.dialect import Request
from embedding_service.dialects.fields import Limits, read_fields
from embedding_service.errors import InvalidRequest, RouteNotFound
from embedding_service.http.answers import PIECE_BYTES, AnswerResponse, FileResponse
from embedding_service.http.exchange import exchange_of
from embedding_service.http.json_body import parse_object
from embedding_service.http.json_values import has_more_values
from embedding_service.settings.space_ids import read_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

    from embedding_service.dialects.dialect import Answer, Operation, Tree, Work
    from embedding_service.dialects.errors import ErrorShape
    from embedding_service.http.exchange import Exchange
    from embedding_service.http.routes import Resource
    from embedding_service.service.call import Call
    from embedding_service.service.lifecycle import Lifecycle

# Larger bodies are read in a thread: 300,000 token ids, which are 2 MB, keep a core busy for 50 ms,
# and so do 40,000 empty lists in 120 KB.
INLINE_BYTES = 128 << 10
INLINE_VALUES = 8192
REQUIRED_SPACE = b"x-require-vector-space"
_STATEFUL = ("/v1/files", "/v1/batches")
_SHOWN_PATH_CHARACTERS = 100
_NEAR = 0.8  # /v1/embedding is, /v1/audio is not


class Dispatcher:
    """Runs operations. `default_errors` is how a body is refused that means none, or several."""

    def __init__(self, lifecycle: Lifecycle, default_errors: ErrorShape) -> None:
        self.lifecycle = lifecycle
        self.settings = lifecycle.service.settings
        self.default_errors = default_errors

    async def answer(self, scope: Scope, resource: Resource) -> Response:
        """Return the answer of the operation that a request means. Raises `ServiceError`."""
        # Looked up by a dictionary: Starlette's `Headers` goes through all of them each time.
        exchange, headers = exchange_of(scope), dict(scope["headers"])
        sent_bytes, work = len(exchange.body), self._work(exchange)
        tree = await self._read_tree(exchange, _text(headers, b"content-type"), work)
        operation = self._choose(exchange, resource, scope["method"], tree)
        if operation.request is not None:
            exchange.call.required = _required(scope) if REQUIRED_SPACE in headers else ()
        answer = await self._run(
            exchange, operation, tree, work, **_about(scope, headers, resource)
        )
        if operation.request is not None:
            self._reserve(answer, sent_bytes, exchange.call)
        return AnswerResponse(answer) if answer.file is None else FileResponse(answer)

    async def answer_tree(self, exchange: Exchange, resource: Resource, tree: Tree) -> Answer:
        """Return the answer to a body that came in no request of its own. Raises `ServiceError`."""
        operation = self._choose(exchange, resource, "POST", tree)
        threads, deadline = self.lifecycle.service.threads, exchange.call.deadline
        work: Work = partial(threads.run, deadline=deadline)
        return await self._run(exchange, operation, tree, work)

    async def _run(
        self, exchange: Exchange, operation: Operation, tree: Tree, work: Work, **more: Any
    ) -> Answer:
        """Validate the fields and have the operation work."""
        read = partial(self._read_fields, operation, tree)
        fields, ignored = read() if work is _at_once else await work(read)
        if (in_body := getattr(fields, "require_vector_space", None)) is not None:
            exchange.call.required += (in_body,)
        request = Request(
            fields=fields,
            lifecycle=self.lifecycle,
            call=exchange.call,
            log=exchange.log,
            names=exchange.names,
            work=work,
            ignored=ignored,
            parts=exchange.parts,
            **more,
        )
        answer = await operation.handle(request)
        if (space := exchange.call.space) is not None:
            exchange.headers["x-vector-space"] = space.id
        return answer

    def _reserve(self, answer: Answer, sent_bytes: int, call: Call) -> None:
        """Reserve what was made in one piece, or what a rendered answer may repeat.

        The service has reserved vectors.
        """
        amount = len(answer.body) if isinstance(answer.body, bytes) else sent_bytes
        if amount > PIECE_BYTES:
            self.lifecycle.service.reserve(amount, call)

    def _work(self, exchange: Exchange) -> Work:
        """Return how work on this body is done: here if it is small, else in a thread."""
        size = len(exchange.body)
        if size <= INLINE_VALUES or (
            size <= INLINE_BYTES and not has_more_values(exchange.body, INLINE_VALUES)
        ):
            return _at_once
        threads, deadline = self.lifecycle.service.threads, exchange.call.deadline
        return partial(threads.run, deadline=deadline)

    async def _read_tree(self, exchange: Exchange, content_type: str | None, work: Work) -> Tree:
        """Return the body's tree, which takes its place; an operation may have none."""
        body, exchange.body = exchange.body, b""
        if exchange.operation is not None and exchange.operation.request is None:
            return {}
        most = self.settings.body_values
        parse = partial(parse_object, body, content_type, max_values=most)
        del body
        tree: Tree = parse() if work is _at_once else await work(parse)
        return tree

    def _read_fields(self, operation: Operation, tree: Tree) -> tuple[Any, list[str]]:
        if operation.check is not None:
            operation.check(tree)
        if operation.request is None:
            return None, []
        settings = self.settings
        limits = Limits(items=settings.max_inputs, tokens=settings.max_request_tokens)
        return read_fields(operation.request, tree, limits)

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

    def __init__(self, app: ASGIApp, dispatcher: Dispatcher, table: Iterable[Resource]) -> None:
        self.app = app
        self.dispatcher = dispatcher
        self._paths = [resource.path for resource in table]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises `ServiceError`, which `RequestLog` answers."""
        resource = exchange_of(scope).resource if scope["type"] == "http" else None
        if resource is None and scope["type"] == "http":
            # FastAPI would take `/metrics` and a line end for `/metrics`, past the rules of both.
            if scope["path"].startswith(_STATEFUL) and self.dispatcher.settings.state_dir is None:
                raise RouteNotFound(
                    "files and batches are off here; set state_dir, or ask the operator to"
                )
            raise _nothing_at(scope["method"], scope["path"], self._paths)
        if resource is None or scope["method"] != "POST" or "POST" not in resource.methods:
            await self.app(scope, receive, send)
            return
        response = await self.dispatcher.answer(scope, resource)
        await response(scope, receive, send)


def _nothing_at(method: str, path: str, paths: Collection[str]) -> RouteNotFound:
    """Return the error about a path that is not served, with the one that was meant."""
    shown = f"{method} {path[:_SHOWN_PATH_CHARACTERS]}"
    if path.startswith("/v1/v1/"):
        return RouteNotFound(
            f"there is nothing at {shown}: the base URL ends in /v1 already; leave one out"
        )
    short = path[:_SHOWN_PATH_CHARACTERS] == path
    near = get_close_matches(path, paths, n=1, cutoff=_NEAR) if short else []
    meant = f"{near[0]}, or " if near else ""
    return RouteNotFound(f"there is nothing at {shown}; see {meant}/docs")


def _text(headers: Mapping[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1")


def _about(scope: Scope, headers: Mapping[bytes, bytes], resource: Resource) -> dict[str, Any]:
    """Return what an operation may want to know of its request, beside the fields."""
    state, query = scope["state"], scope["query_string"]
    return {
        "path": scope.get("path_params") or resource.parameters(scope["path"]),
        "query": QueryParams(query) if query else {},
        "accept": _text(headers, b"accept"),
        "content_type": _text(headers, b"content-type"),
        "known": _text(headers, b"if-none-match"),
        "prefix": state.get("prefix", ""),
        "sent_path": state.get("sent_path", ""),
    }


def _required(scope: Scope) -> tuple[frozenset[str], ...]:
    """Return the vector spaces that the header requires. Raises `InvalidRequest`."""
    name = REQUIRED_SPACE.decode()
    try:
        return (read_ids(*Headers(scope=scope).getlist(name)),)
    except ValueError as error:
        raise InvalidRequest(f"{name}: {error}", param=name) from None


async def _at_once(work: Callable[[], Any]) -> Any:
    return work()

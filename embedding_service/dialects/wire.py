"""Bytes in and out: strict JSON to fields, vectors to JSON without a Python float in between."""

from __future__ import annotations

import asyncio
import binascii
import json
import math
import re
from typing import TYPE_CHECKING, Any, TypeVar

import jiter
import orjson
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.responses import Response

from embedding_service.errors import InvalidRequest
from embedding_service.http.direct import DirectRoute
from embedding_service.http.middleware import exchange_of
from embedding_service.types import Encoding

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

    import numpy as np
    import numpy.typing as npt
    from fastapi import APIRouter
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from embedding_service.http.problems import Envelope

MAX_DEPTH = 8
# Answers above this are sent piece by piece: nothing is ever held twice, and rendering never keeps
# the event loop for more than a piece.
PIECE_BYTES = 256 << 10
ECHO_CHARACTERS = 100
# Only bodies up to this size are read a second time to explain what is wrong with them (10 ms).
EXPLAINED_BYTES = 1 << 20
# Larger bodies are read in a thread: 300,000 token ids, which are 2 MB, keep a core busy for 50 ms.
INLINE_BYTES = 128 << 10
_TYPES_TO_CHECK = frozenset({dict, list, float})
_MOST_DIGITS = 4300  # jiter and Python refuse longer integers


class Fields(BaseModel):
    """Base of every request: no value is converted; enums alone are read from their names."""

    model_config = ConfigDict(strict=True, extra="ignore")


_Model = TypeVar("_Model", bound=Fields)


async def read_object(request: Request) -> dict[str, Any]:
    """Return a request's body, which is parsed once however often it is asked for. Raises `InvalidRequest`."""
    state = request.scope["state"]
    if "tree" not in state:
        body, content_type = exchange_of(request.scope).body, request.headers.get("content-type")
        if len(body) <= INLINE_BYTES:
            state["tree"] = parse_object(body, content_type)
        else:
            state["tree"] = await asyncio.to_thread(parse_object, body, content_type)
    tree: dict[str, Any] = state["tree"]
    return tree


async def read_request(request: Request, model: type[_Model]) -> tuple[_Model, list[str]]:
    """Return the fields of a request's body, and the names of those that `model` does not know.

    Raises `InvalidRequest`.
    """
    tree = await read_object(request)
    if len(exchange_of(request.scope).body) <= INLINE_BYTES:
        return read_fields(model, tree)
    return await asyncio.to_thread(read_fields, model, tree)


def parse_object(body: bytes, content_type: str | None) -> dict[str, Any]:
    """Read a JSON object, strictly: UTF-8, finite numbers, unique keys, at most 8 levels deep.

    Raises `InvalidRequest`, never with more than a little of the body in it.
    """
    kind = (content_type or "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not re.fullmatch(r"application/[\w.-]+\+json", kind):
        raise InvalidRequest(f"content-type must be application/json, not {kind[:ECHO_CHARACTERS]}")
    try:
        tree = jiter.from_json(body, allow_inf_nan=True, catch_duplicate_keys=True, cache_mode="none")
    except ValueError as error:
        reason = str(error)
        raise InvalidRequest(
            f"the request body is not valid JSON: {_printable(reason)}", param=_field_at_fault(body, reason)
        ) from None
    if not isinstance(tree, dict):
        raise InvalidRequest("the request body must be a JSON object")
    _check_tree(tree, "", 1)
    return tree


def _field_at_fault(body: bytes, reason: str) -> str | None:
    """Return the top-level field that is not strict JSON, where a lenient reader can tell.

    Raises `InvalidRequest` itself if the reason is deep nesting.
    """
    if duplicate := re.match(r'Detected duplicate key "(.*)" at line', reason, re.DOTALL):
        return _top(duplicate[1])
    if len(body) > EXPLAINED_BYTES:
        return None
    try:  # what is not UTF-8 becomes a lone surrogate, and what is too long for a number something that is none
        text = body.decode("utf-8", "surrogateescape")
        tree = json.loads(text, parse_int=lambda digits: 0 if len(digits) < _MOST_DIGITS else ...)
    except (ValueError, RecursionError):
        return None
    if not isinstance(tree, dict):
        return None
    _check_tree(tree, "", 1)
    for name, value in tree.items():
        try:
            orjson.dumps([name, value])
        except TypeError:
            return _top(name)
    return None


def _check_tree(tree: dict[str, Any] | list[Any], path: str, depth: int) -> None:
    """Refuse deep nesting, NaN, infinities, and numbers such as 1e999 that a float cannot hold."""
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"{_top(path)} is nested more than {MAX_DEPTH} levels deep", param=_top(path))
    if isinstance(tree, list) and _TYPES_TO_CHECK.isdisjoint(map(type, tree)):  # ten times the loop below's speed
        return
    items: Iterable[tuple[Any, Any]] = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        kind = type(value)
        if kind is dict or kind is list:
            _check_tree(value, path or str(key), depth + 1)
        elif kind is float and not math.isfinite(value):
            name = _top(path or str(key))
            raise InvalidRequest(f"{name} holds a number that is not finite", param=name)


def read_fields(model: type[_Model], tree: Mapping[str, Any]) -> tuple[_Model, list[str]]:
    """Validate `tree`; return the fields and the names that `model` does not know.

    Raises `InvalidRequest` about the first wrong field.
    """
    try:
        fields = model.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = _path(first["loc"], tree, missing=first["type"] == "missing")
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            message = "this field is required"
        raise InvalidRequest(f"{name}: {message}"[:1000] if name else message[:1000], param=name) from None
    return fields, [name for name in tree if name not in model.model_fields]


class RequestSchema(dict[str, Any]):
    """The OpenAPI description of a route's body; `app.create_routes` adds the schemas of `models` themselves."""

    def __init__(self, *models: type[BaseModel]) -> None:
        self.models = models
        references = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]
        schema = references[0] if len(models) == 1 else {"anyOf": references}
        super().__init__(requestBody={"required": True, "content": {"application/json": {"schema": schema}}})


def post(
    routes: APIRouter,
    path: str,
    endpoint: Callable[[Request], Awaitable[Response]],
    shapes: tuple[type[BaseModel], Any],
    *,
    summary: str,
    errors: Envelope,
    operation_id: str | None = None,
) -> None:
    """Add a route that takes and sends JSON, with its documentation: `shapes` are its request and its answer."""
    routes.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        route_class_override=DirectRoute,
        summary=summary,
        response_model=shapes[1],
        responses=errors.responses,
        openapi_extra=RequestSchema(shapes[0]),
        operation_id=operation_id or path.strip("/").replace("/", "_").replace("-", "_") or "root",
    )


def header_list(names: Iterable[str]) -> str:
    """Return names as one header value, whatever a client called its fields; a long list ends in "..."."""
    text = ", ".join(_printable(name) for name in names)
    return text if len(text) <= ECHO_CHARACTERS else text[:ECHO_CHARACTERS].rpartition(", ")[0] + ", ..."


def vector_json(vector: npt.NDArray[np.generic], encoding: Encoding) -> bytes:
    """Write one array: a (nested) list of numbers, or a string of the raw little-endian bytes in base64."""
    if encoding is Encoding.BASE64:
        return b'"' + binascii.b2a_base64(vector.tobytes(), newline=False) + b'"'
    return orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)


def pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Join small parts to pieces of about PIECE_BYTES."""
    held: list[bytes] = []
    size = 0
    for part in parts:
        held.append(part)
        size += len(part)
        if size >= PIECE_BYTES:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)


class PiecewiseResponse(Response):
    """A JSON answer that is rendered while it is sent; in one message if it is small."""

    media_type = "application/json"

    def __init__(self, parts: Iterable[bytes], *, headers: Mapping[str, str]) -> None:
        rest = pieces(parts)
        first = next(rest)
        self._second = next(rest, None)
        self._rest = rest
        super().__init__(first, headers=headers)
        if self._second is not None:
            del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer; `send` waits while the client reads more slowly than we render."""
        if self._second is None:
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        piece: bytes | None = self._second
        while piece is not None:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)  # while the socket takes all, `send` lets nobody else run: 50 ms for 10 MB
            piece = next(self._rest, None)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _path(location: tuple[int | str, ...], tree: object, *, missing: bool) -> str | None:
    """Return `field`, `field[3]` or `field[3].name` of pydantic's location, which also names the types it tried."""
    path = ""
    for place, part in enumerate(location):
        if isinstance(part, int) and isinstance(tree, list):
            path, tree = f"{path}[{part}]", tree[part]
        elif isinstance(tree, dict) and (part in tree or (missing and place == len(location) - 1)):
            path, tree = f"{path}.{_top(str(part))}" if path else _top(str(part)), tree.get(part)
    return path or None


def _top(name: str) -> str:
    return _printable(name) or "the body"


def _printable(text: str) -> str:
    text = text[:ECHO_CHARACTERS]
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)

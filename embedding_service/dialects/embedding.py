"""Shared by the dialects that embed: inputs, vectors, usage and headers."""

from __future__ import annotations

import binascii
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from embedding_service.dialects.dialect import Answer, Request
from embedding_service.dialects.errors import EMPTY
from embedding_service.dialects.fields import Lax, header_list
from embedding_service.errors import InvalidRequest
from embedding_service.types import Encoding, Json, Truncate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import numpy.typing as npt

    from embedding_service.dialects.dialect import Tree
    from embedding_service.types import Embeddings, EmbedJob

    Render = Callable[[Embeddings], Iterator[bytes]]

TOKEN_LIMIT = 2**31
_NUMBERS_AT_ONCE = 1 << 14  # 2 ms
_KINDS = "must be a string, a list of strings, a list of token ids, or a list of lists of token ids"


def _read_input(value: object) -> list[str] | list[list[int]]:
    """Return a list of texts, or a list of lists of token ids.

    Raises `PydanticCustomError` that names the item.
    """
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise _wrong(_KINDS)
    if not value:
        raise _wrong("must not be an empty list")
    if type(value[0]) is int:
        value = [value]
    if type(value[0]) is str:
        _check_items(value, str, "a string")
    elif type(value[0]) is list:
        _check_items(value, list, "a list of token ids")
        _check_token_ids(value)
    else:
        raise _wrong("[0] must be a string or a list of token ids")
    return value


def _check_items(items: list[Any], kind: type, description: str) -> None:
    if set(map(type, items)) == {kind} and all(items):  # at C speed
        return
    for place, item in enumerate(items):
        if type(item) is not kind:
            raise _wrong(f"[{place}] must be {description}, as [0] is")
        if not item:
            raise _wrong(f"[{place}] is empty; every input must have some content")


def _check_token_ids(items: list[list[Any]]) -> None:
    for place, ids in enumerate(items):
        # At C speed: a request may hold 300,000.
        if set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) >= TOKEN_LIMIT:
            raise _wrong(f"[{place}] must hold token ids, which are non-negative integers")


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("input", "{message}", {"message": message})


_TOKENS_SCHEMA = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": TOKEN_LIMIT - 1},
    "minItems": 1,
}
_INPUT_SCHEMA = {
    "description": "One text, several texts, or token ids of one or several texts.",
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
        _TOKENS_SCHEMA,
        {"type": "array", "items": _TOKENS_SCHEMA, "minItems": 1},
    ],
}
Input = Annotated[Any, BeforeValidator(_read_input), WithJsonSchema(_INPUT_SCHEMA)]
TruncateField = Annotated[Truncate, Lax]


def as_list(value: str | list[str]) -> list[str]:
    """Return a text as a list of one, and a list as it is."""
    return [value] if isinstance(value, str) else value


class Usage(BaseModel):
    """Real token counts, special tokens and prompt included."""

    prompt_tokens: int
    total_tokens: int
    truncated_inputs: list[int] = Field(
        default=[], description="Indices of inputs that were cut; only if any."
    )
    chunked_inputs: list[int] = Field(
        default=[], description="Indices of inputs that were chunked; only if any."
    )


class VectorSpaceInfo(BaseModel):
    """The ids of a model's vectors, and what they are made of; see docs/vectors.md."""

    id: str = Field(description="NAME@HEX; equal HEX, equal directions.")
    build: str = Field(description="With it equal too, equal digits.")
    ingredients: Json
    build_ingredients: Json


def usage(answer: Embeddings) -> Json:
    """Return real token counts, and which inputs were not embedded as they are."""
    counts: Json = {"prompt_tokens": answer.total_tokens, "total_tokens": answer.total_tokens}
    if answer.truncated:
        counts["truncated_inputs"] = answer.truncated
    if answer.chunked:
        counts["chunked_inputs"] = answer.chunked
    return counts


def refuse_empty(field: str) -> Callable[[Tree], None]:
    """Return a check that refuses an empty list in this field."""

    def check(tree: Tree) -> None:
        if tree.get(field) == []:
            raise nothing_in(field)

    return check


def refuse_nothing(field: str) -> Callable[[Tree], None]:
    """Return a check that refuses an empty list, and an empty text on its own or in a list."""

    def check(tree: Tree) -> None:
        given = tree.get(field)
        if given in ([], "") or (isinstance(given, list) and "" in given):
            raise nothing_in(field)

    return check


def nothing_in(field: str) -> InvalidRequest:
    """Return the error about a field in which there is nothing to compute."""
    return InvalidRequest(f"`{field}` cannot be empty; send a text", param=field, code=EMPTY)


async def compute(request: Request[Any], job: EmbedJob) -> Embeddings:
    """Have a job computed, and keep for the log line what it took."""
    request.log |= {"model": job.model, "texts": len(job.inputs)}
    answer = await request.service.embed(job, request.call)
    request.note(answer.model, answer.total_tokens, answer.engine_s)
    return answer


async def respond(request: Request[Any], job: EmbedJob, render: Render) -> Answer:
    """Have a job computed, and answer it as `render` writes it."""
    answer = await compute(request, job)
    return Answer(render(answer), _headers(answer, request.ignored))


def _headers(answer: Embeddings, ignored: list[str]) -> dict[str, str]:
    """Tell a client how its request was read."""
    headers = {"openai-model": header_list([answer.model])}
    if answer.truncated:
        headers["x-truncated-inputs"] = header_list(map(str, answer.truncated))
    if answer.chunked:
        headers["x-chunked-inputs"] = header_list(map(str, answer.chunked))
    if any(answer.cached):
        headers["x-cache"] = f"{sum(answer.cached)}/{len(answer.cached)}"
    if answer.token_ids_read_as is not None:
        headers["x-token-ids"] = answer.token_ids_read_as
    if ignored or answer.ignored:
        headers["x-ignored-fields"] = header_list([*ignored, *answer.ignored])
    return headers


def vector_json(vector: npt.NDArray[np.generic], encoding: Encoding = Encoding.FLOAT) -> bytes:
    """Write one array: a (nested) list of numbers, or its raw little-endian bytes in base64."""
    if encoding is Encoding.BASE64:
        return b'"' + binascii.b2a_base64(vector.tobytes(), newline=False) + b'"'
    return orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)


def matrix_json(
    rows: npt.NDArray[np.generic], encoding: Encoding = Encoding.FLOAT
) -> Iterator[bytes]:
    """Write an array of many rows as `vector_json` does, some rows at a time.

    8,192 tokens of 1,024 numbers are 100 MB of JSON, and half a second of the event loop in one go.
    """
    at_once = max(1, _NUMBERS_AT_ONCE // rows.shape[1]) * 3  # whole groups of three bytes
    for start in range(0, len(rows), at_once):
        written = vector_json(rows[start : start + at_once], encoding)
        first, last = start == 0, start + at_once >= len(rows)
        separator = b"" if first or encoding is Encoding.BASE64 else b","
        yield separator + written[(not first) : len(written) - (not last)]
    if not len(rows):
        yield vector_json(rows, encoding)


def json_list(items: Iterator[bytes]) -> Iterator[bytes]:
    """Write a list, item by item."""
    separator = b"["
    for item in items:
        yield separator + item
        separator = b","
    yield b"[]" if separator == b"[" else b"]"

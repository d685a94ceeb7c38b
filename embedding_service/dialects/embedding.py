"""What the embedding dialects share: how `input` is read, how usage and headers are told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from embedding_service.dialects import wire
from embedding_service.types import Truncate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.responses import Response

    from embedding_service.http.middleware import Exchange
    from embedding_service.service.service import EmbeddingService
    from embedding_service.types import Embeddings, EmbedJob

TOKEN_LIMIT = 2**31


def _read_input(value: object) -> list[str] | list[list[int]]:
    """Return a list of texts, or a list of lists of token ids. Raises `PydanticCustomError` that names the item."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise _wrong("must be a string, a list of strings, a list of token ids, or a list of lists of token ids")
    if not value:
        raise _wrong("must not be an empty list")
    if type(value[0]) is int:
        value = [value]
    kind: type = type(value[0])
    if kind not in (str, list):
        raise _wrong("[0] must be a string or a list of token ids")
    what = "a string" if kind is str else "a list of token ids"
    for i, item in enumerate(value):
        if type(item) is not kind:
            raise _wrong(f"[{i}] must be {what}, as [0] is")
        if not item:
            raise _wrong(f"[{i}] is empty; every input must have some content")
        if kind is list and not _are_token_ids(item):
            raise _wrong(f"[{i}] must hold token ids, which are non-negative integers")
    return value


def _are_token_ids(item: Any) -> bool:
    # At C speed: a request may hold 300,000.
    return set(map(type, item)) == {int} and min(item) >= 0 and max(item) < TOKEN_LIMIT


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
Lax = Field(strict=False)
Input = Annotated[Any, BeforeValidator(_read_input), WithJsonSchema(_INPUT_SCHEMA)]
TruncateField = Annotated[Truncate, Lax]


class Usage(BaseModel):
    """Real token counts, special tokens and prompt included."""

    prompt_tokens: int
    total_tokens: int
    truncated_inputs: list[int] = Field(default=[], description="Indices of inputs that were cut; only if any.")
    chunked_inputs: list[int] = Field(default=[], description="Indices of inputs that were chunked; only if any.")


def usage(answer: Embeddings) -> dict[str, Any]:
    """Return real token counts, and which inputs were not embedded as they are."""
    counts: dict[str, Any] = {"prompt_tokens": answer.total_tokens, "total_tokens": answer.total_tokens}
    if answer.truncated:
        counts["truncated_inputs"] = answer.truncated
    if answer.chunked:
        counts["chunked_inputs"] = answer.chunked
    return counts


def answer_headers(answer: Embeddings, ignored: list[str]) -> dict[str, str]:
    """Return what a client should know about how its request was read."""
    headers = {"openai-model": wire.header_list([answer.model])}
    for name, indices in (("x-truncated-inputs", answer.truncated), ("x-chunked-inputs", answer.chunked)):
        if indices:
            headers[name] = wire.header_list(map(str, indices))
    if any(answer.cached):
        headers["x-cache"] = f"{sum(answer.cached)}/{len(answer.cached)}"
    if answer.token_ids_read_as is not None:
        headers["x-token-ids"] = answer.token_ids_read_as
    if ignored:
        headers["x-ignored-fields"] = wire.header_list(ignored)
    return headers


async def answer(
    service: EmbeddingService,
    exchange: Exchange,
    job: EmbedJob,
    render: Callable[[Embeddings], Iterator[bytes]],
    ignored: list[str],
) -> Response:
    """Have a job computed, and answer it as `render` writes it."""
    exchange.log |= {"model": job.model, "texts": len(job.inputs)}
    embeddings = await service.embed(job, exchange.call)
    exchange.log |= {"model": embeddings.model, "tokens": embeddings.total_tokens}
    exchange.log["engine_s"] = round(embeddings.engine_s, 4)
    return wire.PiecewiseResponse(render(embeddings), headers=answer_headers(embeddings, ignored))

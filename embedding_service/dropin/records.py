"""Records and single texts: `/embed`, `/prepare-and-embed`, `/batch`, `/reindex`.

The fields of a record and the template of its text are settings (`records`); an item of a batch
fails alone.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field, create_model

from embedding_service.dialects import embedding
from embedding_service.dialects.dialect import Answer, Dialect, Operation, Request, Sends
from embedding_service.dialects.errors import OPENAI
from embedding_service.dialects.fields import BareFields, Fields
from embedding_service.dropin import record_text
from embedding_service.dropin.model_info import MODEL_INFO, model_identity
from embedding_service.dropin.record_text import Room
from embedding_service.errors import InvalidRequest
from embedding_service.types import EmbedJob, Json, Truncate
from embedding_service.types import Field as Name

if TYPE_CHECKING:
    from embedding_service.service.models import ServedModel
    from embedding_service.settings.gateway import Settings
    from embedding_service.settings.records import RecordField
    from embedding_service.types import Floats

_NO_VECTOR: list[float] = []
_NUMBERS_AT_ONCE = 1 << 14  # 2 ms as JSON; more are written in a thread
_MOST_VALUES = 4096  # of a mapping
_EMPTY = "All fields are empty"
_ANEW = "Embed stored records anew"
_TYPES: Json = {"integer": int, "number": float, "mapping": Json}


# An id, which comes back several times in an answer.
ShortText = Annotated[str, Field(max_length=1024)]


class TextRequest(Fields):
    """One text to embed."""

    text: str


class TextEmbedding(BaseModel):
    """One vector, and the model behind it."""

    embedding: list[float]
    dimensions: int
    model_version: str
    model_checksum: str
    cached: bool


class RecordEmbedding(TextEmbedding):
    """The vector of a record, and its text."""

    prepared_text: str


class Reindexed(RecordEmbedding):
    """The new vector of a record that is already stored."""

    entity_id: str
    entity_type: str
    message: str


class BatchResult(BaseModel):
    """One item's vector, or why it has none."""

    entity_id: str
    embedding: list[float]
    success: bool
    error: str | None
    cached: bool


class BatchResponse(BaseModel):
    """All items in the order sent, also where ids repeat."""

    results: list[BatchResult]
    dimensions: int
    total: int
    successful: int
    success: int = Field(description="The same as `successful`.")
    failed: int
    cached_count: int
    model_version: str
    model_checksum: str


def _field(field: RecordField) -> tuple[Any, Any]:
    """Return a record's field as pydantic takes it; numbers may come as text."""
    kind = _TYPES.get(field.type)
    if kind is None:
        return (Annotated[str, Field(max_length=field.max_length)] | None, None)
    if field.type == "mapping":
        few = BeforeValidator(_check_values)
        return (Annotated[kind, Field(strict=True), few] | None, None)
    limits: Json = {"ge": field.minimum, "le": field.maximum}
    if field.type == "number":
        limits["allow_inf_nan"] = False
    bounds = Field(strict=False, **limits)
    return (Annotated[kind, bounds, BeforeValidator(_no_boolean)] | None, None)


def _check_values(mapping: object) -> object:
    """Raise `ValueError` for more values than anybody could mean, nested ones included."""
    left, count = [mapping], 0
    while left:
        inner = left.pop()
        values = [*inner.values()] if isinstance(inner, dict) else inner
        if isinstance(values, list):
            count += len(values)
            left += [value for value in values if isinstance(value, dict | list)]
        if count > _MOST_VALUES:
            raise ValueError(f"holds more than {_MOST_VALUES} values; send fewer")
    return mapping


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        # Not a TypeError, which pydantic would not take for a wrong field.
        raise ValueError("a boolean is no number")  # noqa: TRY004
    return value


def _record(
    name: str, settings: Settings, base: type[BareFields] = Fields, **more: Any
) -> type[BareFields]:
    """Return the shape of a record with the configured fields, and `more`."""
    fields: Json = {name: _field(field) for name, field in settings.records.fields.items()}
    return create_model(name, __base__=base, __doc__="A record.", **fields, **more)


def _batch(settings: Settings) -> type[Fields]:
    item = _record("RecordItem", settings, BareFields, entity_id=(ShortText, ...))
    many = Annotated[list[item], Field(min_length=1)]  # type: ignore[valid-type]
    items: Any = (many | None, None)
    model: type[Fields] = create_model(
        "BatchRequest", __base__=Fields, __doc__="Records.", items=items, entities=items
    )
    return model


async def embed(request: Request[TextRequest]) -> Answer:
    """Embed a text as it is."""
    text = request.fields.text
    if not text:
        raise InvalidRequest("text is empty; send some", param="text")
    return await _embed_one(request, text)


async def prepare_and_embed(request: Request[Fields]) -> Answer:
    """Embed the text that the template makes of a record."""
    text = await request.work(lambda: _prepare(request, request.fields.model_dump()))
    return await _embed_one(request, text, prepared_text=text)


async def reindex(request: Request[Fields]) -> Answer:
    """Embed a record, and say whose vector it is."""
    record = await request.work(request.fields.model_dump)
    text = await request.work(lambda: _prepare(request, record))
    kind, name = record["entity_type"], record["entity_id"]
    return await _embed_one(
        request,
        text,
        prepared_text=text,
        entity_id=name,
        entity_type=kind,
        message=f"Reindex successful for {kind} '{name}'. Update embedding in your database.",
    )


async def batch(request: Request[Fields]) -> Answer:
    """Embed records; one that cannot be embedded fails alone."""
    settings = request.settings
    given, good, errors = await request.work(lambda: _prepare_all(request))
    model = _model(request)
    dimensions = model.embedder().facts.dimension
    vectors, cached = await _embed_texts(request, good) if good else ((), [])
    rows = zip(vectors, cached, strict=True)
    results: list[Json] = []
    for record, error in zip(given, errors, strict=True):
        vector, known = next(rows) if error is None else (_NO_VECTOR, False)
        results.append(_result(record, vector, error, cached=known))
    body: Json = {"results": results, "dimensions": dimensions, **_counts(results)}
    body |= model_identity(settings, model)
    return await _written(request, body, numbers=len(good) * (dimensions or 0))


async def _written(request: Request[Any], body: Json, *, numbers: int) -> Answer:
    """Write an answer with so many numbers; in a thread if they are many."""
    write = partial(Answer.json, body)
    if numbers <= _NUMBERS_AT_ONCE:
        return write()
    return await request.service.threads.run(write, deadline=request.call.deadline)


def _prepare_all(request: Request[Fields]) -> tuple[list[Json], list[str], list[str | None]]:
    """Return the records, the texts of the good ones, and what is wrong with each of them."""
    settings, given = request.settings, _records_of(request)
    room = Room(settings.max_request_tokens)
    good: list[str] = []
    errors: list[str | None] = []
    for record in given:
        left = room.characters
        text = record_text.prepare(settings.records, record, room)
        error = _fault(text, settings.max_text_characters)
        errors.append(error)
        if error is None:
            good.append(text)
        else:
            room.characters = left
    return given, good, errors


def _result(record: Json, vector: Any, error: str | None, *, cached: bool) -> Json:
    return {
        "entity_id": record["entity_id"],
        "embedding": vector,
        "cached": cached,
        "success": error is None,
        "error": error,
    }


def _counts(results: list[Json]) -> dict[str, int]:
    successful = sum(result["success"] for result in results)
    return {
        "total": len(results),
        "successful": successful,
        "success": successful,
        "failed": len(results) - successful,
        "cached_count": sum(result["cached"] for result in results),
    }


def _model(request: Request[Any]) -> ServedModel:
    return request.models.default_for(scores=False)


def _prepare(request: Request[Fields], record: Json) -> str:
    settings = request.settings
    text = record_text.prepare(settings.records, record, Room(settings.max_request_tokens))
    if not text:
        raise InvalidRequest(_EMPTY)
    return text


def _records_of(request: Request[Fields]) -> list[Json]:
    """Return the records of a batch. Raises `InvalidRequest` for none, two lists, or too many."""
    sent = request.fields.model_dump(exclude_none=False)
    lists = {name: sent[name] for name in ("items", "entities") if sent[name] is not None}
    if len(lists) != 1:
        raise InvalidRequest("send either items or entities: a list of records", param="items")
    ((name, given),) = lists.items()
    limit = request.settings.max_inputs
    if len(given) > limit:
        raise InvalidRequest(
            f"{len(given)} {name}; this server takes at most {limit}: send fewer",
            param=name,
            code="too_many_inputs",
        )
    return list(given)


async def _embed_one(request: Request[Any], text: str, **more: Any) -> Answer:
    vectors, cached = await _embed_texts(request, [text])
    body = {"embedding": vectors[0], "dimensions": vectors.shape[1], "cached": cached[0]}
    body |= model_identity(request.settings, _model(request)) | more
    answer: Answer = await request.work(lambda: Answer.json(body))
    return answer


async def _embed_texts(request: Request[Any], texts: list[str]) -> tuple[Floats, list[bool]]:
    # These routes have no field for it, and never refused an over-long text.
    truncate = request.settings.default_truncate
    if truncate is Truncate.ERROR:
        truncate = Truncate.MODEL
    answer = await embedding.compute(
        request, EmbedJob(_model(request).name, texts, truncate=truncate)
    )
    return np.asarray(answer.dense, np.float32), answer.cached


def _fault(text: str, limit: int | None) -> str | None:
    """Return why an item cannot be embedded, or None."""
    if not text:
        return _EMPTY
    if limit is not None and len(text) > limit:
        return f"the text has {len(text)} characters; this server takes at most {limit}"
    return None


def dialect(settings: Settings) -> Dialect:
    """Return the operations; the shapes of records are made from the settings."""
    record = _record("RecordRequest", settings)
    stored = _record(
        "ReindexRequest",
        settings,
        entity_id=(ShortText, ...),
        entity_type=(ShortText, settings.records.entity_type),
    )
    texts = [name for name, field in settings.records.fields.items() if field.type == "text"]
    example = dict.fromkeys(texts[:1], "A bright flat")
    one = {"entity_id": "1", **example}
    several: dict[str, Any] = {
        "request": _batch(settings),
        "response": BatchResponse,
        "example": {"items": [one]},
    }

    def operation(path: str, handle: Any, summary: str, **shapes: Any) -> Operation:
        return Operation(path, handle, summary, names={Name.INPUT: "text"}, **shapes)

    return Dialect(
        "Records",
        OPENAI,
        (
            operation(
                "/embed",
                embed,
                "Embed a text",
                request=TextRequest,
                response=TextEmbedding,
                example={"text": "Hello, world"},
                when=Sends("text"),
            ),
            operation(
                "/prepare-and-embed",
                prepare_and_embed,
                "Embed a record",
                request=record,
                response=RecordEmbedding,
                example=example,
            ),
            operation(
                "/reindex",
                reindex,
                "Embed a stored record anew",
                request=stored,
                response=Reindexed,
                example=one,
            ),
            operation("/batch", batch, "Embed records", **several),
            operation("/reindex-batch", batch, _ANEW, alias_of="/batch", **several),
            MODEL_INFO,
        ),
    )

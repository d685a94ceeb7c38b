"""Records and single texts, as matching-service spoke: `/embed`, `/prepare-and-embed`, `/batch`, `/reindex`.

The fields of a record and the text made of them are settings (`records`); an item of a batch fails alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, Field, create_model
from starlette.responses import JSONResponse, Response

from embedding_service.dialects import wire
from embedding_service.dropin import record_text
from embedding_service.errors import InvalidRequest
from embedding_service.http import problems
from embedding_service.http.middleware import exchange_of
from embedding_service.service.checksum import UNKNOWN, model_checksum
from embedding_service.types import EmbedJob, FieldNames, Truncate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedding_service.service.lifecycle import Lifecycle
    from embedding_service.service.models import ServedModel
    from embedding_service.settings.gateway import Settings
    from embedding_service.settings.presets import RecordField
    from embedding_service.types import Floats

NO_VECTOR: list[float] = []
EMPTY = "All fields are empty"
_TYPES: dict[str, Any] = {"integer": int, "number": float, "mapping": dict[str, Any]}
SQL_EXAMPLES = {
    "create": "ALTER TABLE items ADD COLUMN embedding vector({dimensions});",
    "index": "CREATE INDEX ON items USING hnsw (embedding vector_cosine_ops);",
    "search": "SELECT id, 1 - (embedding <=> $1) AS similarity FROM items ORDER BY embedding <=> $1 LIMIT 10;",
}


class TextRequest(wire.Fields):
    """One text to embed."""

    text: str


class TextEmbedding(BaseModel):
    """One vector, and what it was made with."""

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


class ModelInfo(BaseModel):
    """The model, its limits and its cache."""

    model_name: str
    model: str
    model_version: str
    model_checksum: str
    dimensions: int | None
    model_load_time_seconds: float
    limits: dict[str, float | None]
    cache: dict[str, Any]
    sql_examples: dict[str, str]


def _field(field: RecordField) -> tuple[Any, Any]:
    """Return a record's field as pydantic takes it; numbers may come as text, as they could before."""
    kind = _TYPES.get(field.type)
    if kind is None:
        return (Annotated[str, Field(max_length=field.max_length)] | None, None)
    limits: dict[str, Any] = {"allow_inf_nan": False} if field.type == "number" else {}
    kind = Annotated[kind, Field(strict=field.type == "mapping", **limits), BeforeValidator(_no_boolean)]
    return (kind | None, None)


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a boolean is no number")  # noqa: TRY004 - which pydantic would not take for a wrong field
    return value


def _item_fields(name: str, fields: dict[str, RecordField], **more: Any) -> type[wire.Fields]:
    shape = {**{name: _field(field) for name, field in fields.items()}, **more}
    model: type[wire.Fields] = create_model(name, __base__=wire.Fields, __doc__="A record.", **shape)
    return model


class Endpoints:
    """What the routes do; the shapes of records are made from the settings."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self.lifecycle = lifecycle
        self.service = lifecycle.service
        self.settings = lifecycle.service.settings
        fields = self.settings.records.fields
        self.record = _item_fields("RecordRequest", fields)
        self.stored_record = _item_fields("ReindexRequest", fields, entity_id=(str, ...), entity_type=(str, "entity"))
        item = _item_fields("RecordItem", fields, entity_id=(str, ...))
        items: Any = (Annotated[list[item], Field(min_length=1)] | None, None)  # type: ignore[valid-type]
        lists = {"items": items, "entities": items}
        self.records = create_model("BatchRequest", __base__=wire.Fields, __doc__="Records.", **lists)

    async def embed(self, request: Request) -> Response:
        """Embed a text as it is."""
        body, _ = await wire.read_request(request, TextRequest)
        if not body.text.strip():
            raise InvalidRequest("text is empty; send some", param="text")
        return await self._embed_one(request, body.text)

    async def prepare_and_embed(self, request: Request) -> Response:
        """Embed the text that the template makes of a record."""
        body, _ = await wire.read_request(request, self.record)
        text = self._prepare(body.model_dump())
        return await self._embed_one(request, text, prepared_text=text)

    async def reindex(self, request: Request) -> Response:
        """Embed a record, and say whose vector it is."""
        body, _ = await wire.read_request(request, self.stored_record)
        record = body.model_dump()
        text, kind, name = self._prepare(record), record["entity_type"], record["entity_id"]
        message = f"Reindex successful for {kind} '{name}'. Update embedding in your database."
        more = {"prepared_text": text, "entity_id": name, "entity_type": kind, "message": message}
        return await self._embed_one(request, text, **more)

    async def batch(self, request: Request) -> Response:
        """Embed records; one that cannot be embedded fails alone."""
        given = await self._read_batch(request)
        texts = [record_text.prepare(self.settings.records, record) for record in given]
        errors = [_fault(text, self.settings.max_text_characters) for text in texts]
        good = [text for text, error in zip(texts, errors, strict=True) if error is None]
        model = self._model()
        dimensions = model.embedder().facts.dimension
        rows: Iterator[tuple[Any, bool]] = iter(())
        if good:
            rows = zip(*await self._embed_texts(request, good), strict=True)
        results: list[dict[str, Any]] = []
        for record, error in zip(given, errors, strict=True):
            vector, cached = next(rows) if error is None else (NO_VECTOR, False)
            result = {"entity_id": record["entity_id"], "embedding": vector, "cached": cached}
            results.append(result | {"success": error is None, "error": error})
        counts = {"total": len(given), "successful": len(good), "success": len(good), "failed": len(given) - len(good)}
        counts["cached_count"] = sum(result["cached"] for result in results)
        return _json({"results": results, "dimensions": dimensions, **counts, **await _identity(self.settings, model)})

    async def model_info(self) -> dict[str, Any]:
        """Tell what vectors are made with, within which limits."""
        model, cache, settings = self._model(), self.service.models.cache, self.settings
        dimensions = model.facts.dimension if model.facts else None
        limits = {"max_batch_size": settings.max_inputs, "max_text_length": settings.max_text_characters}
        limits |= {name: field.max_length for name, field in settings.records.fields.items() if field.max_length}
        return {
            "model_name": model.name,
            "model": model.name,
            **await _identity(settings, model),
            "dimensions": dimensions,
            "model_load_time_seconds": round(model.load_s, 2),
            "limits": limits,
            "cache": {
                "enabled": cache is not None,
                "max_size": settings.cache_max_entries,
                "ttl_seconds": settings.cache_ttl_s,
            },
            "sql_examples": {name: sql.format(dimensions=dimensions) for name, sql in SQL_EXAMPLES.items()},
        }

    async def health(self) -> Response:
        """Tell the model and the cache; 503 until the model is loaded and its checksum known."""
        model, cache = self._model(), self.service.models.cache
        identity = await _identity(self.settings, model, wait=False)
        ready = self.lifecycle.ready and identity["model_checksum"] != UNKNOWN
        body = {
            "status": "healthy" if ready else "reading weights" if self.lifecycle.ready else str(self.lifecycle.phase),
            "model": model.name,
            "dimensions": model.facts.dimension if model.facts else None,
            "version": identity["model_version"],
            "model_checksum": identity["model_checksum"],
            "cache_enabled": cache is not None,
            "cache_size": cache.stats().entries if cache else 0,
        }
        return JSONResponse(body, 200 if ready else 503)

    def _model(self) -> ServedModel:
        return self.service.models.default_for(scores=False)

    def _prepare(self, record: dict[str, Any]) -> str:
        text = record_text.prepare(self.settings.records, record)
        if not text:
            raise InvalidRequest(EMPTY)
        return text

    async def _read_batch(self, request: Request) -> list[dict[str, Any]]:
        """Return the records of a request. Raises `InvalidRequest` for none, two lists, or too many."""
        body, _ = await wire.read_request(request, self.records)
        sent = {name: items for name, items in body.model_dump().items() if items is not None}
        if len(sent) != 1:
            raise InvalidRequest("send either items or entities: a list of records", param="items")
        ((name, given),) = sent.items()
        if len(given) > (limit := self.settings.max_inputs):
            raise InvalidRequest(f"{len(given)} {name}; this server takes at most {limit}", param=name)
        return list(given)

    async def _embed_one(self, request: Request, text: str, **more: Any) -> Response:
        vectors, cached = await self._embed_texts(request, [text])
        body = {"embedding": vectors[0], "dimensions": vectors.shape[1], "cached": cached[0]}
        return _json(body | await _identity(self.settings, self._model()) | more)

    async def _embed_texts(self, request: Request, texts: list[str]) -> tuple[Floats, list[bool]]:
        exchange, model = exchange_of(request.scope), self._model().name
        exchange.log |= {"model": model, "texts": len(texts)}
        truncate = _truncate(self.settings.default_truncate)
        job = EmbedJob(model, texts, truncate=truncate, names=FieldNames(inputs="text"))
        answer = await self.service.embed(job, exchange.call)
        exchange.log |= {"tokens": answer.total_tokens, "engine_s": round(answer.engine_s, 4)}
        return np.asarray(answer.dense, np.float32), answer.cached


def router(lifecycle: Lifecycle) -> APIRouter:
    """Return the routes of this dialect that no other has, and `/embed`."""
    return _routes(Endpoints(lifecycle))


def preset(lifecycle: Lifecycle) -> APIRouter:
    """Return the routes that are this dialect's under its preset only."""
    do = Endpoints(lifecycle)
    routes = _routes(do)
    routes.get("/health", summary="Health of the model")(do.health)
    return routes


def _routes(do: Endpoints) -> APIRouter:
    routes = APIRouter(tags=["Records"])
    posts: list[tuple[str, Callable[..., Any], str, type[wire.Fields], type[BaseModel]]] = [
        ("/embed", do.embed, "Embed a text", TextRequest, TextEmbedding),
        ("/prepare-and-embed", do.prepare_and_embed, "Embed a record", do.record, RecordEmbedding),
        ("/reindex", do.reindex, "Embed a stored record anew", do.stored_record, Reindexed),
        ("/batch", do.batch, "Embed records", do.records, BatchResponse),
        ("/reindex-batch", do.batch, "Embed stored records anew", do.records, BatchResponse),
    ]
    for path, endpoint, summary, request, response in posts:
        wire.post(routes, path, endpoint, (request, response), summary=summary, errors=problems.OPENAI)
    routes.get("/model-info", summary="The model, its limits, its cache", response_model=ModelInfo)(do.model_info)
    return routes


async def _identity(settings: Settings, model: ServedModel, *, wait: bool = True) -> dict[str, str]:
    checksum = await model_checksum(settings, model, wait=wait)
    revision = model.options.revision or (model.facts.revision if model.facts else None)
    return {"model_version": revision or checksum, "model_checksum": checksum}


def _truncate(default: Truncate) -> Truncate:
    """Return how over-long texts are cut: these routes have no field for it, and never refused one."""
    return Truncate.RIGHT if default is Truncate.ERROR else default


def _fault(text: str, limit: int | None) -> str | None:
    """Return why an item cannot be embedded, or None."""
    if not text:
        return EMPTY
    if limit is not None and len(text) > limit:
        return f"the text has {len(text)} characters; this server takes at most {limit}"
    return None


def _json(body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

"""BGE-M3's vectors as vector stores take them: `/v1/sparse-embeddings`, `/v1/hybrid-embeddings`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from embedding_service.dialects import embedding, wire
from embedding_service.http.middleware import exchange_of
from embedding_service.http.problems import OPENAI
from embedding_service.service.sparse import hash_indices
from embedding_service.types import EmbedJob, Output, Truncate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedding_service.service.service import EmbeddingService
    from embedding_service.settings.gateway import Settings
    from embedding_service.types import Embeddings, Sparse


class SparseVector(BaseModel):
    """Lexical weights: `indices` sorted and unique, ready to upsert."""

    indices: list[int]
    values: list[float]
    mapping: Literal["tokenizer", "hash"]
    index_space: int = Field(description="All indices are below this.")


class SparseItem(BaseModel):
    """One text's weights."""

    index: int
    sparse: SparseVector


class SparseResponse(BaseModel):
    """The answer of `/v1/sparse-embeddings`."""

    object: Literal["list"] = "list"
    model: str
    data: list[SparseItem]
    usage: embedding.Usage


class HybridItem(SparseItem):
    """One text's dense vector and weights, from one forward pass."""

    dense: list[float]


class HybridResponse(BaseModel):
    """The answer of `/v1/hybrid-embeddings`."""

    object: Literal["list"] = "list"
    model: str
    data: list[HybridItem]
    usage: embedding.Usage


class SparseRequest(wire.Fields):
    """Texts to weigh; unknown fields are ignored and named in a header."""

    input: embedding.Input
    model: str | None = None
    truncate: embedding.TruncateField = Truncate.ERROR


def router(service: EmbeddingService, settings: Settings) -> APIRouter:
    """Return the routes of this dialect."""
    routes = APIRouter(tags=["BGE-M3"])
    mapping, space = settings.sparse_token_mapping, settings.sparse_index_space
    hashed = mapping == "hash"

    def sparse_json(sparse: Sparse) -> bytes:
        if hashed:
            sparse = hash_indices(sparse, space=space)
        body = {
            "indices": sparse.indices,
            "values": sparse.values,
            "mapping": mapping,
            "index_space": space,
        }
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)

    def render(answer: Embeddings) -> Iterator[bytes]:
        yield b'{"object":"list","model":%s,"data":[' % orjson.dumps(answer.model)
        for index, sparse in enumerate(answer.sparse or []):
            yield b'%s{"index":%d' % (b"," if index else b"", index)
            if answer.dense is not None:
                yield b',"dense":' + orjson.dumps(answer.dense[index], option=orjson.OPT_SERIALIZE_NUMPY)
            yield b',"sparse":%s}' % sparse_json(sparse)
        yield b'],"usage":%s}' % orjson.dumps(embedding.usage(answer))

    async def answer(request: Request, outputs: frozenset[Output]) -> Response:
        exchange = exchange_of(request.scope)
        fields, ignored = await wire.read_request(request, SparseRequest)
        truncate = fields.truncate if "truncate" in fields.model_fields_set else settings.default_truncate
        job = EmbedJob(fields.model, fields.input, outputs, truncate=truncate)
        return await embedding.answer(service, exchange, job, render, ignored)

    async def sparse_embeddings(request: Request) -> Response:
        return await answer(request, frozenset({Output.SPARSE}))

    async def hybrid_embeddings(request: Request) -> Response:
        return await answer(request, frozenset({Output.DENSE, Output.SPARSE}))

    kinds: list[tuple[str, Any, type[BaseModel]]] = [
        ("sparse", sparse_embeddings, SparseResponse),
        ("hybrid", hybrid_embeddings, HybridResponse),
    ]
    for kind, endpoint, response in kinds:
        path, shapes, name = f"/v1/{kind}-embeddings", (SparseRequest, response), f"create_{kind}_embeddings"
        summary = f"Embed texts as {kind} vectors"
        wire.post(routes, path, endpoint, shapes, summary=summary, errors=OPENAI, operation_id=name)
    return routes

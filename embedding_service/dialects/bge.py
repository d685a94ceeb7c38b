"""BGE-M3's vectors as vector stores take them: `/v1/sparse-embeddings`, `/v1/hybrid-embeddings`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import orjson
from pydantic import BaseModel, Field

from embedding_service.dialects import embedding
from embedding_service.dialects.dialect import Answer, Dialect, Operation, Request
from embedding_service.dialects.errors import OPENAI
from embedding_service.dialects.fields import Fields
from embedding_service.service.vectors import hash_indices
from embedding_service.types import EmbedJob, Output, Truncate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedding_service.dialects.dialect import Handler
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


class SparseRequest(Fields):
    """Texts to weigh; unknown fields are ignored and named in a header."""

    input: embedding.Input
    model: str | None = None
    truncate: embedding.TruncateField = Truncate.ERROR


def _render(answer: Embeddings, settings: Settings) -> Iterator[bytes]:
    yield b'{"object":"list","model":%s,"data":' % orjson.dumps(answer.model)
    yield from embedding.json_list(_items(answer, settings))
    yield b',"usage":%s}' % orjson.dumps(embedding.usage(answer))


def _items(answer: Embeddings, settings: Settings) -> Iterator[bytes]:
    for index, sparse in enumerate(answer.sparse or []):
        dense = b""
        if answer.dense is not None:
            dense = b'"dense":%s,' % embedding.vector_json(answer.dense[index])
        weights = _sparse_json(sparse, settings)
        yield b'{"index":%d,%s"sparse":%s}' % (index, dense, weights)


def _sparse_json(sparse: Sparse, settings: Settings) -> bytes:
    mapping = settings.sparse_token_mapping
    if mapping == "hash":
        sparse = hash_indices(sparse, space=settings.sparse_index_space)
    body = {
        "indices": sparse.indices,
        "values": sparse.values,
        "mapping": mapping,
        "index_space": settings.sparse_index_space,
    }
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


async def _embed(request: Request[SparseRequest], outputs: frozenset[Output]) -> Answer:
    fields, truncate = request.fields, request.settings.default_truncate
    if "truncate" in fields.model_fields_set:
        truncate = fields.truncate
    model = fields.model
    if model is None and request.settings.echo_model:
        model = request.models.default_for(scores=False).name  # and not its alias
    job = EmbedJob(model, fields.input, outputs, truncate=truncate)
    return await embedding.respond(request, job, partial(_render, settings=request.settings))


async def create_sparse_embeddings(request: Request[SparseRequest]) -> Answer:
    """Give each input its lexical weights."""
    return await _embed(request, frozenset({Output.SPARSE}))


async def create_hybrid_embeddings(request: Request[SparseRequest]) -> Answer:
    """Give each input its dense vector and its lexical weights, from one pass."""
    return await _embed(request, frozenset({Output.DENSE, Output.SPARSE}))


def _operation(kind: str, handle: Handler, response: type[BaseModel]) -> Operation:
    return Operation(
        f"/v1/{kind}-embeddings",
        handle,
        f"Embed texts as {kind} vectors",
        id=f"create_{kind}_embeddings",
        request=SparseRequest,
        example={"input": ["Hello, world"]},
        response=response,
    )


DIALECT = Dialect(
    "BGE-M3",
    OPENAI,
    (
        _operation("sparse", create_sparse_embeddings, SparseResponse),
        _operation("hybrid", create_hybrid_embeddings, HybridResponse),
    ),
)

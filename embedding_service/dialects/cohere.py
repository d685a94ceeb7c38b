"""Cohere's `/v2/embed`: all number formats of the same vectors from one pass.

https://docs.cohere.com/v2/reference/embed; how the formats are made stands at `core.vectors.quantise`.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from embedding_service.dialects import embedding, wire
from embedding_service.http import problems
from embedding_service.http.middleware import exchange_of
from embedding_service.service import vectors
from embedding_service.types import EmbedDtype, EmbedJob, Encoding, FieldNames, InputType, Truncate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedding_service.service.service import EmbeddingService
    from embedding_service.types import Embeddings

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
TRUNCATE = {"NONE": Truncate.ERROR, "START": Truncate.LEFT, "END": Truncate.RIGHT}
# `base64` is float32 too, little-endian.
DTYPES = {"float": EmbedDtype.FLOAT32, "base64": EmbedDtype.FLOAT32}


class CohereEmbedRequest(wire.Fields):
    """Texts to embed, and in which number formats."""

    model: str
    texts: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    input_type: Literal["search_query", "search_document", "classification", "clustering"] | None = Field(
        None, description="search_query selects the query prompt, all others the document prompt."
    )
    embedding_types: list[EmbeddingType] | None = Field(None, description="Default: float.")
    output_dimension: int | None = Field(None, ge=1, le=embedding.TOKEN_LIMIT)
    truncate: Literal["NONE", "START", "END"] | None = Field(None, description="Which end is cut off; default END.")

    def job(self) -> EmbedJob:
        """Return the request free of dialect: unit vectors, from which every format is made."""
        input_type = None
        if self.input_type is not None:
            input_type = InputType.QUERY if self.input_type == "search_query" else InputType.DOCUMENT
        return EmbedJob(
            model=self.model,
            inputs=list(self.texts),
            dimensions=self.output_dimension,
            input_type=input_type,
            truncate=TRUNCATE[self.truncate or "END"],
            more_dtypes=frozenset(EmbedDtype(kind) for kind in self.embedding_types or () if kind not in DTYPES),
            names=FieldNames(inputs="texts", dimensions="output_dimension", truncate="START or END"),
        )


class EmbeddingsByType(BaseModel):
    """Vectors in each format that was asked for."""

    float_: list[list[float]] | None = Field(None, alias="float")
    int8: list[list[int]] | None = None
    uint8: list[list[int]] | None = None
    binary: list[list[int]] | None = None
    ubinary: list[list[int]] | None = None
    base64: list[str] | None = None


class CohereEmbedResponse(BaseModel):
    """The answer, in the order of `texts`."""

    id: str
    embeddings: EmbeddingsByType
    texts: list[str]
    meta: dict[str, dict[str, str | int]]
    response_type: Literal["embeddings_by_type"] = "embeddings_by_type"


def _render(answer: Embeddings, fields: CohereEmbedRequest) -> Iterator[bytes]:
    dense = np.asarray(answer.dense, np.float32)
    yield b'{"id":"%s","embeddings":{' % str(uuid.uuid4()).encode()
    for place, kind in enumerate(dict.fromkeys(fields.embedding_types or ["float"])):
        yield b'%s"%s":[' % (b"," if place else b"", kind.encode())
        encoding = Encoding.BASE64 if kind == "base64" else Encoding.FLOAT
        for index in range(len(dense)):
            row = vectors.quantise(dense[index], DTYPES.get(kind) or EmbedDtype(kind), answer.ranges)
            yield (b"," if index else b"") + wire.vector_json(row, encoding)
        yield b"]"
    units = {"input_tokens": answer.total_tokens}
    rest = {
        "texts": fields.texts,
        "meta": {"api_version": {"version": "2"}, "billed_units": units},
        "response_type": "embeddings_by_type",
    }
    yield b"}," + orjson.dumps(rest)[1:]


def router(service: EmbeddingService) -> APIRouter:
    """Return the routes of this dialect; `/v2/rerank` is in `api.rerank`."""
    routes = APIRouter(tags=["Cohere"])

    async def embed(request: Request) -> Response:
        fields, ignored = await wire.read_request(request, CohereEmbedRequest)
        exchange = exchange_of(request.scope)
        return await embedding.answer(service, exchange, fields.job(), lambda answer: _render(answer, fields), ignored)

    shapes = (CohereEmbedRequest, CohereEmbedResponse)
    wire.post(routes, "/v2/embed", embed, shapes, summary="Embed texts in several formats", errors=problems.COHERE)
    return routes

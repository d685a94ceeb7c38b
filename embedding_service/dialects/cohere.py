"""Cohere's `/v2/embed`: all number formats of the same vectors from one pass.

https://docs.cohere.com/v2/reference/embed; how the formats are made is said at
`service.vectors.quantise`. `/v2/rerank` is in `dialects/rerank.py`, beside `/v1/rerank`.
"""

from __future__ import annotations

import uuid
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import orjson
from pydantic import BaseModel, Field

from embedding_service.dialects import embedding
from embedding_service.dialects.dialect import Answer, Dialect, Operation, Request
from embedding_service.dialects.errors import MESSAGE
from embedding_service.dialects.fields import Fields
from embedding_service.service import vectors
from embedding_service.types import EmbedDtype, EmbedJob, Encoding, InputType, Truncate
from embedding_service.types import Field as Name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedding_service.types import Embeddings, Floats

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
_TRUNCATE = {"NONE": Truncate.ERROR, "START": Truncate.LEFT, "END": Truncate.RIGHT}
_INPUT_TYPES = {
    "search_query": InputType.QUERY,
    "search_document": InputType.DOCUMENT,
    "classification": InputType.DOCUMENT,
    "clustering": InputType.DOCUMENT,
}
# `base64` is float32 too, little-endian.
_DTYPES = {"float": EmbedDtype.FLOAT32, "base64": EmbedDtype.FLOAT32}


class CohereEmbedRequest(Fields):
    """Texts to embed, and in which number formats."""

    model: str
    texts: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    input_type: (
        Literal["search_query", "search_document", "classification", "clustering"] | None
    ) = Field(
        None, description="search_query selects the query prompt, all others the document prompt."
    )
    embedding_types: list[EmbeddingType] | None = Field(None, description="Default: float.")
    output_dimension: int | None = Field(None, ge=1, le=embedding.TOKEN_LIMIT)
    truncate: Literal["NONE", "START", "END"] | None = Field(
        None, description="Which end is cut off; default END."
    )

    @property
    def kinds(self) -> list[str]:
        """The formats that are wanted, each once."""
        return list(dict.fromkeys(self.embedding_types or ["float"]))

    def job(self) -> EmbedJob:
        """Return the request free of dialect: unit vectors, from which every format is made."""
        return EmbedJob(
            model=self.model,
            inputs=list(self.texts),
            dimensions=self.output_dimension,
            input_type=_INPUT_TYPES[self.input_type] if self.input_type else None,
            truncate=_TRUNCATE[self.truncate or "END"],
            more_dtypes=frozenset(map(EmbedDtype, set(self.kinds) - _DTYPES.keys())),
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


class CohereEmbedV1Request(CohereEmbedRequest):
    """The first version: the model may be left out, and a bare list of floats is the default."""

    model: str | None = None  # type: ignore[assignment]


class CohereEmbedV1Response(BaseModel):
    """The answer of the first version: `embeddings` is a list unless types were asked for."""

    id: str
    embeddings: list[list[float]] | EmbeddingsByType
    texts: list[str]
    meta: dict[str, dict[str, str | int]]
    response_type: Literal["embeddings_floats", "embeddings_by_type"]


def _render(answer: Embeddings, fields: CohereEmbedRequest, version: str) -> Iterator[bytes]:
    dense = np.asarray(answer.dense, np.float32)
    bare = version == "1" and not fields.embedding_types
    yield b'{"id":"%s","embeddings":' % str(uuid.uuid4()).encode()
    if bare:
        yield from embedding.json_list(_vectors(dense, "float", None))
    else:
        yield from _by_type(dense, fields.kinds, answer.ranges)
    rest = {
        "texts": fields.texts,
        "meta": {
            "api_version": {"version": version},
            "billed_units": {"input_tokens": answer.total_tokens},
        },
        "response_type": "embeddings_floats" if bare else "embeddings_by_type",
    }
    yield b"," + orjson.dumps(rest)[1:]


def _by_type(dense: Floats, kinds: list[str], ranges: Floats | None) -> Iterator[bytes]:
    for place, kind in enumerate(kinds):
        yield b'%s"%s":' % (b"," if place else b"{", kind.encode())
        yield from embedding.json_list(_vectors(dense, kind, ranges))
    yield b"}"


def _vectors(dense: Floats, kind: str, ranges: Floats | None) -> Iterator[bytes]:
    """Write each vector in one format."""
    dtype = _DTYPES.get(kind) or EmbedDtype(kind)
    encoding = Encoding.BASE64 if kind == "base64" else Encoding.FLOAT
    for vector in dense:
        yield embedding.vector_json(vectors.quantise(vector, dtype, ranges), encoding)


async def embed(request: Request[CohereEmbedRequest]) -> Answer:
    """Give each text one vector, in every format that is wanted."""
    fields = request.fields
    write = partial(_render, fields=fields, version="2")
    return await embedding.respond(request, fields.job(), write)


async def embed_v1(request: Request[CohereEmbedV1Request]) -> Answer:
    """Give each text one vector, as a bare list unless formats are named."""
    fields = request.fields
    if fields.model is None:
        fields = fields.model_copy(update={"model": _default_name(request)})
    write = partial(_render, fields=fields, version="1")
    return await embedding.respond(request, fields.job(), write)


def _default_name(request: Request[Any]) -> str:
    """Return the name of the first model that embeds."""
    return request.models.default_for(scores=False).name


_NAMES = {
    Name.INPUT: "texts",
    Name.DIMENSIONS: "output_dimension",
    Name.TRUNCATE: "truncate to START or END",
}
DIALECT = Dialect(
    "Cohere",
    MESSAGE,
    (
        Operation(
            path="/v2/embed",
            handle=embed,
            summary="Embed texts in several formats",
            request=CohereEmbedRequest,
            example={"texts": ["Hello, world"], "embedding_types": ["float"]},
            response=CohereEmbedResponse,
            names=_NAMES,
        ),
        Operation(
            path="/v1/embed",
            handle=embed_v1,
            summary="Embed texts, in Cohere's first version",
            request=CohereEmbedV1Request,
            example={"texts": ["Hello, world"]},
            response=CohereEmbedV1Response,
            names=_NAMES,
        ),
    ),
)

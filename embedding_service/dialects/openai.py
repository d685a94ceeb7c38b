"""OpenAI's dialect: `/v1/embeddings`, `/v1/models` and the same without the prefix."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import orjson
from pydantic import BaseModel, Field

from embedding_service.dialects import embedding
from embedding_service.dialects.dialect import Answer, Dialect, Operation, Request, get
from embedding_service.dialects.embedding import matrix_json, vector_json
from embedding_service.dialects.errors import OPENAI
from embedding_service.dialects.fields import EmptyIsNone, Fields, Lax
from embedding_service.errors import InvalidRequest
from embedding_service.types import EmbedDtype, EmbedJob, Encoding, InputType, Output, Truncate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from embedding_service.dialects.dialect import Tree
    from embedding_service.engine.protocol import ModelFacts
    from embedding_service.service.models import ServedModel
    from embedding_service.types import Embeddings

_DENSE = frozenset({Output.DENSE})
_KINDS = frozenset({"return_dense", "return_sparse", "return_colbert"})


class EmbeddingsRequest(Fields):
    """Inputs to embed, and how.

    Fields below `user` go beyond OpenAI; unknown ones are ignored and named in a header.
    """

    input: embedding.Input
    model: str | None = Field(None, description="A served model or one of its aliases.")
    encoding_format: Annotated[Annotated[Encoding, Lax] | None, EmptyIsNone] = Field(
        None, description="float (default), or base64 of little-endian numbers."
    )
    dimensions: int | None = Field(
        None, ge=1, le=embedding.TOKEN_LIMIT, description="Shorter vectors, where the model allows."
    )
    user: str | None = Field(None, description="Accepted, and not used.")
    instruction: str | None = Field(
        None, description="Task for an instructed model; put before every input."
    )
    input_type: Annotated[InputType, Lax] | None = Field(
        None, description="Selects the model's prompt."
    )
    prompt_name: str | None = Field(None, description="One of the model's named prompts.")
    truncate: embedding.TruncateField = Field(
        Truncate.ERROR,
        description="What to do with an over-long input; the server may have another default.",
    )
    normalize: bool = Field(default=True, description="Scale vectors to length 1.")
    embed_dtype: Annotated[EmbedDtype, Lax] = Field(
        EmbedDtype.FLOAT32, description="Number format of the vectors."
    )
    return_dense: bool | None = Field(
        None, description="With any return_* field, the answer names each kind; default true."
    )
    return_sparse: bool | None = Field(
        None, description="Lexical weights by token id; default false."
    )
    return_colbert: bool | None = Field(
        None, description="One vector for each token; default false."
    )

    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        le=embedding.TOKEN_LIMIT,
        description="vLLM's: cut inputs to so many tokens; -1 for the model's length.",
    )
    truncation_side: Literal["left", "right"] | None = Field(
        None, description="vLLM's: which end that cuts off; default right."
    )

    def job(self, default_truncate: Truncate) -> EmbedJob:
        """Return the request free of dialect. Raises `InvalidRequest` if it asks for nothing."""
        return EmbedJob(
            model=self.model,
            inputs=self.input,
            outputs=self.outputs(),
            dimensions=self.dimensions,
            instruction=self.instruction,
            prompt_name=self.prompt_name,
            input_type=self.input_type,
            truncate=self._truncate(default_truncate),
            max_tokens=None if self.truncate_prompt_tokens == -1 else self.truncate_prompt_tokens,
            normalize=self.normalize,
            embed_dtype=self.embed_dtype,
            encoding=self.encoding,
        )

    def _truncate(self, default: Truncate) -> Truncate:
        if "truncate" in self.model_fields_set:
            return self.truncate
        if self.truncate_prompt_tokens is None:
            return default
        return Truncate(self.truncation_side or Truncate.RIGHT)

    @property
    def encoding(self) -> Encoding:
        """The encoding to use; null means the default."""
        return self.encoding_format or Encoding.FLOAT

    @property
    def names_kinds(self) -> bool:
        """Whether the answer goes beyond OpenAI's shape."""
        return not _KINDS.isdisjoint(self.model_fields_set)  # nulls are left out

    def outputs(self) -> frozenset[Output]:
        """Return the kinds of vector that were asked for."""
        if not self.names_kinds:
            return _DENSE
        asked = {
            Output.DENSE: self.return_dense is not False,
            Output.SPARSE: self.return_sparse,
            Output.COLBERT: self.return_colbert,
        }
        outputs = frozenset(output for output, wanted in asked.items() if wanted)
        if not outputs:
            raise InvalidRequest(
                "At least one vector type must be requested: "
                "return_dense, return_sparse or return_colbert",
                param="return_dense",
            )
        return outputs

    def with_all_kinds(self) -> EmbeddingsRequest:
        """Return the same request, with every kind of vector that it does not name."""
        unnamed = {name: True for name in _KINDS if getattr(self, name) is None}
        return self.model_copy(update=unnamed)


class EmbeddingItem(BaseModel):
    """One vector; `embedding` is a string for base64.

    The other fields come only with a return_* field.
    """

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str | None = Field(
        description="Null only where return_dense is false."
    )
    dense_embedding: list[float] | str | None = Field(None, description="The same as `embedding`.")
    sparse_embedding: dict[str, float] | None = Field(None, description="Weights by token id.")
    colbert_embedding: list[list[float]] | str | None = Field(
        None, description="One vector for each token."
    )
    colbert_shape: list[int] | None = Field(None, description="With base64: rows and columns.")


class EmbeddingsResponse(BaseModel):
    """The answer, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: embedding.Usage
    embedding_types: list[Output] | None = Field(
        None, description="The kinds in this answer, with any return_* field."
    )


class ModelEntry(BaseModel):
    """A model, or its alias `id`. Fields below `owned_by` go beyond OpenAI."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str = Field(description="The model that the alias stands for.")
    parent: str | None = Field(None, description="Always null; vLLM's clients know the field.")
    permission: list[dict[str, Any]] = Field(default=[], description="Always empty, as `parent`.")
    dimension: int | None
    max_model_len: int
    outputs: list[Output]
    prompt_names: list[str]
    prompts: dict[str, str] = Field(description="The texts that `prompt_name` puts before inputs.")
    input_types: list[InputType] = Field(description="Those that it has prompts for.")
    instructions: bool = Field(description="Whether it was trained to take an `instruction`.")
    pooling: str = Field(description="How the vectors of tokens become the answer.")
    normalizes: bool = Field(
        description="Whether the model's own last module scales vectors to length 1."
    )
    matryoshka: bool = Field(description="Whether `dimensions` may ask for shorter vectors.")
    matryoshka_dimensions: list[int] | None = Field(
        None, description="The sizes that it may ask for; null for any, or none."
    )
    vector_space: embedding.VectorSpaceInfo | None = Field(
        None, description="Of its vectors; null for a model that scores."
    )


class ModelList(BaseModel):
    """All served models and their aliases."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


def render(
    answer: Embeddings, *, encoding: Encoding, names_kinds: bool, lists: bool = False
) -> Iterator[bytes]:
    """Write the answer item by item; with `lists`, only `embedding` follows the encoding."""
    of_kinds, dense = Encoding.FLOAT if lists else encoding, answer.dense
    yield b'{"object":"list","data":['
    for index in range(len(answer.tokens)):
        vector = b"null" if dense is None else vector_json(dense[index], encoding)
        comma = b"," if index else b""
        yield b'%s{"object":"embedding","index":%d,"embedding":%s' % (comma, index, vector)
        if names_kinds:
            yield b',"dense_embedding":'
            yield vector if of_kinds is encoding else _dense_json(answer, index, of_kinds)
            yield _sparse_json(answer, index)
            yield from _render_colbert(answer, index, of_kinds)
        yield b"}"
    model, usage = orjson.dumps(answer.model), orjson.dumps(embedding.usage(answer))
    yield b'],"model":%s,"usage":%s' % (model, usage)
    if names_kinds:
        kinds = {"dense": answer.dense, "sparse": answer.sparse, "colbert": answer.colbert}
        given = [kind for kind, value in kinds.items() if value is not None]
        yield b',"embedding_types":' + orjson.dumps(given)
    yield b"}"


def _dense_json(answer: Embeddings, index: int, encoding: Encoding) -> bytes:
    return b"null" if answer.dense is None else vector_json(answer.dense[index], encoding)


def _sparse_json(answer: Embeddings, index: int) -> bytes:
    if answer.sparse is None:
        return b',"sparse_embedding":null'
    sparse = answer.sparse[index]
    weights = dict(zip(map(str, sparse.indices.tolist()), sparse.values, strict=True))
    return b',"sparse_embedding":' + orjson.dumps(weights, option=orjson.OPT_SERIALIZE_NUMPY)


def _render_colbert(answer: Embeddings, index: int, encoding: Encoding) -> Iterator[bytes]:
    if answer.colbert is None:
        yield b',"colbert_embedding":null'
        return
    rows = answer.colbert[index]
    yield b',"colbert_embedding":'
    yield from matrix_json(rows, encoding)
    if encoding is Encoding.BASE64:
        yield b',"colbert_shape":%s' % orjson.dumps(rows.shape)


async def create_embeddings(request: Request[EmbeddingsRequest]) -> Answer:
    """Give each input one vector, or with the `return_*` fields every kind that is wanted."""
    fields = request.fields
    write = partial(render, encoding=fields.encoding, names_kinds=fields.names_kinds)
    return await embedding.respond(request, fields.job(request.settings.default_truncate), write)


async def create_all_embeddings(request: Request[EmbeddingsRequest]) -> Answer:
    """Give every kind of vector that the request does not name, as lists of numbers.

    OpenAI's SDK asks for base64 unless it is told otherwise, and decodes `embedding` alone.
    """
    fields = request.fields = request.fields.with_all_kinds()
    write = partial(render, encoding=fields.encoding, names_kinds=True, lists=True)
    job = replace(fields.job(request.settings.default_truncate), encoding=Encoding.FLOAT)
    return await embedding.respond(request, job, write)


async def list_models(request: Request[None]) -> Answer:
    """List the loaded models that the key may use, under each of their names."""
    return Answer.json({"object": "list", "data": list(_entries(request))})


async def retrieve_model(request: Request[None]) -> Answer:
    """Describe the model of this name or alias."""
    name = request.path["name"]
    for entry in _entries(request):
        if entry["id"] == name:
            return Answer.json(entry)
    raise request.models.unknown(name, request.call.tenant)


def _entries(request: Request[None]) -> Iterator[dict[str, Any]]:
    """Yield an entry for every name of every loaded model that the caller may use."""
    for model in request.models:
        if model.facts is not None and request.call.tenant.may_use(model.names):
            yield from (_entry(model, model.facts, name) for name in model.names)


def _entry(model: ServedModel, facts: ModelFacts, name: str) -> dict[str, Any]:
    """Return a model, or its alias `name`, as `/v1/models` lists it."""
    prompts = facts.prompts if model.encoder else {}
    own = model.encoder.prompts if model.encoder else None
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "embedding-service",
        "root": model.name,
        "parent": None,
        "permission": [],
        "dimension": facts.dimension,
        "max_model_len": facts.max_tokens,
        "outputs": list(facts.outputs),
        "prompt_names": list(prompts),
        "prompts": dict(prompts),
        "input_types": list(own.input_types) if own else [],
        "instructions": own is not None and own.template is not None,
        "pooling": facts.pooling,
        "normalizes": facts.normalizes,
        "matryoshka": model.matryoshka is not None,
        "matryoshka_dimensions": list(model.matryoshka or ()) or None,
        "vector_space": model.space and model.space.shown(),
    }


def dialect(
    *,
    create: Callable[[Request[EmbeddingsRequest]], Awaitable[Answer]] = create_embeddings,
    check: Callable[[Tree], None] | None = None,
) -> Dialect:
    """Return this dialect; `create` and `check` are for systems that embed in another way."""

    def embeddings(path: str, name: str, alias_of: str | None = None) -> Operation:
        return Operation(
            path=path,
            id=name,
            alias_of=alias_of,
            handle=create,
            summary="Embed texts",
            request=EmbeddingsRequest,
            example={"input": ["Hello, world"]},
            response=EmbeddingsResponse,
            check=check,
        )

    return Dialect(
        "OpenAI",
        OPENAI,
        (
            embeddings("/v1/embeddings", "create_embeddings_v1"),
            embeddings("/embeddings", "create_embeddings", alias_of="/v1/embeddings"),
            _LIST,
            _RETRIEVE,
        ),
    )


_LIST = get(
    "/v1/models", list_models, "List the served models and their aliases", response=ModelList
)
_NAME = {
    "name": "name",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "title": "Name"},
}
_RETRIEVE = get(
    "/v1/models/{name:path}",
    retrieve_model,
    "Describe one model",
    response=ModelEntry,
    parameters=(_NAME,),
    responses={404: OPENAI.responses()[404]},
)
DIALECT = dialect()

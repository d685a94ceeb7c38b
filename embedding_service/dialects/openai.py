"""OpenAI's dialect: `/v1/embeddings`, `/v1/models` and the same without the prefix."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from embedding_service.dialects import embedding, wire
from embedding_service.errors import InvalidRequest, ModelNotFound
from embedding_service.http.middleware import exchange_of
from embedding_service.http.problems import ERRORS, OPENAI
from embedding_service.types import EmbedDtype, EmbedJob, Encoding, InputType, Output, Truncate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedding_service.service.service import EmbeddingService
    from embedding_service.types import Embeddings, ModelCard


_DENSE = frozenset({Output.DENSE})
KINDS = ("return_dense", "return_sparse", "return_colbert")


class EmbeddingsRequest(wire.Fields):
    """What a client sends. Fields below `user` go beyond OpenAI; unknown ones are ignored and named in a header."""

    input: embedding.Input
    model: str | None = Field(None, description="A served model or one of its aliases.")
    encoding_format: Annotated[Encoding, embedding.Lax] | None = Field(
        None, description="float (default), or base64 of little-endian numbers."
    )
    dimensions: int | None = Field(
        None, ge=1, le=embedding.TOKEN_LIMIT, description="Shorter vectors, where the model allows."
    )
    user: str | None = Field(None, description="Accepted, and not used.")
    instruction: str | None = Field(None, description="Task for an instructed model; put before every input.")
    input_type: Annotated[InputType, embedding.Lax] | None = Field(None, description="Selects the model's prompt.")
    prompt_name: str | None = Field(None, description="One of the model's named prompts.")
    truncate: embedding.TruncateField = Field(
        Truncate.ERROR, description="What to do with an over-long input; the server may have another default."
    )
    normalize: bool = Field(default=True, description="Scale vectors to length 1.")
    embed_dtype: Annotated[EmbedDtype, embedding.Lax] = Field(
        EmbedDtype.FLOAT32, description="Number format of the vectors."
    )
    return_dense: bool | None = Field(
        None, description="With any return_* field, the answer names each kind; default true."
    )
    return_sparse: bool | None = Field(None, description="Lexical weights by token id; default false.")
    return_colbert: bool | None = Field(None, description="One vector for each token; default false.")

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
            truncate=self.truncate if "truncate" in self.model_fields_set else default_truncate,
            normalize=self.normalize,
            embed_dtype=self.embed_dtype,
            encoding=self.encoding,
        )

    @property
    def encoding(self) -> Encoding:
        """The encoding to use; null means the default."""
        return self.encoding_format or Encoding.FLOAT

    @property
    def names_kinds(self) -> bool:
        """Whether the answer goes beyond OpenAI's shape."""
        return not self.return_dense is self.return_sparse is self.return_colbert is None

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
                "At least one vector type must be requested: return_dense, return_sparse or return_colbert",
                param="return_dense",
            )
        return outputs


class EmbeddingItem(BaseModel):
    """One vector; `embedding` is a string for base64. The other fields come only with a return_* field."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str | None = Field(description="Null only where return_dense is false.")
    dense_embedding: list[float] | str | None = Field(None, description="The same as `embedding`.")
    sparse_embedding: dict[str, float] | None = Field(None, description="Weights by token id.")
    colbert_embedding: list[list[float]] | str | None = Field(None, description="One vector for each token.")
    colbert_shape: list[int] | None = Field(None, description="With base64: rows and columns.")


class EmbeddingsResponse(BaseModel):
    """The answer, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: embedding.Usage
    embedding_types: list[Output] | None = Field(None, description="The kinds in this answer, with any return_* field.")


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
    matryoshka: bool


class ModelList(BaseModel):
    """All served models and their aliases."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


def render(answer: Embeddings, *, encoding: Encoding, names_kinds: bool) -> Iterator[bytes]:
    """Write the answer item by item."""
    yield b'{"object":"list","data":['
    for index in range(len(answer.tokens)):
        yield b'%s{"object":"embedding","index":%d' % (b"," if index else b"", index)
        if answer.dense is not None:
            vector = wire.vector_json(answer.dense[index], encoding)
            yield b',"embedding":' + vector
            if names_kinds:
                yield b',"dense_embedding":' + vector
        elif names_kinds:
            yield b',"embedding":null,"dense_embedding":null'
        if names_kinds:
            yield from _render_more(answer, index, encoding)
        yield b"}"
    yield b'],"model":%s,"usage":%s' % (orjson.dumps(answer.model), orjson.dumps(embedding.usage(answer)))
    if names_kinds:
        kinds = {"dense": answer.dense, "sparse": answer.sparse, "colbert": answer.colbert}
        yield b',"embedding_types":' + orjson.dumps([kind for kind, value in kinds.items() if value is not None])
    yield b"}"


def _render_more(answer: Embeddings, index: int, encoding: Encoding) -> Iterator[bytes]:
    if answer.sparse is None:
        yield b',"sparse_embedding":null'
    else:
        sparse = answer.sparse[index]
        weights = dict(zip(map(str, sparse.indices.tolist()), sparse.values, strict=True))
        yield b',"sparse_embedding":' + orjson.dumps(weights, option=orjson.OPT_SERIALIZE_NUMPY)
    if answer.colbert is None:
        yield b',"colbert_embedding":null'
    else:
        rows = answer.colbert[index]
        yield b',"colbert_embedding":' + wire.vector_json(rows, encoding)
        if encoding is Encoding.BASE64:
            yield b',"colbert_shape":%s' % orjson.dumps(rows.shape)


def model_entry(card: ModelCard, name: str) -> dict[str, Any]:
    """Return a model, or its alias `name`, as `/v1/models` lists it."""
    return {
        "id": name,
        "object": "model",
        "created": card.created,
        "owned_by": "embedding-service",
        "root": card.name,
        "parent": None,
        "permission": [],
        "dimension": card.dimension,
        "max_model_len": card.max_tokens,
        "outputs": list(card.outputs),
        "prompt_names": list(card.prompt_names),
        "matryoshka": card.matryoshka,
    }


def router(
    service: EmbeddingService, *, all_kinds: bool = False, check: Callable[[dict[str, Any]], None] | None = None
) -> APIRouter:
    """Return the routes of this dialect.

    `all_kinds`: a kind of vector that a request does not name is wanted. `check` may refuse a body first.
    """
    routes = APIRouter(tags=["OpenAI"])
    default_truncate = service.settings.default_truncate

    async def create_embeddings(request: Request) -> Response:
        exchange = exchange_of(request.scope)
        if check is not None:
            check(await wire.read_object(request))
        fields, ignored = await wire.read_request(request, EmbeddingsRequest)
        if all_kinds:
            fields = fields.model_copy(update={name: True for name in KINDS if getattr(fields, name) is None})
        write = partial(render, encoding=fields.encoding, names_kinds=fields.names_kinds)
        return await embedding.answer(service, exchange, fields.job(default_truncate), write, ignored)

    for path in ("/v1/embeddings", "/embeddings"):
        name = f"create_embeddings{path.replace('/', '_').removesuffix('_embeddings')}"
        shapes = (EmbeddingsRequest, EmbeddingsResponse)
        wire.post(routes, path, create_embeddings, shapes, summary="Embed texts", errors=OPENAI, operation_id=name)

    @routes.get("/v1/models", summary="List the served models and their aliases", response_model=ModelList)
    async def list_models(request: Request) -> dict[str, Any]:
        return {"object": "list", "data": list(_entries(service, request))}

    @routes.get(
        "/v1/models/{name:path}", summary="Describe one model", response_model=ModelEntry, responses={404: ERRORS[404]}
    )
    async def retrieve_model(request: Request, name: str) -> dict[str, Any]:
        for entry in _entries(service, request):
            if entry["id"] == name:
                return entry
        raise ModelNotFound(f"The model `{name[:100]}` does not exist or you do not have access to it.", param="model")

    return routes


def _entries(service: EmbeddingService, request: Request) -> Iterator[dict[str, Any]]:
    """Yield an entry for every name of every loaded model that the caller may use."""
    tenant = exchange_of(request.scope).call.tenant
    for model in service.models:
        card = model.card()
        if card is not None and tenant.may_use(model.names):
            yield from (model_entry(card, name) for name in model.names)

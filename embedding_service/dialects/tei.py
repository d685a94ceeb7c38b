"""Hugging Face's text-embeddings-inference: `/embed`, `/rerank`, `/similarity` and its other routes.

Requests name no model: the first one that embeds, or scores, answers. Shapes and defaults are those of
https://huggingface.github.io/text-embeddings-inference/ except that an absent `truncate` means true.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Request
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field
from starlette.responses import JSONResponse, Response

from embedding_service import __version__
from embedding_service.dialects import embedding, scoring, wire
from embedding_service.errors import InvalidRequest, Unavailable
from embedding_service.http import problems
from embedding_service.http.middleware import exchange_of
from embedding_service.types import EmbedJob, Encoding, FieldNames, Output, RerankJob, Truncate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedding_service.service.lifecycle import Lifecycle
    from embedding_service.service.service import EmbeddingService
    from embedding_service.types import Embeddings


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


Texts = Annotated[str | list[str], AfterValidator(_as_list)]
Direction = Annotated[Literal["left", "right"], BeforeValidator(_lower)]


class TeiInputs(wire.Fields):
    """Texts, or token ids; null is the same as absent."""

    inputs: embedding.Input
    truncate: bool | None = Field(None, description="Cut over-long inputs; default true.")
    truncation_direction: Direction | None = Field(None, description="Which end is cut off; default right.")
    prompt_name: str | None = None

    def job(self, model: str, output: Output, *, auto_truncate: bool) -> EmbedJob:
        """Return the request free of dialect; `auto_truncate` is what an absent `truncate` means."""
        truncate = auto_truncate if self.truncate is None else self.truncate
        cut = Truncate.LEFT if self.truncation_direction == "left" else Truncate.RIGHT
        return EmbedJob(
            model=model,
            inputs=self.inputs,
            outputs=frozenset({output}),
            prompt_name=self.prompt_name,
            truncate=cut if truncate else Truncate.ERROR,
            names=FieldNames(inputs="inputs", truncate="true"),
        )


class TeiEmbedRequest(TeiInputs):
    """What to embed, and how long the vectors are."""

    normalize: bool | None = Field(None, description="Scale vectors to length 1; default true.")
    dimensions: int | None = Field(None, ge=1, le=embedding.TOKEN_LIMIT)

    def job(self, model: str, output: Output, *, auto_truncate: bool) -> EmbedJob:
        """Return the request free of dialect."""
        job = super().job(model, output, auto_truncate=auto_truncate)
        return replace(job, dimensions=self.dimensions, normalize=self.normalize is not False)


class TeiRerankRequest(wire.Fields):
    """A query and the texts to score; scores are sigmoids unless raw ones are asked for."""

    query: str = Field(min_length=1)
    texts: list[Annotated[str, Field(min_length=1)]]
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool | None = Field(None, description="Cut over-long texts; default true.")


class Sentences(wire.Fields):
    """A sentence, and those to compare it with."""

    source_sentence: str = Field(min_length=1)
    sentences: list[Annotated[str, Field(min_length=1)]]


class TeiSimilarityRequest(wire.Fields):
    """What to compare."""

    inputs: Sentences


class TokenizeRequest(wire.Fields):
    """Texts to split into tokens."""

    inputs: Texts
    add_special_tokens: bool = True
    prompt_name: str | None = None


class DecodeRequest(wire.Fields):
    """Token ids of one text, or of several."""

    ids: embedding.Input
    skip_special_tokens: bool = True


class Weight(BaseModel):
    """A token id and its weight."""

    index: int
    value: float


class Rank(BaseModel):
    """One text's place; `text` only if asked for."""

    index: int
    score: float
    text: str | None = None


class SimpleToken(BaseModel):
    """A token; `start` and `stop` count characters of the text, and are null for special tokens."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Info(BaseModel):
    """What is served, as TEI describes it; limits that this server does not have are null."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, Any]
    max_concurrent_requests: int | None
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    version: str


def _render(answer: Embeddings) -> Iterator[bytes]:
    """Write a bare list with one item for each input: a vector, a matrix, or index and value of each weight."""
    for index in range(len(answer.tokens)):
        yield b"," if index else b"["
        if answer.sparse is not None:
            sparse = answer.sparse[index]
            pairs = zip(sparse.indices.tolist(), sparse.values.tolist(), strict=True)
            yield orjson.dumps([{"index": i, "value": value} for i, value in pairs])
        else:
            rows = answer.dense if answer.dense is not None else answer.hidden_states or []
            yield wire.vector_json(rows[index], Encoding.FLOAT)
    yield b"]"


def _render_scores(answer: Embeddings) -> Iterator[bytes]:
    """Write the similarity of all texts with the last one."""
    vectors = np.asarray(answer.dense, np.float32)
    yield wire.vector_json(vectors[:-1] @ vectors[-1], Encoding.FLOAT)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What the routes do; requests without `truncate` are cut if `auto_truncate`."""

    service: EmbeddingService
    auto_truncate: bool = True

    async def root(self, request: Request) -> Response:
        """Embed, or compare a sentence with others where `inputs` is an object."""
        inputs = (await wire.read_object(request)).get("inputs")
        return await (self.similarity if isinstance(inputs, dict) else self.embed)(request)

    async def embed(self, request: Request) -> Response:
        """Give each text one vector."""
        return await self._compute(request, TeiEmbedRequest, Output.DENSE)

    async def embed_all(self, request: Request) -> Response:
        """Give each token the last layer's output as it is, special tokens included."""
        return await self._compute(request, TeiInputs, Output.HIDDEN_STATES)

    async def embed_sparse(self, request: Request) -> Response:
        """Give each token of a text, or of the vocabulary, its lexical weight."""
        return await self._compute(request, TeiInputs, Output.SPARSE)

    async def _compute(self, request: Request, shape: type[TeiInputs], output: Output) -> Response:
        _refuse_empty((await wire.read_object(request)).get("inputs"), "inputs")
        fields, ignored = await wire.read_request(request, shape)
        job = fields.job(self._model(scores=False), output, auto_truncate=self.auto_truncate)
        return await embedding.answer(self.service, exchange_of(request.scope), job, _render, ignored)

    async def similarity(self, request: Request) -> Response:
        """Give the cosine of a sentence and each of the others."""
        fields, ignored = await wire.read_request(request, TeiSimilarityRequest)
        sentences = fields.inputs.sentences
        _refuse_empty(sentences, "sentences")
        texts, names = [*sentences, fields.inputs.source_sentence], FieldNames(inputs="sentences")
        job = EmbedJob(self._model(scores=False), texts, truncate=Truncate.RIGHT, names=names, queries=1)
        return await embedding.answer(self.service, exchange_of(request.scope), job, _render_scores, ignored)

    async def rerank(self, request: Request) -> Response:
        """Rank texts by how well they answer a query."""
        fields, ignored = await wire.read_request(request, TeiRerankRequest)
        _refuse_empty(fields.texts, "texts")
        pairs = [(fields.query, text) for text in fields.texts]
        cut = self.auto_truncate if fields.truncate is None else fields.truncate
        job = RerankJob(self._model(scores=True), pairs, field="texts", cut_queries=cut, cut_documents=cut)
        scores = await scoring.score(self.service, exchange_of(request.scope), job)
        values = scoring.relevance(scores, raw=fields.raw_scores)
        ranks: list[dict[str, Any]] = []
        for index in scoring.ranking(values):
            text = {"text": fields.texts[index]} if fields.return_text else {}
            ranks.append({"index": index, "score": values[index], **text})
        return scoring.respond(ranks, scores, ignored)

    async def tokenize(self, request: Request) -> Response:
        """Split texts into the tokens of the default embedding model."""
        fields, _ = await wire.read_request(request, TokenizeRequest)
        _refuse_empty(fields.inputs, "inputs")
        tokens = await self.service.tokenize(
            list(fields.inputs),
            exchange_of(request.scope).call,
            add_special_tokens=fields.add_special_tokens,
            prompt_name=fields.prompt_name,
        )

        def write() -> bytes:
            return b"[%s]" % b",".join(orjson.dumps([token._asdict() for token in text]) for text in tokens)

        return Response(await asyncio.to_thread(write), media_type="application/json")

    async def decode(self, request: Request) -> Response:
        """Turn token ids of the default embedding model into texts."""
        fields, _ = await wire.read_request(request, DecodeRequest)
        if isinstance(fields.ids[0], str):
            raise InvalidRequest("ids must be a list of token ids, or a list of such lists", param="ids")
        call, skip = exchange_of(request.scope).call, fields.skip_special_tokens
        return JSONResponse(await self.service.decode(fields.ids, call, skip_special_tokens=skip))

    async def info(self) -> dict[str, Any]:
        """Tell the default model, and the limits of requests."""
        model, settings = self.service.models.default, self.service.settings
        facts = model.facts
        if facts is None:
            raise Unavailable(f"{model.name} is still loading", retry_after_s=5)
        scores = {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
        return {
            "model_id": model.name,
            "model_sha": facts.revision,
            "model_dtype": facts.dtype,
            "model_type": scores if model.pairs else {"embedding": {"pooling": facts.pooling.lower()}},
            "max_concurrent_requests": settings.max_concurrent_requests,
            "max_input_length": facts.max_tokens,
            "max_batch_tokens": settings.max_request_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": settings.max_inputs,
            "auto_truncate": self.auto_truncate,
            "version": __version__,
        }

    def _model(self, *, scores: bool) -> str:
        return self.service.models.default_for(scores=scores).name


def router(service: EmbeddingService) -> APIRouter:
    """Return the routes of this dialect."""
    return _routes(Endpoints(service))


def preset(lifecycle: Lifecycle) -> APIRouter:
    """Return the routes that are this dialect's under its preset only: probes answer without a body."""
    service = lifecycle.service
    routes = _routes(Endpoints(service, auto_truncate=service.settings.default_truncate is not Truncate.ERROR))

    async def health() -> Response:
        if not lifecycle.ready:
            raise Unavailable(f"not ready: {lifecycle.phase}", retry_after_s=5)
        return Response()

    for path in ("/", "/health", "/ping"):
        routes.get(path, summary="Is the service up?", responses=problems.TEI.responses)(health)
    return routes


def _routes(do: Endpoints) -> APIRouter:
    routes = APIRouter(tags=["TEI"])
    posts: list[tuple[str, Callable[..., Any], str, type[wire.Fields], Any]] = [
        ("/", do.root, "Embed, or compare by the shape of `inputs`", TeiEmbedRequest, list[list[float]]),
        ("/embed", do.embed, "Embed texts", TeiEmbedRequest, list[list[float]]),
        ("/embed_all", do.embed_all, "Embed every token, without pooling", TeiInputs, list[list[list[float]]]),
        ("/embed_sparse", do.embed_sparse, "Weigh the tokens of texts", TeiInputs, list[list[Weight]]),
        ("/similarity", do.similarity, "Compare a sentence with others", TeiSimilarityRequest, list[float]),
        ("/rerank", do.rerank, "Score texts against a query", TeiRerankRequest, list[Rank]),
        ("/tokenize", do.tokenize, "Split texts into tokens", TokenizeRequest, list[list[SimpleToken]]),
        ("/decode", do.decode, "Join tokens to texts", DecodeRequest, list[str]),
    ]
    for path, endpoint, summary, request, response in posts:
        wire.post(routes, path, endpoint, (request, response), summary=summary, errors=problems.TEI)
    responses = problems.TEI.responses
    routes.get("/info", summary="Describe the default model", response_model=Info, responses=responses)(do.info)
    return routes


def _refuse_empty(value: object, field: str) -> None:
    if value == []:
        raise InvalidRequest(f"`{field}` cannot be empty", param=field, code=problems.EMPTY)

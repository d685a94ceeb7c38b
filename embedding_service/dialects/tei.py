"""Hugging Face's text-embeddings-inference: `/embed`, `/rerank`, `/similarity` and all its routes.

Requests name no model: the first one that embeds, or scores, answers. Shapes and defaults are those
of https://huggingface.github.io/text-embeddings-inference/ but an absent `truncate` means true.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import orjson
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from embedding_service import __version__
from embedding_service.dialects import embedding, scoring
from embedding_service.dialects.dialect import Answer, Dialect, Operation, Request, Sends
from embedding_service.dialects.embedding import (
    nothing_in,
    refuse_empty,
    refuse_nothing,
    vector_json,
)
from embedding_service.dialects.errors import EMPTY, ErrorShape, Failure, Written
from embedding_service.dialects.fields import BareFields, Fields, Lax
from embedding_service.errors import InvalidRequest, Overloaded, RateLimited, Unavailable
from embedding_service.service.prompts import Token
from embedding_service.types import EmbedJob, InputType, Output, RerankJob, Truncate
from embedding_service.types import Field as Name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from embedding_service.dialects.dialect import Tree
    from embedding_service.types import Embeddings, Scores

PRESET = "tei"


class TeiErrorResponse(BaseModel):
    """The error envelope of Hugging Face's text-embeddings-inference."""

    error: str
    error_type: Literal["Empty", "Validation", "Tokenizer", "Backend", "Overloaded", "Unhealthy"]


def _write(failure: Failure) -> Written:
    status, kind = _status(failure)
    return status, {"error": failure.message, "error_type": kind}


def _status(failure: Failure) -> tuple[int, str]:
    """Return status and type, as router/src/http/server.rs has them (`From<&ErrorType>`)."""
    error, status = failure.error, failure.status
    if isinstance(error, InvalidRequest):
        return _status_of_refusal(error)
    if isinstance(error, Overloaded | RateLimited):
        return status, "Overloaded"
    if isinstance(error, Unavailable):
        return status, "Unhealthy"
    return (424, "Backend") if status >= 500 else (status, "Validation")  # noqa: PLR2004


def _status_of_refusal(error: InvalidRequest) -> tuple[int, str]:
    if error.code == EMPTY:
        return 400, "Empty"
    return (424, "Backend") if error.param in _OF_THE_MODEL else (422, "Validation")


# Requests name no model, so an error about it is one that cannot do what was asked.
_OF_THE_MODEL = frozenset({"model", "return_sparse", "return_colbert"})


class TeiOpenAIErrorResponse(BaseModel):
    """The error envelope of its `/v1/embeddings`."""

    message: str
    code: int
    type: Literal["Empty", "Validation", "Tokenizer", "Backend", "Overloaded", "Unhealthy"]


def _write_openai(failure: Failure) -> Written:
    status, kind = _status(failure)
    return status, {"message": failure.message, "code": status, "type": kind}


ERRORS = ErrorShape(TeiErrorResponse, _write)
OPENAI_ERRORS = ErrorShape(TeiOpenAIErrorResponse, _write_openai)


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


Texts = Annotated[str | list[str], AfterValidator(_as_list)]
Direction = Annotated[Literal["left", "right"], BeforeValidator(_lower)]


class TeiInputs(Fields):
    """Texts, or token ids; null is the same as absent."""

    inputs: embedding.Input
    truncate: bool | None = Field(None, description="Cut over-long inputs; default true.")
    truncation_direction: Direction | None = Field(
        None, description="Which end is cut off; default right."
    )
    prompt_name: str | None = None

    def job(self, model: str, output: Output, *, truncates: bool) -> EmbedJob:
        """Return the request free of dialect."""
        cut = Truncate.LEFT if self.truncation_direction == "left" else Truncate.RIGHT
        return EmbedJob(
            model=model,
            inputs=self.inputs,
            outputs=frozenset({output}),
            prompt_name=self.prompt_name,
            truncate=cut if truncates else Truncate.ERROR,
        )


class TeiEmbedRequest(TeiInputs):
    """Inputs to embed, and the length of the vectors."""

    normalize: bool | None = Field(None, description="Scale vectors to length 1; default true.")
    dimensions: int | None = Field(None, ge=1, le=embedding.TOKEN_LIMIT)

    def job(self, model: str, output: Output, *, truncates: bool) -> EmbedJob:
        """Return the request free of dialect."""
        job = super().job(model, output, truncates=truncates)
        return replace(job, dimensions=self.dimensions, normalize=self.normalize is not False)


class TeiRerankRequest(Fields):
    """A query and the texts to score; scores are sigmoids unless raw ones are asked for.

    An empty text is scored, as an empty query is; only both at once are nothing.
    """

    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool | None = Field(
        None, description="Cut over-long pairs, the longer part first; default true."
    )
    truncation_direction: Direction | None = Field(
        None, description="Which end is cut off; default right."
    )

    def job(self, model: str, *, truncates: bool) -> RerankJob:
        """Return the request free of dialect."""
        return RerankJob(
            model,
            [(self.query, text) for text in self.texts],
            cut_documents=truncates,
            cut_longest=truncates,
            left=self.truncation_direction == "left",
        )


class Sentences(BareFields):
    """A sentence, and those to compare it with."""

    source_sentence: str
    sentences: list[str]


class SimilarityParameters(BareFields):
    """How the sentences are read."""

    truncate: bool | None = Field(
        default=None, description="Cut over-long sentences; default true."
    )
    truncation_direction: Direction | None = None
    prompt_name: str | None = None


class TeiSimilarityRequest(Fields):
    """Sentences to compare."""

    inputs: Sentences
    parameters: SimilarityParameters = SimilarityParameters()


class TokenizeRequest(BareFields):
    """Texts to split into tokens. Fields below `prompt_name` go beyond TEI."""

    inputs: Texts
    add_special_tokens: bool = True
    prompt_name: str | None = None
    model: str | None = Field(
        None, description="Split as this model reads the texts, with its prompt before them."
    )
    instruction: str | None = None
    input_type: Annotated[InputType, Lax] | None = None

    def job(self) -> EmbedJob:
        """Return the request free of dialect."""
        return EmbedJob(
            self.model,
            list(self.inputs),
            instruction=self.instruction,
            prompt_name=self.prompt_name or None,
            input_type=self.input_type,
        )


class DecodeRequest(BareFields):
    """Token ids of one text, or of several."""

    ids: embedding.Input
    skip_special_tokens: bool = True
    model: str | None = Field(None, description="Beyond TEI: the model whose ids these are.")


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
    """The default model and the limits, as TEI has them; limits that do not exist here are null."""

    model_id: str
    served_model_name: str
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
    vector_space: embedding.VectorSpaceInfo | None


def _render(answer: Embeddings) -> Iterator[bytes]:
    """Write a bare list with an item for each input: a vector, a matrix, or weights by index."""
    if answer.hidden_states is None:
        yield from embedding.json_list(_items(answer))
        return
    separator = b"["
    for rows in answer.hidden_states:
        yield separator
        yield from embedding.matrix_json(rows)
        separator = b","
    yield b"]"


def _items(answer: Embeddings) -> Iterator[bytes]:
    rows = answer.dense
    for index in range(len(answer.tokens)):
        if answer.sparse is not None:
            sparse = answer.sparse[index]
            pairs = zip(sparse.indices.tolist(), sparse.values.tolist(), strict=True)
            yield orjson.dumps([{"index": i, "value": value} for i, value in pairs])
        elif rows is not None:
            yield vector_json(rows[index])


def _render_scores(answer: Embeddings) -> Iterator[bytes]:
    """Write the similarity of all texts with the last one."""
    vectors = np.asarray(answer.dense, np.float32)
    yield vector_json(vectors[:-1] @ vectors[-1])


async def embed(request: Request[TeiEmbedRequest]) -> Answer:
    """Give each text one vector."""
    return await _embed(request, Output.DENSE)


async def embed_all(request: Request[TeiInputs]) -> Answer:
    """Give each token the last layer's output as it is, special tokens included."""
    return await _embed(request, Output.HIDDEN_STATES)


async def embed_sparse(request: Request[TeiInputs]) -> Answer:
    """Give each token of a text, or of the vocabulary, its lexical weight."""
    return await _embed(request, Output.SPARSE)


async def _embed(request: Request[Any], output: Output) -> Answer:
    fields: TeiInputs = request.fields
    truncates = _truncates(request, fields.truncate)
    job = fields.job(_model(request, scores=False), output, truncates=truncates)
    began = time.monotonic()
    answer = await embedding.respond(request, job, _render)
    return timed(request, answer, job.inputs, began)


def timed(
    request: Request[Any], answer: Answer, inputs: Iterable[str | list[int]], began: float
) -> Answer:
    """Tell in headers what an answer took, as TEI does; times are milliseconds."""
    card = request.models.default.card()
    characters = sum(len(text) for text in inputs if isinstance(text, str))
    answer.headers = {
        **answer.headers,
        "x-compute-type": "gpu" if card and card.device == "cuda" else "cpu",
        "x-compute-characters": str(characters),
        "x-compute-tokens": str(request.log.get("tokens", 0)),
        **_times(request, time.monotonic() - began),
    }
    return answer


def _times(request: Request[Any], total_s: float) -> dict[str, str]:
    stages = {name: seconds for name, (_, seconds) in request.call.stages.items()}
    times = {name: _milliseconds(stages.get(stage, 0.0)) for name, stage in _STAGES.items()}
    return times | dict.fromkeys(("x-compute-time", "x-total-time"), _milliseconds(total_s))


_STAGES = {
    "x-tokenization-time": "tokenize",
    "x-queue-time": "queue",
    "x-inference-time": "engine",
}


def _milliseconds(seconds: float) -> str:
    return str(round(1000 * seconds))


async def similarity(request: Request[TeiSimilarityRequest]) -> Answer:
    """Give the cosine of a sentence and each of the others."""
    inputs, parameters = request.fields.inputs, request.fields.parameters
    refuse_nothing("sentences")({"sentences": inputs.sentences})
    refuse_nothing("source_sentence")({"source_sentence": inputs.source_sentence})
    cut = Truncate.LEFT if parameters.truncation_direction == "left" else Truncate.RIGHT
    job = EmbedJob(
        _model(request, scores=False),
        [*inputs.sentences, inputs.source_sentence],
        prompt_name=parameters.prompt_name,
        truncate=cut if _truncates(request, parameters.truncate) else Truncate.ERROR,
        queries=1,
    )
    began = time.monotonic()
    answer = await embedding.respond(request, job, _render_scores)
    return timed(request, answer, job.inputs, began)


async def rerank(request: Request[TeiRerankRequest]) -> Answer:
    """Rank texts by how well they answer a query."""
    fields = request.fields
    refuse_empty("texts")({"texts": fields.texts})
    if not fields.query and "" in fields.texts:
        raise nothing_in("texts")
    truncates = _truncates(request, fields.truncate)
    job = fields.job(_model(request, scores=True), truncates=truncates)
    began = time.monotonic()
    scores = await scoring.score(request, job)
    answer = await scoring.respond(request, _ranks(fields, scores), scores)
    return timed(request, answer, chain.from_iterable(job.pairs), began)


def _ranks(fields: TeiRerankRequest, scores: Scores) -> list[dict[str, Any]]:
    values = scoring.relevance(scores, raw=fields.raw_scores)
    ranks: list[dict[str, Any]] = []
    for index in scoring.ranking(scores):
        text = {"text": fields.texts[index]} if fields.return_text else {}
        ranks.append({"index": index, "score": values[index], **text})
    return ranks


async def tokenize(request: Request[TokenizeRequest]) -> Answer:
    """Split texts into the tokens of a model, or of the default embedding model."""
    fields = request.fields
    refuse_empty("inputs")({"inputs": fields.inputs})
    tokens = await request.service.tokenize(
        fields.job(), request.call, add_special_tokens=fields.add_special_tokens
    )

    write, deadline = partial(_tokens_json, tokens), request.call.deadline
    return Answer(await request.service.threads.run(write, deadline=deadline))


def _tokens_json(texts: list[list[Token]]) -> bytes:
    written = [orjson.dumps(list(map(Token._asdict, tokens))) for tokens in texts]
    return b"[%s]" % b",".join(written)


async def decode(request: Request[DecodeRequest]) -> Answer:
    """Turn token ids of a model, or of the default embedding model, into texts."""
    fields = request.fields
    if isinstance(fields.ids[0], str):
        raise InvalidRequest(
            "ids must be a list of token ids, or a list of such lists", param="ids"
        )
    skip = fields.skip_special_tokens
    texts = await request.service.decode(
        fields.model, fields.ids, request.call, skip_special_tokens=skip
    )
    answer: Answer = await request.work(lambda: Answer.json(texts))
    return answer


async def info(request: Request[None]) -> Answer:
    """Tell the default model, and the limits of requests."""
    model, settings = request.models.default, request.settings
    facts = model.facts
    if facts is None:
        raise Unavailable(f"{model.name} is still loading; try again shortly", retry_after_s=5)
    scores = {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
    embeds = {"embedding": {"pooling": facts.pooling.lower()}}
    body = {
        "model_id": model.name,
        "served_model_name": next(iter(model.options.aliases), model.name),
        "model_sha": facts.revision,
        "model_dtype": facts.dtype,
        "model_type": scores if model.pairs else embeds,
        "max_concurrent_requests": settings.max_concurrent_requests,
        "max_input_length": facts.max_tokens,
        "max_batch_tokens": settings.max_request_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": settings.max_inputs,
        "auto_truncate": _truncates(request, None),
        "version": __version__,
        "vector_space": model.space and model.space.shown(),
    }
    return Answer.json(body)


def _model(request: Request[Any], *, scores: bool) -> str:
    return request.models.default_for(scores=scores).name


def _truncates(request: Request[Any], asked: bool | None) -> bool:  # noqa: FBT001
    """Return whether over-long inputs are cut: by default, unless TEI's preset says otherwise."""
    if asked is not None:
        return asked
    settings = request.settings
    return settings.preset != PRESET or settings.default_truncate is not Truncate.ERROR


class _ComparesSentences:
    """True of a body whose `inputs` is an object: `/` then compares and does not embed."""

    fields: tuple[str, ...] = ("inputs",)

    def __call__(self, tree: Tree) -> bool:
        return isinstance(tree.get("inputs"), dict)


_INPUTS = {Name.INPUT: "inputs", Name.TRUNCATE: "truncate to true"}
_VECTORS: dict[str, Any] = {
    "request": TeiEmbedRequest,
    "example": {"inputs": ["Hello, world"]},
    "response": list[list[float]],
    "check": refuse_nothing("inputs"),
    "names": _INPUTS,
}
_SIMILARITY: dict[str, Any] = {
    "handle": similarity,
    "summary": "Compare a sentence with others",
    "request": TeiSimilarityRequest,
    "example": {"inputs": {"source_sentence": "Hello", "sentences": ["Hi", "Goodbye"]}},
    "response": list[float],
    "names": {Name.INPUT: "sentences"},
}
DIALECT = Dialect(
    "TEI",
    ERRORS,
    (
        Operation(
            path="/",
            id="root",
            alias_of="/embed",
            handle=embed,
            summary="Embed, or compare by the shape of `inputs`",
            **_VECTORS,
        ),
        Operation(path="/", when=_ComparesSentences(), alias_of="/similarity", **_SIMILARITY),
        Operation(
            path="/embed", handle=embed, summary="Embed texts", when=Sends("inputs"), **_VECTORS
        ),
        Operation(
            path="/embed_all",
            handle=embed_all,
            summary="Embed every token, without pooling",
            request=TeiInputs,
            example={"inputs": ["Hello, world"]},
            response=list[list[list[float]]],
            check=refuse_nothing("inputs"),
            names=_INPUTS,
        ),
        Operation(
            path="/embed_sparse",
            handle=embed_sparse,
            summary="Weigh the tokens of texts",
            request=TeiInputs,
            example={"inputs": ["Hello, world"]},
            response=list[list[Weight]],
            check=refuse_nothing("inputs"),
            names=_INPUTS,
        ),
        Operation(path="/similarity", **_SIMILARITY),
        Operation(
            path="/rerank",
            handle=rerank,
            summary="Score texts against a query",
            request=TeiRerankRequest,
            example={"query": "Which is red?", "texts": ["An apple", "The sky"]},
            response=list[Rank],
            when=Sends("texts"),
            names={Name.DOCUMENTS: "texts"},
        ),
        Operation(
            path="/tokenize",
            handle=tokenize,
            summary="Split texts into tokens",
            request=TokenizeRequest,
            example={"inputs": ["Hello, world"]},
            response=list[list[SimpleToken]],
            names=_INPUTS,
        ),
        Operation(
            path="/decode",
            handle=decode,
            summary="Join tokens to texts",
            request=DecodeRequest,
            example={"ids": [1, 2]},
            response=list[str],
            names={Name.INPUT: "ids"},
        ),
        Operation(
            path="/info",
            method="GET",
            handle=info,
            summary="Describe the default model",
            response=Info,
            responses=ERRORS.responses(),
        ),
    ),
)

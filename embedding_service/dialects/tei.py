"""Hugging Face's text-embeddings-inference: `/embed`, `/rerank`, `/similarity` and all its routes.

Requests name no model: the first one that embeds, or scores, answers. An absent `truncate` means
true.
"""

from __future__ import annotations

import time
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from embedding_service import __version__
from embedding_service.dialects import embedding, scoring
from embedding_service.dialects.dialect import Answer, Dialect, Operation, Request, Sends, get
from embedding_service.dialects.embedding import (
    nothing_in,
    refuse_empty,
    refuse_nothing,
    vector_json,
)
from embedding_service.dialects.tei_fields import (
    ERRORS,
    DecodeRequest,
    Info,
    Rank,
    SimpleToken,
    TeiEmbedRequest,
    TeiInputs,
    TeiRerankRequest,
    TeiSimilarityRequest,
    TokenizeRequest,
    Weight,
)
from embedding_service.errors import InvalidRequest, Unavailable
from embedding_service.types import EmbedJob, Output, Truncate
from embedding_service.types import Field as Name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from embedding_service.dialects.dialect import Tree
    from embedding_service.service.prompts import Token
    from embedding_service.types import Embeddings, Scores

PRESET = "tei"
_TOKENS_AT_ONCE = 4096


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
    facts = request.models.default.facts
    characters = sum(len(text) for text in inputs if isinstance(text, str))
    answer.headers = {
        **answer.headers,
        "x-compute-type": "gpu" if facts and facts.device == "cuda" else "cpu",
        "x-compute-characters": str(characters),
        "x-compute-tokens": str(request.log.get("tokens", 0)),
        **_times(request, time.monotonic() - began),
    }
    return answer


def _times(request: Request[Any], total_s: float) -> dict[str, str]:
    stages = {name: seconds for name, (_, seconds) in request.call.stages.items()}
    times = {name: _milliseconds(stages.get(stage, 0.0)) for name, stage in _STAGES.items()}
    return times | dict.fromkeys(("x-compute-time", "x-total-time"), _milliseconds(total_s))


_STAGES = {"x-tokenization-time": "tokenize", "x-queue-time": "queue", "x-inference-time": "engine"}


def _milliseconds(seconds: float) -> str:
    return str(round(1000 * seconds))


async def similarity(request: Request[TeiSimilarityRequest]) -> Answer:
    """Give the cosine of a sentence and each of the others."""
    inputs, parameters = request.fields.inputs, request.fields.parameters
    refuse_nothing("sentences")({"sentences": inputs.sentences})
    refuse_nothing("source_sentence")({"source_sentence": inputs.source_sentence})
    cut = Truncate(parameters.truncation_direction or Truncate.RIGHT)
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
    texts = await request.service.tokenize(
        fields.job(), request.call, _tokens_json, add_special_tokens=fields.add_special_tokens
    )
    return Answer(embedding.json_list(iter(texts)))


def _tokens_json(tokens: Iterable[Token]) -> bytes:
    """Write tokens, some at a time: as dicts they take six times as much memory."""
    waiting, written = iter(tokens), []
    while some := list(islice(waiting, _TOKENS_AT_ONCE)):
        written.append(orjson.dumps(some)[1:-1])
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


class _SendsObject(Sends):
    """True of a body whose `inputs` is an object: `/` then compares and does not embed."""

    def __call__(self, tree: Tree) -> bool:
        return isinstance(tree.get("inputs"), dict)


_INPUTS = {Name.INPUT: "inputs", Name.TRUNCATE: "truncate to true"}
_TEXTS: dict[str, Any] = {
    "request": TeiInputs,
    "example": {"inputs": ["Hello, world"]},
    "check": refuse_nothing("inputs"),
    "names": _INPUTS,
}
_VECTORS = _TEXTS | {"request": TeiEmbedRequest, "response": list[list[float]]}
_SIMILARITY: dict[str, Any] = {
    "handle": similarity,
    "summary": "Compare a sentence with others",
    "request": TeiSimilarityRequest,
    "example": {"inputs": {"source_sentence": "Hello", "sentences": ["Hi", "Goodbye"]}},
    "response": list[float],
    "names": {Name.INPUT: "sentences"},
}
_EITHER = "Embed, or compare by the shape of `inputs`"
DIALECT = Dialect(
    "TEI",
    ERRORS,
    (
        Operation("/", embed, _EITHER, id="root", alias_of="/embed", **_VECTORS),
        Operation(path="/", when=_SendsObject("inputs"), alias_of="/similarity", **_SIMILARITY),
        Operation("/embed", embed, "Embed texts", when=Sends("inputs"), **_VECTORS),
        Operation(
            "/embed_all",
            embed_all,
            "Embed every token, without pooling",
            **_TEXTS,
            response=list[list[list[float]]],
        ),
        Operation(
            "/embed_sparse",
            embed_sparse,
            "Weigh the tokens of texts",
            **_TEXTS,
            response=list[list[Weight]],
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
        get(
            "/info", info, "Describe the default model", response=Info, responses=ERRORS.responses()
        ),
    ),
)

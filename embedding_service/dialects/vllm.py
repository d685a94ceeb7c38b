"""vLLM's `/score`: how well texts go together, pair by pair.

A reranker scores each pair; an embedding model gives the cosine of their vectors, as vLLM does.
https://docs.vllm.ai/en/latest/models/pooling_models/scoring.html
"""

from __future__ import annotations

import time
import uuid
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, Field

from embedding_service.dialects import embedding, scoring
from embedding_service.dialects.dialect import Answer, Dialect, Operation, Request
from embedding_service.dialects.errors import OPENAI
from embedding_service.dialects.fields import Fields, missing
from embedding_service.errors import InvalidRequest
from embedding_service.types import EmbedJob, RerankJob, Scores, Truncate
from embedding_service.types import Field as Name

if TYPE_CHECKING:
    from embedding_service.types import Floats

Pairs = list[tuple[str, str]]


Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[
    Text | Annotated[list[Text], Field(min_length=1)], AfterValidator(embedding.as_list)
]


class ScoreRequest(Fields):
    """Texts and what to compare them with, under one of three pairs of names.

    A single first text is compared with each of the second ones; lists of one length go in pairs.
    """

    model: str | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None
    instruction: str | None = None
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, le=embedding.TOKEN_LIMIT, description="-1: cut pairs to the model's length."
    )
    truncation_side: Literal["left", "right"] | None = Field(
        None, description="Which end that cuts off; default right."
    )
    use_activation: bool | None = Field(
        None, description="False for the model's logit instead of its sigmoid."
    )

    def pairs(self) -> Pairs:
        """Return the pairs to score. Raises `InvalidRequest` unless there are some."""
        for first, second in _NAMES:
            left, right = getattr(self, first), getattr(self, second)
            if left is None and right is None:
                continue
            if left is None or right is None:
                raise missing(first if left is None else second)
            return _paired(left, right, names=(first, second))
        raise InvalidRequest("send text_1 and text_2, or queries and documents", param="text_1")


_NAMES = (("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2"))


def _paired(left: list[str], right: list[str], *, names: tuple[str, str]) -> Pairs:
    if len(left) == 1:
        left = left * len(right)
    if len(left) != len(right):
        raise InvalidRequest(
            f"{names[0]} has {len(left)} texts and {names[1]} {len(right)}; "
            "they must be equally many, or one",
            param=names[0],
        )
    return list(zip(left, right, strict=True))


class ScoreItem(BaseModel):
    """One pair's score."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreResponse(BaseModel):
    """Scores in the order sent."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoreItem]
    usage: dict[str, int]


async def score(request: Request[ScoreRequest]) -> Answer:
    """Score pairs of texts, in the order sent."""
    fields = request.fields
    pairs = fields.pairs()
    request.names[Name.DOCUMENTS] = next(name for name in _SECOND if getattr(fields, name))
    model, _ = request.models.find(fields.model, request.call.tenant, scores=True)
    if model.pairs is None:
        scores = await _cosines(request, pairs)
    else:
        scores = await scoring.score(request, _job(fields, pairs))
    values = scoring.relevance(scores, raw=fields.use_activation is False)
    return await scoring.respond(request, _body(scores, values), scores)


_SECOND = [second for _, second in _NAMES]


def _job(fields: ScoreRequest, pairs: Pairs) -> RerankJob:
    return RerankJob(
        fields.model,
        pairs,
        fields.instruction,
        cut_documents=False,
        cut_longest=fields.truncate_prompt_tokens is not None,
        left=fields.truncation_side == "left",
        max_tokens=_limit(fields),
    )


async def _cosines(request: Request[ScoreRequest], pairs: Pairs) -> Scores:
    """Compare the vectors of an embedding model; every text is embedded once."""
    texts = await request.work(lambda: list(dict.fromkeys(chain.from_iterable(pairs))))
    answer = await embedding.compute(request, _embed_job(request.fields, texts, len(pairs)))
    vectors = np.asarray(answer.dense, np.float32)
    cosines = _products(vectors, texts, pairs)
    return Scores(answer.model, cosines, answer.total_tokens, answer.truncated, logits=False)


def _embed_job(fields: ScoreRequest, texts: list[str], pairs: int) -> EmbedJob:
    cuts = fields.truncate_prompt_tokens is not None
    end = Truncate(fields.truncation_side or Truncate.RIGHT)
    return EmbedJob(
        fields.model,
        texts,
        instruction=fields.instruction,
        truncate=end if cuts else Truncate.ERROR,
        max_tokens=_limit(fields),
        field=Name.DOCUMENTS,
        queries=max(0, len(texts) - pairs),
    )


def _products(vectors: Floats, texts: list[str], pairs: Pairs) -> Floats:
    places = {text: place for place, text in enumerate(texts)}
    left, right = np.array([[places[first], places[second]] for first, second in pairs]).T
    return np.asarray(np.vecdot(vectors[left], vectors[right]), np.float32)


def _limit(fields: ScoreRequest) -> int | None:
    limit = fields.truncate_prompt_tokens
    return None if limit == -1 else limit


def _body(scores: Scores, values: Floats) -> dict[str, Any]:
    items = [
        {"index": index, "object": "score", "score": value} for index, value in enumerate(values)
    ]
    return {
        "id": f"score-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": scores.model,
        "data": items,
        "usage": {"prompt_tokens": scores.tokens, "total_tokens": scores.tokens},
    }


def _operation(path: str, alias_of: str | None = None) -> Operation:
    return Operation(
        path=path,
        handle=score,
        summary="Score pairs of texts",
        request=ScoreRequest,
        example={"text_1": "Which is red?", "text_2": ["An apple", "The sky"]},
        response=ScoreResponse,
        alias_of=alias_of,
    )


DIALECT = Dialect(
    "vLLM", OPENAI, (_operation("/score", alias_of="/v1/score"), _operation("/v1/score"))
)

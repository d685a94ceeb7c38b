"""Reranking as Cohere and Jina have it (`/v1/rerank`, `/rerank`, `/v2/rerank`), and of pairs."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from embedding_service.dialects import scoring
from embedding_service.dialects.dialect import Answer, Dialect, Operation, Request, Sends
from embedding_service.dialects.embedding import TOKEN_LIMIT
from embedding_service.dialects.errors import MESSAGE, OPENAI
from embedding_service.dialects.fields import BareFields, Fields, Flag, ZeroIsNone, missing
from embedding_service.errors import InvalidRequest
from embedding_service.types import Field as Name
from embedding_service.types import RerankJob, Truncate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedding_service.types import Scores

Text = Annotated[str, Field(min_length=1)]
Weights = Annotated[list[float], Field(min_length=3, max_length=3)]
Defaults = Mapping[str, bool]


class Pair(BareFields):
    """A query and a document to score."""

    query: Text
    document: Text


class RerankRequest(Fields):
    """A query with documents, or `pairs`; unknown fields are ignored and named in a header."""

    model: str | None = Field(None, description="A reranker, or a model with ColBERT vectors.")
    query: Text | None = None
    documents: list[Text | dict[str, Any]] | None = Field(
        None, min_length=1, description="Texts, or objects with `text`."
    )
    pairs: list[Pair] | None = Field(
        None, min_length=1, description="Instead of query and documents."
    )
    top_n: Annotated[Annotated[int, Field(ge=1)] | None, ZeroIsNone] = Field(
        None, description="How many results to return; all by default."
    )
    return_documents: Flag | None = Field(
        None, description="Send each document back with its score; default false."
    )
    instruction: str | None = Field(
        None, description="For models that were trained with instructions."
    )
    raw_scores: bool | None = Field(
        None, description="The model's logit instead of its sigmoid; default false."
    )
    max_tokens_per_doc: Annotated[Annotated[int, Field(ge=1)] | None, ZeroIsNone] = Field(
        None, description="Documents are cut to this many tokens."
    )
    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        le=TOKEN_LIMIT,
        description="vLLM's: cut pairs to so many tokens, the longer part first; "
        "-1 for the model's length.",
    )
    truncation_side: Literal["left", "right"] | None = Field(
        None, description="vLLM's: which end that cuts off; default right."
    )
    weights: Weights | None = Field(
        None,
        description="With BGE-M3: weights of its dense, sparse and ColBERT similarity; "
        "its authors use 0.4, 0.2, 0.4.",
    )

    @model_validator(mode="after")
    def _check(self) -> RerankRequest:
        if self.weights is not None and (min(self.weights) < 0 or max(self.weights) <= 0):
            raise ValueError("weights must not be negative, and not all zero")
        return self

    def job(self, *, cut_queries: bool) -> RerankJob:
        """Return the request free of dialect. Raises `InvalidRequest` naming a missing field."""
        pairs = self._pairs_sent() if self.pairs is not None else list(self._query_and_documents())
        return RerankJob(
            model=self.model,
            pairs=pairs,
            instruction=self.instruction,
            max_tokens_per_document=self.max_tokens_per_doc,
            weights=(self.weights[0], self.weights[1], self.weights[2]) if self.weights else None,
            cut_queries=cut_queries,
            cut_longest=self.truncate_prompt_tokens is not None,
            left=self.truncation_side == "left",
            max_tokens=None if self.truncate_prompt_tokens == -1 else self.truncate_prompt_tokens,
        )

    def _pairs_sent(self) -> list[tuple[str, str]]:
        if self.query is not None or self.documents is not None:
            raise InvalidRequest("send either pairs, or query and documents", param="pairs")
        return [(pair.query, pair.document) for pair in self.pairs or ()]

    def _query_and_documents(self) -> Iterator[tuple[str, str]]:
        if self.query is None:
            raise missing("query")
        if self.documents is None:
            raise missing("documents")
        for index, document in enumerate(self.documents):
            yield self.query, _text_of(document, index)


class RerankResult(BaseModel):
    """One document's place; `document` only if asked for."""

    index: int
    relevance_score: float
    document: dict[str, Any] | None = None


class RerankResponse(BaseModel):
    """Results, best first; for pairs in the order sent."""

    id: str
    model: str
    results: list[RerankResult]
    usage: dict[str, int]
    meta: dict[str, Any]


def _text_of(document: str | dict[str, Any], index: int) -> str:
    text = document if isinstance(document, str) else document.get("text")
    if not isinstance(text, str) or not text:
        where = f"documents[{index}]"
        raise InvalidRequest(
            f"{where} must be a text, or an object whose text is not empty", param=where
        )
    return text


async def _answer(
    request: Request[RerankRequest], job: RerankJob, *, version: str, defaults: Defaults
) -> Answer:
    fields = request.fields
    unsaid = [name for name in defaults if getattr(fields, name) is None]
    fields = fields.model_copy(update={name: defaults[name] for name in unsaid})
    began = time.monotonic()
    scores = await scoring.score(request, job)
    if fields.pairs is not None:
        body = _render_pairs(fields, scores, seconds=time.monotonic() - began)
    else:
        body = _render(fields, scores, version=version)
    return await scoring.respond(request, body, scores)


def _job(request: Request[RerankRequest]) -> RerankJob:
    if request.fields.pairs is not None:
        request.names[Name.DOCUMENTS] = "pairs"
    return request.fields.job(cut_queries=request.settings.default_truncate is not Truncate.ERROR)


def _render(fields: RerankRequest, scores: Scores, *, version: str) -> dict[str, Any]:
    """Return the answer in Cohere's shape, with Jina's `usage`."""
    values = scoring.relevance(scores, raw=bool(fields.raw_scores))
    results: list[dict[str, Any]] = []
    for index in scoring.ranking(scores, fields.top_n):
        result = {"index": index, "relevance_score": values[index]}
        if version == "1":
            result["document"] = _document(fields, index) if fields.return_documents else None
        results.append(result)
    return {
        "id": str(uuid.uuid4()),
        "model": scores.model,
        "results": results,
        "usage": {"prompt_tokens": scores.tokens, "total_tokens": scores.tokens},
        "meta": {
            "api_version": {"version": version},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": scores.tokens},
        },
    }


def _document(fields: RerankRequest, index: int) -> dict[str, Any]:
    document = (fields.documents or [])[index]
    return {"text": document} if isinstance(document, str) else document


def _render_pairs(fields: RerankRequest, scores: Scores, *, seconds: float) -> dict[str, Any]:
    """Return the answer to `pairs`, in the order sent."""
    values = scoring.relevance(scores, raw=bool(fields.raw_scores))
    results = [
        {
            "index": i,
            "relevance_score": values[i],
            "score": values[i],  # as qwen3-embedding's document has it; its code had the other
            "query": pair.query,
            "document": pair.document,
        }
        for i, pair in enumerate(fields.pairs or [])
    ]
    return {"results": results, "model": scores.model, "processing_time": round(seconds, 4)}


def dialect(**defaults: bool) -> Dialect:
    """Return this dialect; `defaults` are values of fields for requests that do not have them."""

    async def rerank(request: Request[RerankRequest]) -> Answer:
        """Rank documents by how well they answer a query, or score pairs in their order."""
        return await _answer(request, _job(request), version="1", defaults=defaults)

    async def rerank_v2(request: Request[RerankRequest]) -> Answer:
        """Rank documents by how well they answer a query."""
        job, documents = _job(request), request.fields.documents or []
        if not all(isinstance(document, str) for document in documents):
            raise InvalidRequest(
                "documents must be a list of strings in version 2", param="documents"
            )
        return await _answer(request, job, version="2", defaults=defaults)

    shapes: dict[str, Any] = {
        "summary": "Score documents against a query",
        "request": RerankRequest,
        "example": {"query": "Which is red?", "documents": ["An apple", "The sky"]},
        "response": RerankResponse,
    }
    either, first = Sends("documents", "pairs"), "/v1/rerank"
    return Dialect(
        "Rerank",
        OPENAI,
        (
            Operation(path=first, handle=rerank, **shapes),
            Operation(path="/rerank", handle=rerank, when=either, alias_of=first, **shapes),
            Operation(
                path="/v2/rerank", handle=rerank_v2, errors=MESSAGE, alias_of=first, **shapes
            ),
        ),
    )


DIALECT = dialect()

"""Reranking in the shapes of Cohere and Jina (`/v1/rerank`, `/rerank`, `/v2/rerank`), and as pairs."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, model_validator

from embedding_service.dialects import scoring, wire
from embedding_service.errors import InvalidRequest
from embedding_service.http import problems
from embedding_service.http.middleware import exchange_of
from embedding_service.types import RerankJob, Truncate

if TYPE_CHECKING:
    from starlette.responses import Response

    from embedding_service.service.service import EmbeddingService
    from embedding_service.types import Scores

Text = Annotated[str, Field(min_length=1)]


class Pair(wire.Fields):
    """A query and a document to score."""

    query: Text
    document: Text


class RerankRequest(wire.Fields):
    """A query with documents, or `pairs`; unknown fields are ignored and named in a header."""

    model: str | None = Field(None, description="A reranker, or a model with ColBERT vectors.")
    query: Text | None = None
    documents: list[Text | dict[str, Any]] | None = Field(
        None, min_length=1, description="Texts, or objects with `text`."
    )
    pairs: list[Pair] | None = Field(None, min_length=1, description="Instead of query and documents.")
    top_n: int | None = Field(None, ge=1, description="How many results to return; all by default.")
    return_documents: bool | None = Field(None, description="Send each document back with its score; default false.")
    instruction: str | None = Field(None, description="For models that were trained with instructions.")
    raw_scores: bool | None = Field(None, description="The model's logit instead of its sigmoid; default false.")
    max_tokens_per_doc: int | None = Field(None, ge=1, description="Documents are cut to this many tokens.")
    weights: Annotated[list[float], Field(min_length=3, max_length=3)] | None = Field(
        None,
        description="With BGE-M3: weights of its dense, sparse and ColBERT similarity; its authors use 0.4, 0.2, 0.4.",
    )

    @model_validator(mode="after")
    def _check(self) -> RerankRequest:
        if self.weights is not None and (min(self.weights) < 0 or sum(self.weights) <= 0):
            raise ValueError("weights must not be negative, and not all zero")
        return self

    def job(self, *, cut_queries: bool) -> RerankJob:
        """Return the request free of dialect. Raises `InvalidRequest` naming what is missing."""
        if self.pairs is not None:
            if self.query is not None or self.documents is not None:
                raise InvalidRequest("send either pairs, or query and documents", param="pairs")
            pairs = [(pair.query, pair.document) for pair in self.pairs]
        else:
            for name in ("query", "documents"):
                if getattr(self, name) is None:
                    raise InvalidRequest(f"{name}: this field is required", param=name)
            pairs = [(self.query or "", _text_of(document, i)) for i, document in enumerate(self.documents or [])]
        return RerankJob(
            model=self.model,
            pairs=pairs,
            instruction=self.instruction,
            max_tokens_per_document=self.max_tokens_per_doc,
            weights=None if self.weights is None else (self.weights[0], self.weights[1], self.weights[2]),
            field="documents" if self.pairs is None else "pairs",
            cut_queries=cut_queries,
        )


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
        raise InvalidRequest(
            f"documents[{index}] must be a text, or an object whose text is not empty", param=f"documents[{index}]"
        )
    return text


def render(fields: RerankRequest, scores: Scores, *, version: str) -> dict[str, Any]:
    """Return the answer in Cohere's shape, with Jina's `usage`."""
    values = scoring.relevance(scores, raw=bool(fields.raw_scores))
    results: list[dict[str, Any]] = []
    for index in scoring.ranking(values, fields.top_n):
        document = (fields.documents or [])[index]
        result = {"index": index, "relevance_score": values[index]}
        if version == "1":
            as_sent = {"text": document} if isinstance(document, str) else document
            result["document"] = as_sent if fields.return_documents else None
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


def render_pairs(fields: RerankRequest, scores: Scores, *, seconds: float) -> dict[str, Any]:
    """Return the answer to `pairs`, in the order sent."""
    values = scoring.relevance(scores, raw=bool(fields.raw_scores))
    results = [
        {"index": i, "relevance_score": values[i], "query": pair.query, "document": pair.document}
        for i, pair in enumerate(fields.pairs or [])
    ]
    return {"results": results, "model": scores.model, "processing_time": round(seconds, 4)}


def router(service: EmbeddingService, *, raw_scores: bool = False, return_documents: bool = False) -> APIRouter:
    """Return the routes of this dialect; the flags are for requests that do not say."""
    routes = APIRouter(tags=["Rerank"])

    async def answer(request: Request, *, version: str) -> Response:
        fields, ignored = await wire.read_request(request, RerankRequest)
        defaults = {"raw_scores": raw_scores, "return_documents": return_documents}
        unsaid = {name: value for name, value in defaults.items() if getattr(fields, name) is None}
        fields = fields.model_copy(update=unsaid)
        job = fields.job(cut_queries=service.settings.default_truncate is not Truncate.ERROR)
        if version == "2" and not all(isinstance(document, str) for document in fields.documents or []):
            raise InvalidRequest("documents must be a list of strings in version 2", param="documents")
        began = time.monotonic()
        scores = await scoring.score(service, exchange_of(request.scope), job)
        if fields.pairs is not None:
            body = render_pairs(fields, scores, seconds=time.monotonic() - began)
        else:
            body = render(fields, scores, version=version)
        return scoring.respond(body, scores, ignored)

    async def rerank(request: Request) -> Response:
        return await answer(request, version="1")

    async def rerank_v2(request: Request) -> Response:
        return await answer(request, version="2")

    for path, endpoint in (("/v1/rerank", rerank), ("/rerank", rerank), ("/v2/rerank", rerank_v2)):
        errors = problems.COHERE if path == "/v2/rerank" else problems.OPENAI
        summary = "Score documents against a query"
        wire.post(routes, path, endpoint, (RerankRequest, RerankResponse), summary=summary, errors=errors)
    return routes

"""What single replaced systems say in their own way, beside the dialects: health, statistics, `/embed` with `texts`.

Under a preset these routes win over the default ones; see the table in `app`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from embedding_service.dialects import embedding, wire
from embedding_service.errors import InvalidRequest
from embedding_service.http import problems
from embedding_service.http.middleware import exchange_of
from embedding_service.types import EmbedJob, Encoding, FieldNames, Truncate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from embedding_service.service.lifecycle import Lifecycle
    from embedding_service.types import Embeddings


class TextsRequest(wire.Fields):
    """Texts to embed."""

    texts: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    normalize: bool = True


class TextsResponse(BaseModel):
    """One vector for each text."""

    embeddings: list[list[float]]
    model: str
    dimension: int


def refuse_blank(tree: Mapping[str, Any]) -> None:
    """Refuse empty input in qwen3-embedding's words. Raises `InvalidRequest`."""
    given = tree.get("input")
    if given == []:
        raise InvalidRequest("Input cannot be empty", param="input")
    for index, text in enumerate([given] if isinstance(given, str) else given if isinstance(given, list) else []):
        if isinstance(text, str) and not text.strip():
            raise InvalidRequest(f"Text at index {index} is empty", param=f"input[{index}]")


def embed(lifecycle: Lifecycle) -> APIRouter:
    """Return the routes of `embed`, the service of a Next.js application."""
    service = lifecycle.service
    routes = APIRouter(tags=["Embed"])

    async def embed_texts(request: Request) -> Response:
        fields, ignored = await wire.read_request(request, TextsRequest)
        model = service.models.default_for(scores=False).name
        names = FieldNames(inputs="texts")
        job = EmbedJob(model, list(fields.texts), truncate=Truncate.RIGHT, normalize=fields.normalize, names=names)

        def render(answer: Embeddings) -> Iterator[bytes]:
            assert answer.dense is not None  # noqa: S101 - it was asked for
            yield b'{"embeddings":['
            for index, vector in enumerate(answer.dense):
                yield (b"," if index else b"") + wire.vector_json(vector, Encoding.FLOAT)
            yield b'],"model":%s,"dimension":%d}' % (orjson.dumps(answer.model), answer.dense.shape[1])

        return await embedding.answer(service, exchange_of(request.scope), job, render, ignored)

    wire.post(
        routes, "/embed", embed_texts, (TextsRequest, TextsResponse), summary="Embed texts", errors=problems.OPENAI
    )

    @routes.get("/health", summary="Health of the model")
    async def health() -> Response:
        card = service.models.default.card()
        body = {
            "status": "healthy" if lifecycle.ready else str(lifecycle.phase),
            "model": service.models.default.name,
            "device": card.device if card else None,
            "dimension": card.dimension if card else None,
        }
        return JSONResponse(body, 200 if lifecycle.ready else 503)

    return routes


def emb_infer(lifecycle: Lifecycle) -> APIRouter:
    """Return emb-infer-bge-m3's health and statistics; its embeddings are OpenAI's with three vectors."""
    service, settings = lifecycle.service, lifecycle.service.settings
    routes = APIRouter(tags=["emb-infer-bge-m3"])
    model = service.models.default
    steps = {"auto": 32}.get(str(model.options.max_batch_size), model.options.max_batch_size)
    limits = {
        "batch_size": steps,
        "timeout_ms": model.options.batch_timeout_ms,
        "max_queue_size": settings.max_concurrent_requests,
    }

    def statistics() -> dict[str, float]:
        done = [replica.totals for replica in model.engine.replicas]  # restarts included
        batches, texts = sum(each.steps for each in done), sum(each.texts for each in done)
        average = round(texts / batches, 2) if batches else 0.0
        seconds = round(sum(each.busy_s for each in done) / batches, 4) if batches else 0.0
        return {
            "queue_size": sum(replica.progress.waiting for replica in model.engine.replicas if replica.progress),
            "processed_requests": texts,
            "average_batch_size": average,
            "average_processing_time": seconds,
            "total_batches": batches,
            "total_requests": texts,
            "avg_batch_size": average,
            "last_batch_time": seconds,
        }

    @routes.get("/health", summary="Is the service up?")
    async def health() -> Response:
        body = {"status": "ok" if lifecycle.ready else str(lifecycle.phase)}
        return JSONResponse(body, 200 if lifecycle.ready else 503)

    @routes.get("/health/detailed", summary="Health of model and batching")
    async def detailed() -> dict[str, Any]:
        return {
            "status": "ok" if lifecycle.ready else str(lifecycle.phase),
            "timestamp": _now(),
            "model": {"name": model.name, "status": "loaded" if model.ready else "loading"},
            "batching": {"enabled": True, **limits, "stats": statistics()},
        }

    @routes.get("/stats", summary="What has been computed")
    async def stats() -> dict[str, Any]:
        return {"batching": statistics(), "config": limits, "timestamp": _now()}

    return routes


def bge_inference(lifecycle: Lifecycle) -> APIRouter:
    """Return bge-inference-service's health; its other routes are those of `api.bge` and `api.rerank`."""
    service = lifecycle.service
    routes = APIRouter(tags=["bge-inference-service"])

    @routes.get("/health", summary="Which models are loaded?")
    async def health() -> Response:
        embedder = any(model.encoder is not None and model.ready for model in service.models)
        reranker = any(model.pairs is not None and model.ready for model in service.models)
        card = service.models.default.card()
        body = {
            "status": "ok" if embedder and reranker else "degraded",
            "service": service.settings.service_name,
            "embedder_loaded": embedder,
            "reranker_loaded": reranker,
            "device": card.device if card else None,
        }
        return JSONResponse(body, 200 if lifecycle.ready else 503)

    return routes


def _now() -> str:
    return datetime.now(UTC).isoformat()

"""What the reranking dialects share: how pairs are scored, ranked and told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from starlette.responses import Response

from embedding_service.dialects import wire

if TYPE_CHECKING:
    from embedding_service.http.middleware import Exchange
    from embedding_service.service.service import EmbeddingService
    from embedding_service.types import Floats, RerankJob, Scores


async def score(service: EmbeddingService, exchange: Exchange, job: RerankJob) -> Scores:
    """Have a job computed, and keep for the log line what it took."""
    exchange.log |= {"model": job.model, "texts": len(job.pairs)}
    scores = await service.rerank(job, exchange.call)
    exchange.log |= {"model": scores.model, "tokens": scores.tokens, "engine_s": round(scores.engine_s, 4)}
    return scores


def relevance(scores: Scores, *, raw: bool) -> Floats:
    """Return what a client sees: the sigmoid of a logit unless `raw`; a similarity as it is."""
    if raw or not scores.logits:
        return scores.values
    values = scores.values.astype(np.float64)
    return np.asarray(1 / (1 + np.exp(-values)), np.float32)


def ranking(values: Floats, top_n: int | None = None) -> list[int]:
    """Return indices, best first; equal scores keep the order sent."""
    order: list[int] = np.argsort(-values, kind="stable").tolist()
    return order[:top_n]


def respond(body: Any, scores: Scores, ignored: list[str]) -> Response:
    """Answer with a body of plain values and numpy numbers."""
    headers = {"openai-model": wire.header_list([scores.model])}
    if scores.truncated:
        headers["x-truncated-inputs"] = wire.header_list(map(str, scores.truncated))
    if ignored:
        headers["x-ignored-fields"] = wire.header_list(ignored)
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), 200, headers, "application/json")

"""Shared by the dialects that rerank: how pairs are scored, ranked and answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from embedding_service.dialects.dialect import Answer, Request
from embedding_service.dialects.fields import header_list

if TYPE_CHECKING:
    from embedding_service.types import Floats, RerankJob, Scores


async def score(request: Request[Any], job: RerankJob) -> Scores:
    """Have a job computed, and keep for the log line what it took."""
    request.log |= {"model": job.model, "texts": len(job.pairs)}
    scores = await request.service.rerank(job, request.call)
    request.note(scores.model, scores.tokens, scores.engine_s)
    return scores


def relevance(scores: Scores, *, raw: bool) -> Floats:
    """Return the sigmoid of a logit unless `raw`; a similarity as it is."""
    if raw or not scores.logits:
        return scores.values
    values = scores.values.astype(np.float64)
    return np.asarray(1 / (1 + np.exp(-values)), np.float32)


def ranking(scores: Scores, top_n: int | None = None) -> list[int]:
    """Return indices, best first; equal scores keep the order sent.

    By logits: from 17 on all sigmoids are 1 in float32.
    """
    order: list[int] = np.argsort(-scores.values, kind="stable").tolist()
    return order[:top_n]


async def respond(request: Request[Any], body: Any, scores: Scores) -> Answer:
    """Answer with a body of plain values and numpy numbers, perhaps with all that was sent."""
    headers = {"openai-model": header_list([scores.model])}
    if scores.truncated:
        headers["x-truncated-inputs"] = header_list(map(str, scores.truncated))
    if request.ignored:
        headers["x-ignored-fields"] = header_list(request.ignored)
    answer: Answer = await request.work(lambda: Answer.json(body, headers=headers))
    return answer

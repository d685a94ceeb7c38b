"""bge-inference-service: its health; `dialects/bge.py` and `rerank.py` have its other routes."""

from __future__ import annotations

from embedding_service.dialects import rerank
from embedding_service.dialects.dialect import Answer, Dialect, Request, probe
from embedding_service.dialects.errors import DETAIL
from embedding_service.dropin.blank import refuse_blank
from embedding_service.dropin.preset import Preset


async def health(request: Request[None]) -> Answer:
    """Tell which models are loaded; 503 until the gateway is ready."""
    models = list(request.models)
    embedder = any(model.encoder is not None and model.ready for model in models)
    reranker = any(model.pairs is not None and model.ready for model in models)
    facts = request.models.default.facts
    body = {
        "status": "ok" if embedder and reranker else "degraded",
        "service": request.settings.service_name,
        "embedder_loaded": embedder,
        "reranker_loaded": reranker,
        "device": facts.device if facts else None,
    }
    return Answer.json(body, status=200 if request.lifecycle.ready else 503)


_MESSAGE = "{place}: Cannot process empty text"
_INPUT = refuse_blank("input", message=_MESSAGE)
_PAIRS = refuse_blank("query", "documents", "pairs", message=_MESSAGE)
HEALTH = probe("/health", health, "Which models are loaded?")
PRESET = Preset(
    name="bge-inference-service",
    errors=DETAIL,
    dialects=lambda _: (Dialect("bge-inference-service", DETAIL, (HEALTH,)),),
    instead={"Rerank": rerank.dialect(raw_scores=True)},
    checks={
        **dict.fromkeys(("/v1/embeddings", "/embeddings"), _INPUT),
        **dict.fromkeys(("/v1/sparse-embeddings", "/v1/hybrid-embeddings"), _INPUT),
        **dict.fromkeys(("/v1/rerank", "/rerank"), _PAIRS),
    },
)

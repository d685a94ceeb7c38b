"""The model behind stored vectors: `/model-info` with its limits and SQL, version and checksum."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from embedding_service.dialects.dialect import Answer, Request, get, whole
from embedding_service.service.vector_space import UNKNOWN

if TYPE_CHECKING:
    from embedding_service.service.models import ServedModel
    from embedding_service.settings.gateway import Settings

SQL_EXAMPLES = {
    "extension": "CREATE EXTENSION IF NOT EXISTS vector;",
    "column": "ALTER TABLE items ADD COLUMN embedding vector({dimensions});",
    "create": "ALTER TABLE items ADD COLUMN embedding vector({dimensions});",
    "index": "CREATE INDEX ON items USING hnsw (embedding vector_cosine_ops);",
    "search": "SELECT id, 1 - (embedding <=> $1) AS similarity FROM items "
    "ORDER BY embedding <=> $1 LIMIT 10;",
}


class ModelInfo(BaseModel):
    """The model, its limits and its cache."""

    model_name: str
    model: str
    model_version: str
    model_checksum: str
    dimensions: int | None
    model_load_time_seconds: float
    limits: dict[str, int | float | None]
    cache: dict[str, Any]
    sql_examples: dict[str, str]


async def model_info(request: Request[None]) -> Answer:
    """Tell what vectors are made with, within which limits."""
    models, settings = request.models, request.settings
    model = models.default_for(scores=False)
    dimensions = model.facts.dimension if model.facts else None
    body = {
        "model_name": model.name,
        "model": model.name,
        **model_identity(settings, model),
        "dimensions": dimensions,
        "model_load_time_seconds": round(model.load_s, 2),
        "limits": _limits(request),
        "cache": {
            "enabled": models.cache is not None,
            "current_size": models.cache.entries if models.cache else 0,
            "max_size": settings.cache_max_entries,
            "ttl_seconds": whole(settings.cache_ttl_s),
        },
        "sql_examples": {
            name: sql.format(dimensions=dimensions) for name, sql in SQL_EXAMPLES.items()
        },
    }
    return Answer.json(ModelInfo.model_validate(body))


def _limits(request: Request[None]) -> dict[str, int | float | None]:
    settings = request.settings
    limits: dict[str, int | float | None] = {
        "max_batch_size": settings.max_inputs,
        "max_text_length": settings.max_text_characters,
        "encode_timeout_seconds": float(settings.request_timeout_s),
    }
    for name, field in settings.records.fields.items():
        if field.max_length:
            limits[name] = field.max_length
    return limits


MODEL_INFO = get("/model-info", model_info, "The model, its limits, its cache", response=ModelInfo)


def model_identity(settings: Settings, model: ServedModel) -> dict[str, str]:
    """Return the model's version and checksum."""
    checksum = model_checksum(settings, model)
    revision = model.options.revision or (model.facts.revision if model.facts else None)
    return {"model_version": revision or checksum, "model_checksum": checksum}


def model_checksum(settings: Settings, model: ServedModel) -> str:
    """Return the digits of the model's vector space; all zeros until it is loaded.

    `legacy` is an older formula, of the name and the size of the vectors alone.
    """
    if model.space is None or model.facts is None:
        return UNKNOWN
    if settings.model_checksum == "settings":
        return model.space.hex
    text = f"{model.name}:{model.facts.dimension}".encode()
    return hashlib.md5(text, usedforsecurity=False).hexdigest()[: len(UNKNOWN)]

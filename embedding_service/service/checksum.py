"""One short name for everything that determines a model's vectors, to be stored beside them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embedding_service.service.models import ServedModel
    from embedding_service.settings.gateway import Settings

HEX_DIGITS = 12
UNKNOWN = "0" * HEX_DIGITS
# Of `engine_args`, those that change numbers and not only speed or memory.
_DECISIVE = {"hf_overrides", "pooler_config", "quantization"}


async def model_checksum(settings: Settings, model: ServedModel, *, wait: bool = True) -> str:
    """Return 12 hexadecimal digits, the same after a restart and on another machine; all zeros until it is loaded.

    Names, not paths: a local folder counts by the digest of its weights, which are read when this is first asked for;
    all zeros until then for who does not `wait`. `legacy` is the formula of
    matching-service, which knows the name and the size of the vectors alone.
    """
    if model.encoder is None:
        return UNKNOWN
    facts, options, encoder = model.encoder.facts, model.options, model.encoder
    if settings.model_checksum == "legacy":
        text = f"{model.name}:{facts.dimension}".encode()
        return hashlib.md5(text, usedforsecurity=False).hexdigest()[:HEX_DIGITS]
    weights = facts.weights
    if facts.folder is not None:
        reading = model.engine.weights()
        if not (wait or reading.done()):
            return UNKNOWN
        weights = await asyncio.shield(reading)
    decisive = {
        "model": model.name,
        "architecture": facts.architecture,
        "revision": facts.revision or options.revision,
        "weights": weights,
        "dtype": facts.dtype,
        "pooling": facts.pooling,
        "dimensions": facts.dimension,
        "max_tokens": facts.max_tokens,
        "truncate": settings.default_truncate,
        "prompts": [facts.prompts, facts.default_prompt_name, encoder.template, encoder.default_instruction],
        "typed_prompts": [encoder.profile.query, encoder.profile.document],
        "records": settings.records.model_dump(mode="json"),
        "engine_args": {name: value for name, value in options.engine_args.items() if name in _DECISIVE},
    }
    text = json.dumps(decisive, sort_keys=True, ensure_ascii=False, default=str).encode()
    return hashlib.sha256(text).hexdigest()[:HEX_DIGITS]

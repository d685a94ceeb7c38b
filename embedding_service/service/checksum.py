"""One short name for everything that determines a model's vectors, to be stored beside them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import TYPE_CHECKING, Any

from embedding_service.engine import identity

if TYPE_CHECKING:
    from embedding_service.service.models import ServedModel
    from embedding_service.service.prompts import Encoder
    from embedding_service.settings.gateway import Settings
    from embedding_service.settings.model import ModelOptions

HEX_DIGITS = 12
UNKNOWN = "0" * HEX_DIGITS
# Deny-lists, as in `engine/identity.py`; the last digits of a vector do not matter here.
_OPTIONS_WITHOUT_EFFECT = identity.OPTIONS_WITHOUT_EFFECT | identity.OPTIONS_OF_ROUNDING
_NOT_AS_THEY_ARE = _OPTIONS_WITHOUT_EFFECT | {"engine_args"}
_ARGUMENTS_WITHOUT_EFFECT = identity.ARGUMENTS_WITHOUT_EFFECT | identity.ARGUMENTS_OF_ROUNDING


async def model_checksum(settings: Settings, model: ServedModel, *, wait: bool = True) -> str:
    """Return 12 hexadecimal digits, the same after a restart and on another machine.

    Names, not paths: a local folder counts by the digest of its weights, which are read when this
    is first asked for. All zeros until the model is loaded, and without `wait` until its weights
    are read. `legacy` is an older formula, of the name and the size of the
    vectors alone.
    """
    if model.encoder is None:
        return UNKNOWN
    facts = model.encoder.facts
    if settings.model_checksum == "legacy":
        return _legacy(model.name, facts.dimension)
    weights = facts.weights
    if facts.folder is not None:
        reading = model.engine.weights()
        if not (wait or reading.done()):
            return UNKNOWN
        weights = await asyncio.shield(reading)
    decisive = _of_encoder(model.encoder) | _of_options(model.options)
    decisive |= {
        "model": model.name,
        "revision": facts.revision or model.options.revision,
        "weights": weights,
        "truncate": settings.default_truncate,
        "records": settings.records.model_dump(mode="json"),
    }
    text = json.dumps(decisive, sort_keys=True, ensure_ascii=False, default=str).encode()
    return hashlib.sha256(text).hexdigest()[:HEX_DIGITS]


def _legacy(name: str, dimension: int | None) -> str:
    text = f"{name}:{dimension}".encode()
    return hashlib.md5(text, usedforsecurity=False).hexdigest()[:HEX_DIGITS]


def _of_encoder(encoder: Encoder) -> dict[str, Any]:
    """Return the part of the loaded model and its prompts."""
    facts, profile = encoder.facts, encoder.profile
    instructed = [encoder.template, encoder.default_instruction]
    return {
        "architecture": facts.architecture,
        "dtype": facts.dtype,
        "pooling": facts.pooling,
        "dimensions": facts.dimension,
        "max_tokens": facts.max_tokens,
        "prompts": [facts.prompts, facts.default_prompt_name, *instructed],
        "typed_prompts": [profile.query, profile.document],
    }


def _of_options(options: ModelOptions) -> dict[str, Any]:
    """Return the part of the options; defaults are left out, so that a new option changes none."""
    exclude = set(_NOT_AS_THEY_ARE)
    chosen = options.model_dump(mode="json", exclude=exclude, exclude_defaults=True)
    chosen["engine_args"] = identity.without(options.engine_args, _ARGUMENTS_WITHOUT_EFFECT)
    return chosen

"""What makes two engines interchangeable to the last digit, as one short text for shared caches."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from embedding_service.engine.protocol import ModelFacts
    from embedding_service.settings.model import ModelOptions

# Prompts come before the token ids; where the weights are is not what they are.
_NOT_NUMERIC = frozenset({"prompts", "default_prompt_name", "folder"})
_NUMERIC_OPTIONS = ("trust_remote_code", "tensor_parallel_size", "enforce_eager", "max_batch_size", "engine_args")


def identity(options: ModelOptions, facts: ModelFacts) -> str:
    """Return the fingerprint of weights, number format, pooling, engine and its options, and kind of device."""
    known = {name: value for name, value in msgspec.structs.asdict(facts).items() if name not in _NOT_NUMERIC}
    chosen = options.model_dump(mode="json", include=set(_NUMERIC_OPTIONS))
    return hashlib.sha256(msgspec.json.encode([known, chosen], order="deterministic")).hexdigest()[:32]

"""What makes two engines interchangeable to the last digit, as one short text for shared caches."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from embedding_service.engine.protocol import ModelFacts
    from embedding_service.options import ModelOptions

_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".json", ".txt", ".model"})
_OTHER_RUNTIMES = frozenset({"onnx", "openvino"})
_PROMPTS = frozenset({"prompts", "default_prompt_name"})  # they come before the token ids
_NUMERIC_OPTIONS = ("trust_remote_code", "tensor_parallel_size", "enforce_eager", "max_batch_size", "engine_args")


def weights_digest(folder: str) -> str:
    """Return the sha256 of every file that can change a model's numbers; of a hub's name, that name."""
    root = Path(folder)
    if not root.is_dir():
        return folder
    total = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        place = path.relative_to(root)
        if path.suffix in _SUFFIXES and path.is_file() and _OTHER_RUNTIMES.isdisjoint(place.parts):
            with path.open("rb") as file:
                total.update(f"{place}\0".encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def identity(options: ModelOptions, facts: ModelFacts) -> str:
    """Return the fingerprint of weights, number format, pooling, engine and its options, and kind of device."""
    known = {name: value for name, value in msgspec.structs.asdict(facts).items() if name not in _PROMPTS}
    chosen = options.model_dump(mode="json", include=set(_NUMERIC_OPTIONS))
    return hashlib.sha256(msgspec.json.encode([known, chosen], order="deterministic")).hexdigest()[:32]

"""Where a model's files are. Fails before vLLM is imported, which takes seconds."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from embedding_service.engine.core import ModelRefused

_WEIGHTS = (".safetensors", ".bin", ".pt")
_BLOCKS, _BLOCK_BYTES = 64, 4096

if TYPE_CHECKING:
    from embedding_service.settings import ModelOptions


def resolve_model(options: ModelOptions) -> str:
    """Return the folder or hub id to load: `model_path` (also `package:NAME/FOLDER`) wins."""
    path = options.model_path
    if path is None:
        return options.model_name
    if path.startswith("package:"):
        package, _, folder = path.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ModelRefused(f"model_path: the Python package {package} is not installed")
        path = str(Path(spec.submodule_search_locations[0]) / folder)
    if not Path(path).is_dir():
        raise ModelRefused(f"model_path: there is no folder {path}")
    if not Path(path, "config.json").is_file():
        raise ModelRefused(f"model_path: {path} holds no config.json, so it is not a model")
    return path


def weights_fingerprint(model: str) -> str | None:
    """Return a digest of a folder's weights; None for a model of the hub, which has a revision.

    Of each file its size and 64 blocks of 4 KiB, evenly spread, are read: another training changes nearly every
    number, and a full read would take a minute for 16 GB.
    """
    if not Path(model).is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(Path(model).rglob("*")):
        if path.suffix in _WEIGHTS:
            size = path.stat().st_size
            digest.update(f"{path.relative_to(model)}:{size}:".encode())
            with path.open("rb") as file:
                for block in range(_BLOCKS):
                    file.seek(max(0, size - _BLOCK_BYTES) * block // (_BLOCKS - 1))
                    digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()[:16]

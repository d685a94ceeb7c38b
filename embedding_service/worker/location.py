"""Where a model's files are. Fails before vLLM is imported, which takes seconds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from embedding_service.worker.backend import ModelRefused

if TYPE_CHECKING:
    from embedding_service.settings.model import ModelOptions


def resolve_model(options: ModelOptions) -> str:
    """Return the folder or hub id to load: `model_path` (also `package:NAME/FOLDER`) wins."""
    path = options.model_path
    if path is None:
        return options.model_name
    if path.startswith("package:"):
        path = _in_package(*path.removeprefix("package:").split("/", 1))
    if not Path(path).is_dir():
        raise ModelRefused(
            f"model_path: there is no folder {path}; a name on the hub goes into model_name"
        )
    if not Path(path, "config.json").is_file():
        raise ModelRefused(f"model_path: {path} holds no config.json, so it is not a model")
    return path


def _in_package(package: str, folder: str = "") -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelRefused(f"model_path: the Python package {package} is not installed")
    return str(Path(spec.submodule_search_locations[0]) / folder)

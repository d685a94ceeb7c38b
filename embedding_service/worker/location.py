"""Where a model's files are. Fails before vLLM is imported, which takes seconds."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from embedding_service import hub
from embedding_service.families.weights import files_of
from embedding_service.worker.backend import ModelRefused
from embedding_service.worker.progress import say

if TYPE_CHECKING:
    from embedding_service.settings.model import ModelOptions


_POINTER = b"version https://git-lfs"  # https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
_LONGEST_POINTER_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Location:
    """The folder or name that vLLM loads, and the hub's commit if it is a snapshot of the hub."""

    model: str
    commit: str | None = None
    downloaded_bytes: int = 0

    def __str__(self) -> str:
        """Where it comes from, for people."""
        if self.commit is None:
            return f"folder {self.model}" if Path(self.model).is_dir() else self.model
        if self.downloaded_bytes:
            return f"downloaded {self.downloaded_bytes / 1e6:.0f} MB, commit {self.commit[:12]}"
        return f"cache, commit {self.commit[:12]}"


def resolve_model(options: ModelOptions) -> Location:
    """Return the place of a model: `model_path` (also `package:NAME/FOLDER`) wins over the hub.

    Raises `ModelRefused`, and `ModelNotLoaded` about the hub.
    """
    path = options.model_path
    if path is not None:
        return Location(_in_folder(path))
    if not hub.is_name(options.model_name):
        return Location(options.model_name)
    download_dir = options.engine_args.get("download_dir")
    return _on_the_hub(options.model_name, options.revision, download_dir)


@cache  # asked for before vLLM is imported, and again when it loads
def _on_the_hub(name: str, revision: str | None, folder: str | None) -> Location:
    snapshot = hub.find(name, revision, folder=folder, say=say)
    return Location(str(snapshot.folder), snapshot.commit, snapshot.downloaded_bytes)


def _in_folder(path: str) -> str:
    if path.startswith("package:"):
        path = _in_package(*path.removeprefix("package:").split("/", 1))
    if not Path(path).is_dir():
        raise ModelRefused(
            f"model_path: there is no folder {path}; a name on the hub goes into model_name"
        )
    # In old layouts the transformer has a folder of its own, which modules.json names.
    if not any(Path(path, name).is_file() for name in ("config.json", "modules.json")):
        raise ModelRefused(
            f"model_path: {path} holds no config.json, so it is not a model; name the folder with "
            "config.json, tokenizer.json and weights"
        )
    _refuse_pointers(Path(path))
    return path


def _refuse_pointers(folder: Path) -> None:
    """Refuse a folder that was cloned without Git LFS: it has pointers in place of large files."""
    for _, path in files_of(str(folder)):
        if _is_pointer(path):
            raise ModelRefused(
                f"model_path: {path} is a Git-LFS pointer, not the file itself; "
                f"run `git lfs pull` in {folder}"
            )


def _is_pointer(path: Path) -> bool:
    if path.stat().st_size > _LONGEST_POINTER_BYTES:
        return False
    return path.read_bytes().startswith(_POINTER)


def _in_package(package: str, folder: str = "") -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelRefused(
            f"model_path: the Python package {package} is not installed; install it with pip"
        )
    return str(Path(spec.submodule_search_locations[0]) / folder)

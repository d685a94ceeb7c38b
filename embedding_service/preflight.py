"""Looks at files, folders and URLs that settings name, as a start does, and loads no model."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

from embedding_service.errors import BadConfiguration, ModelNotLoaded
from embedding_service.http.keys import KeyRing
from embedding_service.service import canaries
from embedding_service.service.redis import connect
from embedding_service.service.vectors import read_ranges
from embedding_service.worker.backend import ModelRefused
from embedding_service.worker.location import resolve_model

if TYPE_CHECKING:
    from pathlib import Path

    from embedding_service.settings.gateway import Settings
    from embedding_service.settings.model import ModelOptions


def check(settings: Settings) -> None:
    """Raise `BadConfiguration` or `ModelNotLoaded` about the first that `serve` would refuse."""
    KeyRing(settings)
    if settings.redis_url is not None:
        connect(settings.redis_url.get_secret_value())
    for name in ("state_dir", "runtime_dir"):
        if (folder := getattr(settings, name)) is not None:
            _check_folder(name, folder)
    if settings.uds is not None:  # whose folder `serve` does not make
        if not settings.uds.parent.is_dir():
            raise BadConfiguration(f"uds: there is no folder {settings.uds.parent}; make it first")
        _check_folder("uds", settings.uds.parent)
    for model in settings.served_models:
        _check_model(model)


def _check_folder(name: str, folder: Path) -> None:
    """Raise `BadConfiguration` unless a folder can be written to, or made; leave it as it is."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        tempfile.TemporaryDirectory(dir=there).cleanup()
    except OSError as error:
        raise BadConfiguration(
            f"{name}: {folder}: {error.strerror}; name a folder that can be written to"
        ) from None


def _check_model(model: ModelOptions) -> None:
    if model.calibration_file is not None:
        read_ranges(model.calibration_file)
    if model.canary_file is not None:
        canaries.read(model.canary_file)
    if model.model_path is None or model.engine == "fake":
        return
    try:
        resolve_model(model)
    except ModelRefused as error:
        raise ModelNotLoaded(f"{model.model_name}: {error}") from None

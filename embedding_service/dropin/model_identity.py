"""Version and checksum of a model, as they are stored beside vectors."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from embedding_service.service.vector_space import UNKNOWN

if TYPE_CHECKING:
    from embedding_service.service.models import ServedModel
    from embedding_service.settings.gateway import Settings


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

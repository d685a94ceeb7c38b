"""Version and checksum of a model, as they are stored beside vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedding_service.service.checksum import model_checksum

if TYPE_CHECKING:
    from embedding_service.service.models import ServedModel
    from embedding_service.settings.gateway import Settings


async def model_identity(
    settings: Settings, model: ServedModel, *, wait: bool = True
) -> dict[str, str]:
    """Return the model's version and checksum; without `wait` zeros until its weights are read."""
    checksum = await model_checksum(settings, model, wait=wait)
    revision = model.options.revision or (model.facts.revision if model.facts else None)
    return {"model_version": revision or checksum, "model_checksum": checksum}

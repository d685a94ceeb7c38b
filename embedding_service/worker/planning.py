"""The plan of a model, from its options. Made before vLLM is imported, which takes seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedding_service.families import plan
from embedding_service.worker.location import resolve_model

if TYPE_CHECKING:
    from embedding_service.families.plan import Plan
    from embedding_service.settings.model import ModelOptions


def planned(options: ModelOptions) -> Plan:
    """Decide how a model is served. Raises `ModelRefused`."""
    overrides = options.engine_args.get("hf_overrides", {})
    wishes = plan.Wishes(
        name=options.model_name,
        task=options.task,
        label=options.score_label,
        overrides=overrides if isinstance(overrides, dict) else {},
        pooling="pooler_config" in options.engine_args,
    )
    return plan.make(resolve_model(options).model, wishes, revision=options.revision)

"""Which space a model's vectors live in, as a short name to be stored beside them.

Two ids. The same `hex` promises that the same text with the same kind of prompt has the same
direction, within the threshold of the number format: whatever decides it counts, see `_of_service`
and `engine/identity.py`. The same `build` beside it promises the same digits; caches keep results
under both. docs/vectors.md says what they are for.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from embedding_service.engine.identity import digest
from embedding_service.errors import VectorSpaceMismatch
from embedding_service.settings.masking import masked
from embedding_service.settings.records import PLAIN_RECORDS
from embedding_service.settings.space_ids import HEX_DIGITS
from embedding_service.types import InputType, Output, Truncate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from embedding_service.engine.protocol import ModelFacts
    from embedding_service.service.models import ServedModel
    from embedding_service.service.prompts import Encoder
    from embedding_service.settings.gateway import Settings
    from embedding_service.types import Floats

UNKNOWN = "0" * HEX_DIGITS
# To be raised with a change of ours after which the same settings and files give other directions.
RECIPE = 1
_SAFE_IN_NAMES = "/:._-~+"  # beside letters and digits; others would end an id, or a header


@dataclass(frozen=True, slots=True)
class VectorSpace:
    """The ids of a model and what they are made of, as plain values. Only `hex` is compared.

    `id` is `NAME@HEX`, in ASCII.
    """

    name: str
    hex: str
    build: str
    ingredients: Mapping[str, Any]
    build_ingredients: Mapping[str, Any]
    id: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", f"{quote(self.name, safe=_SAFE_IN_NAMES)}@{self.hex}")

    def __str__(self) -> str:
        return self.id

    def check(self, required: Iterable[frozenset[str]]) -> None:
        """Raise `VectorSpaceMismatch` unless this space is in every one of these sets."""
        for ids in required:
            if self.hex not in ids:
                raise self._mismatch(" or ".join(sorted(ids)))

    def _mismatch(self, wanted: str) -> VectorSpaceMismatch:
        return VectorSpaceMismatch(
            f"{self.name} makes vectors in the space {self.id}, and {wanted} is required; ask for "
            "another model, or fill a new index",
            param="model",
        )

    def shown(self) -> dict[str, Any]:
        """Return ids and ingredients for those who may use the model; no secrets."""
        parts = dict(self.ingredients), dict(self.build_ingredients)
        for part in parts:
            if "engine_args" in part:
                part["engine_args"] = masked(part["engine_args"])
        return {
            "id": self.id,
            "build": self.build,
            "ingredients": parts[0],
            "build_ingredients": parts[1],
        }


def vector_space(model: ServedModel, encoder: Encoder | None, settings: Settings) -> VectorSpace:
    """Return the space of a model that is loaded; a reranker's names its scores in caches."""
    loaded = model.engine.loaded
    ingredients = loaded.ingredients.space | {"recipe": RECIPE}
    if encoder is not None:
        ingredients |= _of_service(model, encoder, settings)
    build = loaded.ingredients.build
    return VectorSpace(model.name, digest(ingredients), loaded.build, ingredients, build)


def _of_service(model: ServedModel, encoder: Encoder, settings: Settings) -> dict[str, Any]:
    """Return what the service decides: prompts, cutting, and the forms of results.

    Where nothing is set there is nothing here, so that a new setting changes no id.
    """
    profile = encoder.profile
    parts = {
        "query": encoder.prompts.typed(InputType.QUERY),
        "document": encoder.prompts.typed(InputType.DOCUMENT),
        "instructions": encoder.prompts.template,
        "prompted": profile.prompted,
        "layer_norm_before_cut": profile.layer_norm_before_cut or None,
        "matryoshka": model.matryoshka_of(encoder.facts),
        "ranges": None if model.ranges is None else _sha256(model.ranges),
    }
    parts |= _of_settings(settings, encoder.facts)
    return {name: value for name, value in parts.items() if value is not None}


def _sha256(numbers: Floats) -> str:
    return hashlib.sha256(numbers.tobytes()).hexdigest()


def _of_settings(settings: Settings, facts: ModelFacts) -> dict[str, Any]:
    """Return the settings of the gateway that decide what is read, or what numbers mean."""
    cut, records = settings.over_long_texts == "cut", settings.records
    sparse = Output.SPARSE in facts.outputs
    hashed = sparse and settings.sparse_token_mapping != "tokenizer"  # noqa: S105 - no password
    truncate = settings.default_truncate
    if truncate is Truncate.MODEL and not facts.cuts_left:
        truncate = Truncate.RIGHT
    return {
        "truncate": None if truncate is Truncate.ERROR else truncate,
        "characters": settings.max_text_characters if cut else None,
        "records": None if records == PLAIN_RECORDS else records.model_dump(mode="json"),
        "sparse_indices": settings.sparse_index_space if hashed else None,
    }

"""Which space a model's vectors live in, as a short name to be stored beside them.

Two ids. The same `hex` promises that the same text with the same kind of prompt has the same
direction, within the threshold of the number format: whatever decides it counts, see `_of_service`
and `engine/identity.py`. The same `build` beside it promises the same digits; caches keep results
under both. docs/vectors.md says what they are for.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from embedding_service.engine.identity import HEX_DIGITS, digest
from embedding_service.settings.records import PLAIN_RECORDS
from embedding_service.types import InputType, Output, Truncate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedding_service.service.models import ServedModel
    from embedding_service.service.prompts import Encoder
    from embedding_service.settings.gateway import Settings
    from embedding_service.types import Floats

UNKNOWN = "0" * HEX_DIGITS
# To be raised with a change of ours after which the same settings and files give other directions.
RECIPE = 1
_SAFE_IN_NAMES = "/:._-~+"  # beside letters and digits; others would end an id, or a header
_ID = re.compile(rf"(?:[^,@]+@)?([0-9a-f]{{{HEX_DIGITS},64}})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class VectorSpace:
    """The ids of a model and what they are made of, as plain values. Only `hex` is compared."""

    name: str
    hex: str
    build: str
    ingredients: Mapping[str, Any]
    build_ingredients: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{quote(self.name, safe=_SAFE_IN_NAMES)}@{self.hex}"


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
        "query": encoder.typed(InputType.QUERY),
        "document": encoder.typed(InputType.DOCUMENT),
        "instructions": encoder.template,
        "prompted": profile.prompted,
        "layer_norm_before_cut": profile.layer_norm_before_cut or None,
        "matryoshka": model.matryoshka_of(encoder.facts),
        "ranges": None if model.ranges is None else _sha256(model.ranges),
    }
    parts |= _of_settings(settings, sparse=Output.SPARSE in encoder.facts.outputs)
    return {name: value for name, value in parts.items() if value is not None}


def _sha256(numbers: Floats) -> str:
    return hashlib.sha256(numbers.tobytes()).hexdigest()


def _of_settings(settings: Settings, *, sparse: bool) -> dict[str, Any]:
    """Return the settings of the gateway that decide what is read, or what numbers mean."""
    cut, records = settings.over_long_texts == "cut", settings.records
    hashed = sparse and settings.sparse_token_mapping != "tokenizer"  # noqa: S105 - no password
    truncate = settings.default_truncate
    return {
        "truncate": None if truncate is Truncate.ERROR else truncate,
        "characters": settings.max_text_characters if cut else None,
        "records": None if records == PLAIN_RECORDS else records.model_dump(mode="json"),
        "sparse_indices": settings.sparse_index_space if hashed else None,
    }


def read_ids(text: str) -> frozenset[str]:
    """Return the digits of a list of ids, `NAME@HEX` or HEX, with commas between them.

    Raises `ValueError` that says which is none.
    """
    found = set()
    for part in text.split(","):
        match = _ID.fullmatch(part.strip())
        if match is None:
            shown = ascii(part.strip()[:80])
            raise ValueError(
                f"{shown} is not the id of a vector space: NAME@HEX, with {HEX_DIGITS} or more "
                "hexadecimal digits, as in x-vector-space of an answer"
            )
        found.add(match[1].lower())
    return frozenset(found)

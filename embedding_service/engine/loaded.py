"""A model as a worker has loaded it: its facts, its tokenizer, and what they make of its ids."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from embedding_service.engine.identity import Ingredients, digest, of_engine

if TYPE_CHECKING:
    from embedding_service.engine.protocol import ModelFacts
    from embedding_service.settings.model import ModelOptions


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A loaded model; `build` is its second id, see `service/vector_space.py`."""

    facts: ModelFacts
    tokenizer_json: bytes
    ingredients: Ingredients
    build: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "build", digest(self.ingredients.build))

    @classmethod
    def of(cls, options: ModelOptions, facts: ModelFacts, tokenizer_json: bytes) -> LoadedModel:
        """Name what a worker has said of itself."""
        return cls(facts, tokenizer_json, of_engine(options, facts, tokenizer_json))

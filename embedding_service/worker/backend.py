"""What the worker asks of a backend: the seam between the queue and the model.

`vllm_backend.VllmBackend` is the real one, `fake.FakeBackend` its deterministic equal for tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from embedding_service.engine.protocol import ModelFacts
    from embedding_service.types import Floats, Output, TokenIds


class InputRejected(Exception):
    """The core will not take this input; others are not affected."""


class ModelRefused(Exception):
    """The model cannot be served; the message is one line for the person who configured it."""


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What fits into one step."""

    texts: int
    tokens: int


class Backend(Protocol):
    """One loaded model. Used from one thread."""

    limits: StepLimits
    tokenizer_json: bytes

    def add(self, key: str, ids: TokenIds, *, outputs: frozenset[Output], boundary: int | None) -> None:
        """Queue one input. Raises `InputRejected`."""
        ...

    def abort(self, keys: Iterable[str]) -> None:
        """Forget inputs."""
        ...

    def step(self) -> list[tuple[str, Mapping[Output, Floats]]]:
        """Compute; return what was finished, flat float32 arrays by output."""
        ...

    @property
    def unfinished(self) -> int:
        """Inputs added that have not come back yet."""
        ...

    def facts(self, dimension: int | None) -> ModelFacts:
        """Describe the model, once a first vector has shown its dimension."""
        ...

"""The seam between the worker's queue and the model.

`vllm_backend.VllmBackend` is the real one, `fake.FakeBackend` its deterministic equal for tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from embedding_service.families.checkpoint import ModelRefused

if TYPE_CHECKING:
    from collections.abc import Iterable

    from embedding_service.engine.protocol import ModelFacts
    from embedding_service.types import Output, Rows, TokenIds


__all__ = ["Backend", "InputRejected", "ModelRefused", "StepLimits"]


class InputRejected(Exception):
    """The backend will not take this input; others are not affected."""


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Room in a step."""

    texts: int
    tokens: int

    def __sub__(self, used: StepLimits) -> StepLimits:
        return StepLimits(self.texts - used.texts, self.tokens - used.tokens)

    def share(self, parts: int, of: int) -> StepLimits:
        """Return some of equal parts, of one text at least."""
        return StepLimits(max(1, self.texts * parts // of), self.tokens * parts // of)


class Backend(Protocol):
    """One loaded model. Used from one thread.

    A step is launched and later collected, so that a device can compute while Python prepares the
    next step; `steps_ahead` of them may be launched and not yet collected.
    """

    limits: StepLimits
    steps_ahead: int
    tokenizer_json: bytes

    def add(
        self, key: str, ids: TokenIds, *, outputs: frozenset[Output], boundary: int | None
    ) -> None:
        """Queue one input. Raises `InputRejected`."""

    def abort(self, keys: Iterable[str]) -> None:
        """Forget inputs."""

    def launch(self) -> None:
        """Start a step with the inputs that were added; a CPU has computed it on return."""

    def collect(self) -> list[tuple[str, Rows]]:
        """Wait for the oldest launched step; return the rows of each input that is finished."""

    @property
    def unfinished(self) -> int:
        """Inputs added that have not come back yet."""

    def facts(self, dimension: int | None) -> ModelFacts:
        """Describe the model, once a first vector has shown its dimension."""

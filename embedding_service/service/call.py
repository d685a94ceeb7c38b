"""The circumstances of a request: tenant, deadline, budget, and what is reserved for its answer."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from embedding_service.types import ANYONE, Field, Tenant

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from embedding_service.service.vector_space import VectorSpace


class Budget(Protocol):
    """The tokens that a caller may still have computed."""

    def spend(self, tokens: int) -> AbstractAsyncContextManager[None]:
        """Take tokens for the length of the block; failed work is not paid for.

        Raises `RateLimited`.
        """


class Unlimited:
    """The budget of a caller without limits."""

    def spend(self, tokens: int) -> AbstractAsyncContextManager[None]:  # noqa: ARG002
        """Take nothing."""
        return nullcontext()


@dataclass(slots=True)
class Call:
    """The circumstances of one request; `deadline` is in monotonic seconds.

    `leases` hold all that is reserved for the answer until they are closed, once it has been sent.
    `stages` notes when each part of the work began, and the seconds it took. Errors about the
    inputs as a whole name `field`. `required` are sets of vector spaces, by their digits, each of
    which has to hold that of the model; `space` is the one in which the answer was computed.
    `bulk` is for work for which nobody waits: it gives way to requests, and leaves the cache to
    them.
    """

    deadline: float
    tenant: Tenant = ANYONE
    budget: Budget = dataclasses.field(default_factory=Unlimited)
    leases: ExitStack = dataclasses.field(default_factory=ExitStack)
    stages: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    field: Field = Field.INPUT
    bulk: bool = False
    required: tuple[frozenset[str], ...] = ()
    space: VectorSpace | None = None

    def enter(self, space: VectorSpace) -> None:
        """Have vectors of this space in the answer. Raises `VectorSpaceMismatch`."""
        if self.required:
            space.check(self.required)
        if self.tenant.spaces is not None:
            space.check((self.tenant.spaces,))
        self.space = space

"""The vocabulary of a comparison: two sides that give vectors, and how they are asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from embedding_service.types import Output

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence

    import numpy.typing as npt

    from embedding_service.types import Floats, Rows

    # One text's vectors, in the rows of `types.Rows`, or why there are none.
    Answer = Rows | str
    Ask = Callable[[list[str]], Awaitable[list[Answer]]]
    Tell = Callable[[int, int], None]

COMPARED: Final = frozenset({Output.DENSE, Output.SPARSE, Output.COLBERT})
TEXTS_AT_ONCE = 32
# Full-length texts go by ones and twos: a CPU may need a minute for 8,192 tokens.
CHARACTERS_AT_ONCE = 20_000


class Kind(StrEnum):
    """The use of a text, on which its prompt depends; PLAIN is a request that says nothing."""

    PLAIN = "plain"
    QUERY = "query"
    DOCUMENT = "document"


class TooLong(str):
    """A reason why a text has no vector: it is said to be too long."""

    __slots__ = ()


class Refused(Exception):
    """These texts get no vectors; the reason says why in one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class About:
    """Facts about a side; None where it does not say.

    `prompts` are the texts that users of the model put before theirs. `own` tells that the server
    is this service, which adds them itself, to the kinds that are `prompted`.
    """

    label: str
    dtype: str | None = None
    max_tokens: int | None = None
    prompts: dict[Kind, str] = field(default_factory=dict)
    own: bool = False
    prompted: Collection[Kind] = tuple(Kind)


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts, their tokens, and the context in tokens.

    Where no tokenizer is at hand, lengths are in characters, and there is no context.
    """

    texts: Sequence[str]
    lengths: Sequence[int]
    context: int | None
    unit: str = "tokens"

    @property
    def over_long(self) -> npt.NDArray[np.bool_]:
        """Which texts are known not to fit into the context."""
        return np.asarray(self.lengths) > (self.context or np.inf)


class Side(Protocol):
    """Gives vectors: a library, a server, or the service in this process."""

    @property
    def about(self) -> About:
        """The facts that are known of it."""

    async def ask(self, texts: list[str], kind: Kind) -> list[Answer]:
        """Return an answer to each text, in this order. Raises `Refused`, `NoVectors`."""


def weight_rows(by_token: dict[str, float]) -> Floats:
    """Return weights by token id as rows (k, 2) of id and weight."""
    rows = [(int(token), weight) for token, weight in by_token.items()]
    return np.array(rows, np.float32).reshape(-1, 2)


async def collect(ask: Ask, texts: Sequence[str], tell: Tell) -> list[Answer]:
    """Return an answer to each text, asked for in batches.

    A refused batch is asked for again one by one, so that only the text at fault has no vector.
    """
    answers: list[Answer] = []
    for batch in _batches(texts):
        answers += await _answers(ask, batch)
        tell(len(answers), len(texts))
    return answers


async def _answers(ask: Ask, batch: list[str]) -> list[Answer]:
    try:
        return await ask(batch)
    except Refused as refusal:
        if len(batch) == 1:
            return [refusal.reason]
    return [(await _answers(ask, [text]))[0] for text in batch]


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        if batch and (
            len(batch) == TEXTS_AT_ONCE or sum(map(len, [*batch, text])) > CHARACTERS_AT_ONCE
        ):
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch

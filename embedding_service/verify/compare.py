"""Numbers about two sides' vectors of the same texts. Pure functions of arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import numpy as np

from embedding_service.service import canaries
from embedding_service.service.canaries import Direction
from embedding_service.types import Output

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from embedding_service.types import Floats
    from embedding_service.verify.sides import Answer, Texts

    Doubles = npt.NDArray[np.float64]
    Indices = Sequence[int] | npt.NDArray[np.intp]
    Which = npt.NDArray[np.bool_]

NEIGHBOURS: Final = 10
_QUANTILES: Final = {"worst": 0.0, "1%": 0.01, "5%": 0.05, "median": 0.5}
_NO_LENGTH = 1e-12
_LENGTH = 0.01  # more is no rounding
_ROWS_AT_ONCE = 256  # against all: 100,000 texts of a file take 600 MB, and not 240 GB


class State(StrEnum):
    """The outcome for one text. BROKEN: not finite, or all zero; REFUSED: by the side under test.

    SKIPPED: the other side has no vector, so nothing can be said.
    """

    COMPARED = "compared"
    BROKEN = "broken"
    REFUSED = "refused"
    SKIPPED = "skipped"


@dataclass(slots=True)
class Comparison:
    """One kind of vector of all texts. `cosines` (n,) is NaN where a text is not compared.

    `refused` has the reasons of the side under test by text. `true` and `found` (compared,
    dimension) are the dense vectors, and empty for other kinds.

    `neighbours` (compared,) is the share of a text's ten nearest that both sides agree on; None
    where that means nothing. `alone` maps texts that were also sent by themselves to the cosine of
    that vector and the one from a batch, and `alone_right` to its cosine with the other side's: NaN
    where it is missing, not sound, or of another length than the one from a batch.
    """

    texts: Texts
    threshold: float
    states: list[State]
    cosines: Doubles
    refused: dict[int, str] = field(default_factory=dict)
    true: Floats = field(default_factory=lambda: np.empty((0, 0), np.float32))
    found: Floats = field(default_factory=lambda: np.empty((0, 0), np.float32))
    neighbours: Doubles | None = None
    alone: dict[int, float] = field(default_factory=dict)
    alone_right: dict[int, float] = field(default_factory=dict)

    @property
    def compared(self) -> npt.NDArray[np.intp]:
        """The indices of the texts that have a cosine."""
        return np.flatnonzero(np.isfinite(self.cosines))

    @property
    def low(self) -> Which:
        """Which texts are below the threshold, (n,)."""
        return self.cosines < self.threshold

    def of_state(self, state: State) -> list[int]:
        """Return the indices of the texts in this state."""
        return [index for index, each in enumerate(self.states) if each is state]

    def quantiles(self) -> dict[str, float]:
        """Return worst, 1 %, 5 %, median and mean of the cosines; empty where there are none."""
        found = self.cosines[self.compared]
        if not len(found):
            return {}
        numbers = np.quantile(found, list(_QUANTILES.values())).tolist()
        return dict(zip(_QUANTILES, numbers, strict=True)) | {"mean": float(found.mean())}


def threshold(dtype: str | None) -> float:
    """Return the least cosine for a number format; None is taken for the coarsest."""
    name = (dtype or "").removeprefix("torch.")
    return canaries.threshold({"half": "float16"}.get(name, name))


def compare(
    texts: Texts, true: Sequence[Answer], found: Sequence[Answer], output: Output, threshold: float
) -> Comparison:
    """Compare the rows of one output, text by text."""
    states = [_state(t, f, output) for t, f in zip(true, found, strict=True)]
    comparison = Comparison(texts, threshold, states, np.full(len(states), np.nan))
    for index, (state, answer) in enumerate(zip(states, found, strict=True)):
        if state is State.COMPARED:
            pair = _rows_of(true[index], output), _rows_of(answer, output)
            comparison.cosines[index] = cosine(*pair, output)
        elif state is State.REFUSED:
            missing = "this kind of vector is missing"
            comparison.refused[index] = answer if isinstance(answer, str) else missing
    if output is Output.DENSE and len(comparison.compared):
        _add_vectors(comparison, true, found)
    return comparison


def _add_vectors(comparison: Comparison, true: Sequence[Answer], found: Sequence[Answer]) -> None:
    """Keep the dense vectors that are compared, and how far their neighbours are the same."""
    which = comparison.compared
    comparison.true, comparison.found = (_stack(side, which) for side in (true, found))
    if len(which) > NEIGHBOURS:
        comparison.neighbours = overlap(comparison.true, comparison.found)


def _state(true: Answer, found: Answer, output: Output) -> State:
    if isinstance(true, str) or output not in true:
        return State.SKIPPED
    if isinstance(found, str) or output not in found:
        return State.REFUSED
    if not is_sound(true[output], output):
        return State.SKIPPED
    return State.COMPARED if is_sound(found[output], output) else State.BROKEN


def is_sound(rows: Floats, output: Output) -> bool:
    """Tell whether all numbers are finite and, in dense and ColBERT vectors, not all zero."""
    if not np.isfinite(rows).all():
        return False
    return output is Output.SPARSE or bool(rows.any(axis=1).all())


def _rows_of(answer: Answer, output: Output) -> Floats:
    assert not isinstance(answer, str)  # noqa: S101 - `_state` has looked
    return answer[output]


def cosine(true: Floats, found: Floats, output: Output) -> float:
    """Return the cosine of two results.

    Sparse weights are vectors over the vocabulary. ColBERT has the mean over its tokens, as MaxSim
    would, and 0 if their number differs.
    """
    if output is Output.SPARSE:
        return canaries.cosine(*(Direction.of(rows[:, 1], rows[:, 0]) for rows in (true, found)))
    same = true.shape == found.shape
    return float(row_cosines(true, found).mean()) if same else 0.0


def row_cosines(true: Floats | Doubles, found: Floats | Doubles) -> Doubles:
    """Return the cosine of each row with its counterpart, in float64."""
    cosines: Doubles = np.einsum("ij,ij->i", unit(true), unit(found))
    return cosines


def unit(rows: Floats | Doubles) -> Doubles:
    """Return the rows at length 1, in float64."""
    exact = rows.astype(np.float64)
    exact /= np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), _NO_LENGTH)
    return exact


def _stack(answers: Sequence[Answer], which: Indices) -> Floats:
    """Return the dense vectors of these texts, (n, dimension)."""
    return np.concatenate([_rows_of(answers[index], Output.DENSE) for index in which])


def overlap(true: Floats, found: Floats) -> Doubles:
    """Return for each row the share of its ten nearest other rows that both sides have."""
    shared = map(set.intersection, _nearest(true), _nearest(found))
    return np.array(list(map(len, shared))) / NEIGHBOURS


def _nearest(rows: Floats) -> list[set[int]]:
    directions = unit(rows)
    found: list[set[int]] = []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        similarities = directions[start : start + _ROWS_AT_ONCE] @ directions.T
        own = np.arange(len(similarities))
        similarities[own, start + own] = -np.inf
        order = np.argpartition(-similarities, NEIGHBOURS - 1, axis=1)
        found += map(set, order[:, :NEIGHBOURS].tolist())
    return found


def compare_alone(
    comparison: Comparison,
    true: Sequence[Answer],
    found: Sequence[Answer],
    alone: dict[int, Answer],
    output: Output,
) -> None:
    """Note how texts that were sent by themselves compare with their batch, and with the truth."""
    for index, answer in alone.items():
        if comparison.states[index] is not State.COMPARED:
            continue
        comparison.alone_right[index] = np.nan
        if _state(found[index], answer, output) is State.COMPARED:
            mine, batched = _rows_of(answer, output), _rows_of(found[index], output)
            comparison.alone[index] = cosine(batched, mine, output)
            if math.isclose(np.linalg.norm(mine), np.linalg.norm(batched), rel_tol=_LENGTH):
                right = cosine(_rows_of(true[index], output), mine, output)
                comparison.alone_right[index] = right

"""A comparison's outcome as plain data: what the report, the JSON file and the terminal show."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from embedding_service.verify.compare import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedding_service.verify.causes import Finding
    from embedding_service.verify.compare import Comparison

_NEAR_ONE: Final = 0.999995  # from here on, six digits would say 1
_EXCERPT = 80  # characters of a text
_WORST: Final = 10


@dataclass(frozen=True, slots=True)
class Row:
    """One text: the beginning of it, its length, and its cosine (None where it has none)."""

    index: int
    text: str
    length: int
    cosine: float | None
    state: State


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of vector under one kind of prompt.

    `cosines`, `lengths` and `neighbours` run in parallel, for the pictures.
    """

    kind: str
    output: str
    texts: int
    compared: int
    below: int
    quantiles: dict[str, float]
    neighbours_mean: float | None
    alone: float | None
    worst: list[Row]
    cosines: list[float]
    lengths: list[int]
    neighbours: list[float]

    def numbers(self) -> dict[str, str]:
        """Return what the page tells beside the pictures."""
        cells = {name: shown(value) for name, value in self.quantiles.items()}
        cells |= {"texts": f"{self.compared} of {self.texts}", "below": str(self.below)}
        if self.neighbours_mean is not None:
            cells["ten nearest, mean"] = f"{self.neighbours_mean:.1%}"
        if self.alone is not None:
            cells["alone against batched, worst"] = shown(self.alone)
        return cells

    def worst_texts(self) -> Iterator[tuple[int, int, str, str]]:
        """Yield index, length, outcome and beginning of the worst texts."""
        for row in self.worst:
            outcome = row.state if row.cosine is None else shown(row.cosine)
            yield row.index, row.length, outcome, row.text


@dataclass(slots=True)
class ModelResult:
    """All that was found about a model."""

    name: str
    subject: str
    reference: str
    dtype: str | None
    threshold: float
    context: int | None
    unit: str
    parts: list[Part] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def right(self) -> bool:
        """Whether something was compared, nothing is below the threshold, and nothing is odd."""
        low = any(part.below for part in self.parts)
        return any(part.compared for part in self.parts) and not low and not self.findings

    def lines(self) -> list[str]:
        """Return what a terminal shows."""
        verdict = "RIGHT" if self.right else "WRONG"
        dtype = self.dtype or "number format not known"
        return [
            f"{self.name}: {self.subject} against {self.reference}",
            *(f"  {_line(part)}" for part in self.parts),
            *(f"  fault ({each.name}): {each.text}" for each in self.findings),
            *(f"  note: {note}" for note in self.notes),
            f"  {verdict} (threshold {self.threshold:g}, {dtype})",
        ]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "right": self.right}


def part_of(comparison: Comparison, kind: str, output: str) -> Part:
    """Return what is shown of a comparison."""
    which = comparison.compared
    overlaps = comparison.neighbours
    return Part(
        kind=kind,
        output=output,
        texts=len(comparison.states),
        compared=len(which),
        below=int(comparison.low.sum()),
        quantiles=comparison.quantiles(),
        neighbours_mean=None if overlaps is None else float(overlaps.mean()),
        alone=min(comparison.alone.values(), default=None),
        worst=_worst(comparison),
        cosines=[float(cosine) for cosine in comparison.cosines[which]],
        lengths=[comparison.texts.lengths[index] for index in which],
        neighbours=[] if overlaps is None else overlaps.tolist(),
    )


def _worst(comparison: Comparison) -> list[Row]:
    """Return the texts without a sound vector, then those with the least cosines."""
    unsound = comparison.of_state(State.BROKEN) + comparison.of_state(State.REFUSED)
    which = comparison.compared
    ordered = which[np.argsort(comparison.cosines[which])].tolist()
    return [_row(comparison, index) for index in [*unsound, *ordered][:_WORST]]


def _row(comparison: Comparison, index: int) -> Row:
    texts = comparison.texts
    cosine = float(comparison.cosines[index])
    return Row(
        index=index,
        text=texts.texts[index][:_EXCERPT],
        length=texts.lengths[index],
        cosine=cosine if np.isfinite(cosine) else None,
        state=comparison.states[index],
    )


def shown(cosine: float) -> str:
    """Write a cosine so that it can be told from 1."""
    near = _NEAR_ONE < cosine < 1  # rounding may give more
    return f"1 - {1 - cosine:.1e}" if near else f"{min(cosine, 1):.6f}"


def _line(part: Part) -> str:
    words = [f"{part.kind} {part.output}: {part.compared} of {part.texts} texts"]
    if part.quantiles:
        words += _cosines(part)
    if part.neighbours_mean is not None:
        words.append(f"ten nearest {part.neighbours_mean:.1%} the same")
    if part.alone is not None:
        words.append(f"alone against batched {shown(part.alone)}")
    return "; ".join(words)


def _cosines(part: Part) -> list[str]:
    worst, median = (shown(part.quantiles[name]) for name in ("worst", "median"))
    return [f"cosine worst {worst}, median {median}", f"{part.below} below the threshold"]

"""From the pattern of what differs to the likely fault: what an expert would look at first.

A finding is a fault also where every cosine is above the threshold: one dimension that is scaled
by 1.5 moves a cosine by less than bfloat16 does.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from embedding_service.types import Output
from embedding_service.verify.compare import State, compare, row_cosines, stack, unit
from embedding_service.verify.sides import TooLong

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from embedding_service.types import Floats
    from embedding_service.verify.compare import Comparison, Doubles
    from embedding_service.verify.sides import Answer

    Which = npt.NDArray[np.bool_]

# Of those that differ, so many are of one kind, and of that kind so many differ.
_NEARLY_ALL, _MOST = 0.95, 0.5
# A dimension's scale against the others: 0.1 %, six standard errors of its estimate, three times
# the noise of a number. bfloat16's is no chance: MiniLM's dimension 347 has 1.01 in 200 texts.
_SCALE, _ERRORS, _NOISES, _LARGE_SCALE = 0.001, 6.0, 3.0, 0.5
_FEW_DIMENSIONS = 0.05
# MiniLM has two dimensions of 1e-43, which some processors flush to zero.
_DEAD = 1e-6
_ENOUGH_TEXTS = 20
_UNIT = 0.01  # a length that is off by more is no rounding
# Rank correlation of length and cosine, and the cosine of the longest quarter: two texts that have
# nothing in common may have 0.8 in one model, and rise with length too.
_RISES, _HARDLY = 0.5, 0.95
# Of all texts, so many may have no vector for a reason that cannot be checked.
FEW: Final = 0.1
# Between scripts, tokens have three bytes to five; a refused text that is shorter than half of an
# accepted one is not too long.
_BYTES_DIFFER = 2
_LISTED = 6


@dataclass(frozen=True, slots=True)
class Finding:
    """A likely fault: a name for programs, and a sentence."""

    name: str
    text: str


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
    def over_long(self) -> Which:
        """Which texts are known not to fit into the context."""
        return np.asarray(self.lengths) > (self.context or np.inf)


def find(
    comparison: Comparison, texts: Texts, true: Sequence[Answer], found: Sequence[Answer]
) -> list[Finding]:
    """Return the faults of dense vectors that the numbers show."""
    findings = _without(comparison, texts, found)
    which = comparison.compared
    if not len(which):
        return findings
    return findings + _of_rows(comparison, texts, stack(true, which), stack(found, which))


def _of_rows(comparison: Comparison, texts: Texts, true: Floats, found: Floats) -> list[Finding]:
    """Look at single dimensions first: one of them may pull every cosine down."""
    if true.shape != found.shape:
        wrong = f"vectors have {found.shape[1]} dimensions, and {true.shape[1]} are right"
        return [Finding("dimensions", wrong)]
    odd = [*turned(comparison, true, found)] or [*scaled(true, found, comparison.threshold)]
    if odd:
        return odd
    order = [*shuffled(comparison, true, found)] or pattern(comparison, texts)
    return [*lengths_of(true, found), *order]


def of_kind(comparison: Comparison, texts: Texts, found: Sequence[Answer]) -> list[Finding]:
    """Return the faults that other vectors than dense ones show."""
    return _without(comparison, texts, found) + pattern(comparison, texts)


def _without(comparison: Comparison, texts: Texts, found: Sequence[Answer]) -> list[Finding]:
    return [*refusals(comparison, texts, found), *broken(comparison), *alone(comparison)]


def refusals(comparison: Comparison, texts: Texts, found: Sequence[Answer]) -> Iterator[Finding]:
    """Name texts that got no vector, other than those that are said to be too long."""
    excused = too_long(comparison, texts, found)
    wrong = [index for index in comparison.of_state(State.REFUSED) if index not in excused]
    if wrong:
        said = found[wrong[0]]
        reason = said if isinstance(said, str) else "this kind of vector is missing"
        # This service answers an error in place of such numbers.
        name = "not_finite" if "finite" in reason else "refused"
        yield Finding(name, f"no vector for {named(wrong)}: {reason}")


def too_long(comparison: Comparison, texts: Texts, found: Sequence[Answer]) -> list[int]:
    """Return the texts that are said to be too long, and may be.

    Where no context is known, this is believed of a few that are among the longest.
    """
    refused = comparison.of_state(State.REFUSED)
    said = [index for index in refused if isinstance(found[index], TooLong)]
    if texts.context is not None:
        return [index for index in said if texts.over_long[index]]
    sizes = [len(text.encode()) for text in texts.texts]
    longest = max((sizes[index] for index in comparison.compared), default=0)
    long = [index for index in said if sizes[index] * _BYTES_DIFFER > longest]
    return long if len(long) <= FEW * len(sizes) else []


def alone(comparison: Comparison) -> Iterator[Finding]:
    """Name texts that are right in a batch and not in a request of their own."""
    which = [
        index
        for index, right in comparison.alone_right.items()
        if comparison.cosines[index] >= comparison.threshold and not right >= comparison.threshold
    ]
    if which:
        yield Finding("alone", f"{named(which)}: right in a batch, and wrong or missing alone")


def broken(comparison: Comparison) -> Iterator[Finding]:
    """Name texts whose vectors are no numbers."""
    if which := comparison.of_state(State.BROKEN):
        yield Finding(
            "not_finite",
            f"{named(which)}: not finite or all zero; as when float16 overflows",
        )


def turned(comparison: Comparison, true: Floats, found: Floats) -> Iterator[Finding]:
    """Say where all numbers have the other sign, or the dimensions another order."""
    if not len(comparison.low) or len(true) < _ENOUGH_TEXTS:
        return
    order = (unit(found.T) @ unit(true.T).T).argmax(axis=1)
    moved = np.flatnonzero(order != np.arange(len(order)))
    ways = {
        "sign": (-true, "all numbers have the other sign"),
        "permuted": (true[:, order], f"{named(moved, 'dimension')}: another one's numbers"),
    }
    for name, (rows, text) in ways.items():
        if row_cosines(rows, found).min() >= comparison.threshold:
            yield Finding(name, text)
            return


def scaled(true: Floats, found: Floats, threshold: float) -> Iterator[Finding]:
    """Name single dimensions that are larger, smaller or of the other sign than the rest."""
    if len(true) < _ENOUGH_TEXTS:
        return
    mine, theirs = unit(found), unit(true)
    scales, off = _scales(theirs, mine)
    if not off.any() or off.mean() > _FEW_DIMENSIONS:
        return
    rest = row_cosines(theirs[:, ~off], mine[:, ~off])
    if rest.min() >= threshold:  # else they differ in more than that
        which = np.flatnonzero(off)
        text = f"{named(which, 'dimension')} scaled by {scales[which[0]]:.3g}"
        yield Finding("scaled", text)


def _scales(true: Doubles, found: Doubles) -> tuple[Doubles, Which]:
    """Return each dimension's scale against the usual one, and whether it is off."""
    slopes, errors = _slopes(true, found)
    usual = float(np.median(slopes))
    if usual <= 0:
        return slopes, np.zeros(len(slopes), bool)
    scales = slopes / usual
    off = np.abs(scales - 1) > np.maximum(_least_scale(true, found), _ERRORS * errors / usual)
    energy = (true**2).sum(axis=0)
    return scales, off & (energy > _DEAD * np.median(energy))


def _least_scale(true: Doubles, found: Doubles) -> float:
    """Return by how much a dimension has to be off, which rounding is not."""
    typical = float(np.median(row_cosines(true, found)))
    noise = math.sqrt(2 * max(0.0, 1 - typical))
    return max(_SCALE, min(_NOISES * noise, _LARGE_SCALE))


def _slopes(true: Doubles, found: Doubles) -> tuple[Doubles, Doubles]:
    """Return for each dimension the factor between the sides, and its standard error."""
    energy = np.maximum((true**2).sum(axis=0), 1e-20)
    slopes = (true * found).sum(axis=0) / energy
    left = ((found - slopes * true) ** 2).sum(axis=0) / (len(true) - 1)
    return slopes, np.sqrt(left / energy)


def lengths_of(true: Floats, found: Floats) -> Iterator[Finding]:
    """Say where vectors should have length 1 and have not, which dot products would show."""
    right, mine = (np.linalg.norm(rows, axis=1) for rows in (true, found))
    if np.abs(right - 1).max() <= _UNIT < np.abs(mine - 1).max():
        least, most = mine.min(), mine.max()
        text = f"vectors are not normalised: lengths from {least:.3g} to {most:.3g}, not 1"
        yield Finding("not_normalised", text)


def shuffled(comparison: Comparison, true: Floats, found: Floats) -> Iterator[Finding]:
    """Name texts that have the vector of another text."""
    which = comparison.compared
    rows = np.flatnonzero(comparison.cosines[which] < comparison.threshold)
    others = _owners(true, found[rows], comparison.threshold)
    known = [
        (which[row], which[other]) for row, other in zip(rows, others, strict=True) if other >= 0
    ]
    if len(known) <= _MOST * len(rows):
        return
    pairs = [f"text {mine} has that of text {theirs}" for mine, theirs in known]
    more = f" and {len(pairs) - _LISTED} more" if len(pairs) > _LISTED else ""
    yield Finding("shuffled", f"vectors in the wrong order: {', '.join(pairs[:_LISTED])}{more}")


def _owners(true: Floats, rows: Floats, threshold: float) -> list[int]:
    """Return for each row the text whose vector it is, -1 where it is nobody's."""
    if not len(rows):
        return []
    similarities = unit(rows) @ unit(true).T
    nearest = similarities.argmax(axis=1)
    return [int(index) for index in np.where(similarities.max(axis=1) < threshold, -1, nearest)]


def pattern(comparison: Comparison, texts: Texts) -> list[Finding]:
    """Say what the texts below the threshold have in common; nothing where there are none."""
    wrong, looked_at = _mask(comparison.low, texts), _mask(comparison.compared, texts)
    if not wrong.any():
        return []
    if _only_in_batches(comparison):
        return [Finding("batching", _BATCHING)]
    if wrong.sum() >= _NEARLY_ALL * looked_at.sum():
        return [_everywhere(comparison, texts)]
    if found := _common(wrong, looked_at, texts):
        return [found]
    most = wrong.sum() >= _MOST * looked_at.sum()
    return [_everywhere(comparison, texts) if most else _unexplained(wrong, looked_at)]


def _mask(indices: npt.NDArray[np.intp], texts: Texts) -> Which:
    mask = np.zeros(len(texts.texts), bool)
    mask[indices] = True
    return mask


_BATCHING: Final = (
    "texts are right alone and wrong in a batch: padding, masks or the order of a batch"
)


def _only_in_batches(comparison: Comparison) -> bool:
    """Tell whether texts that are wrong in a batch are right alone."""
    low = set(comparison.low.tolist())
    both = [cosine for index, cosine in comparison.alone_right.items() if index in low]
    return bool(both) and float(np.mean(np.array(both) >= comparison.threshold)) > _MOST


def _everywhere(comparison: Comparison, texts: Texts) -> Finding:
    if _fades(comparison, texts):
        return Finding(
            "ends",
            "texts differ, short ones most: a prompt that is missing or should not be there, "
            "or a wrong start or end token",
        )
    return Finding(
        "everywhere",
        "texts differ, whatever their length and script: another pooling, other weights, another "
        "tokenizer, or for a model that reads its last token a wrong end token or prompt",
    )


def _fades(comparison: Comparison, texts: Texts) -> bool:
    """Tell whether the longer a text is, the less it differs, until hardly anything is left."""
    which = comparison.compared
    if len(which) < _ENOUGH_TEXTS:
        return False
    sizes, cosines = np.asarray(texts.lengths)[which], comparison.cosines[which]
    longest = cosines[sizes >= np.quantile(sizes, 0.75)]
    return bool(np.median(longest) > _HARDLY and _rank_correlation(sizes, cosines) > _RISES)


def _rank_correlation(a: npt.NDArray[np.int_], b: Doubles) -> float:
    ranks = np.argsort(np.argsort([a, b]))
    return float(np.corrcoef(ranks)[0, 1])


def _common(wrong: Which, looked_at: Which, texts: Texts) -> Finding | None:
    """Return the first property that explains which texts are wrong; the narrow ones come first."""
    if _explains(texts.over_long & looked_at, wrong):
        return _TRUNCATION
    for finding, test in _PROPERTIES:
        having = np.array([test(text) for text in texts.texts])
        if _explains(having & looked_at, wrong):
            return finding
    return None


def _has_capitals(text: str) -> bool:
    return text != text.lower()


def _has_marks(text: str) -> bool:
    return any(unicodedata.category(char) == "Mn" for char in unicodedata.normalize("NFD", text))


_TRUNCATION: Final = Finding(
    "truncation",
    "only texts that are longer than the context differ: cut at the other end or elsewhere",
)
_PROPERTIES: Final[tuple[tuple[Finding, Callable[[str], bool]], ...]] = (
    (
        Finding("lower_casing", "only texts with capital letters differ: lower-casing"),
        _has_capitals,
    ),
    (
        Finding(
            "normalisation",
            "only texts with capital letters or accents differ: lower-casing, or another part of "
            "the tokenizer's normalisation",
        ),
        lambda text: _has_capitals(text) or _has_marks(text),
    ),
)


def _explains(having: Which, wrong: Which) -> bool:
    """Tell whether nearly all that is wrong has a property, and most that has it is wrong."""
    least = max(2, _NEARLY_ALL * wrong.sum(), _MOST * having.sum())
    return bool((having & wrong).sum() >= least)


def _unexplained(wrong: Which, looked_at: Which) -> Finding:
    texts = named(np.flatnonzero(wrong))
    return Finding("some", f"{int(wrong.sum())} of {int(looked_at.sum())} texts differ: {texts}")


def of_poolings(
    found: Sequence[Answer], poolings: Mapping[str, Sequence[Answer]], threshold: float
) -> Iterator[Finding]:
    """Name the pooling that would give these vectors; of each there are some first texts'."""
    for mode, answers in poolings.items():
        comparison = compare(answers, found[: len(answers)], Output.DENSE, threshold)
        if len(comparison.compared) == len(answers) and not len(comparison.low):
            yield Finding("pooling", f"the vectors are those of {mode} pooling")


def of_prompts(low_by_kind: dict[str, float]) -> list[Finding]:
    """Say which prompt is wrong where some kinds of requests are right and others are not.

    `low_by_kind` has the share of texts below the threshold.
    """
    wrong = [kind for kind, low in low_by_kind.items() if low > _MOST]
    fine = [kind for kind, low in low_by_kind.items() if not low]
    if not wrong or not fine:
        return []
    right = " and ".join(fine)
    text = f"{' and '.join(wrong)} texts differ and {right} texts do not: their prompt"
    return [Finding("prompt", text)]


def narrowed(findings: list[Finding]) -> list[Finding]:
    """Leave out guesses about all texts where the first finding says which one is right."""
    certain = findings and findings[0].name in ("pooling", "prompt")
    return [each for each in findings if not (certain and each.name in ("everywhere", "ends"))]


def named(which: Sequence[int] | npt.NDArray[np.intp], thing: str = "text") -> str:
    """Return `text 3` or `texts 3, 5 and 2 more`."""
    listed = ", ".join(str(int(index)) for index in which[:_LISTED])
    more = f" and {len(which) - _LISTED} more" if len(which) > _LISTED else ""
    return f"{thing}{'s' if len(which) > 1 else ''} {listed}{more}"

"""From the pattern of what differs to the likely fault: what an expert would look at first.

The tables at the end have the faults in the order in which they are looked for, and for each a
check that returns a sentence where it is there. A fault is one also where every cosine is above the
threshold: one dimension that is scaled by 1.5 moves a cosine by less than bfloat16 does.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

import numpy as np

from embedding_service.types import Output
from embedding_service.verify.compare import Comparison, State, compare, row_cosines, unit
from embedding_service.verify.sides import TooLong

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from embedding_service.types import Floats
    from embedding_service.verify.compare import Doubles, Indices, Which
    from embedding_service.verify.sides import Answer, Texts

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


def find(seen: Comparison) -> list[Finding]:
    """Return the faults that the numbers show."""
    found = list(_found(seen, _OF_SINGLE_TEXTS))
    # One dimension may pull every cosine down, so nothing else is looked for then.
    if odd := next(_found(seen, _OF_DIMENSIONS), None):
        return [*found, odd]
    return [*found, *_found(seen, _OF_LENGTHS), *islice(_found(seen, _OF_MANY_TEXTS), 1)]


def too_long(seen: Comparison) -> list[int]:
    """Return the texts that are said to be too long, and may be.

    Where no context is known, this is believed of a few that are among the longest.
    """
    said = [index for index, why in seen.refused.items() if isinstance(why, TooLong)]
    if seen.texts.context is not None:
        return [index for index in said if seen.texts.over_long[index]]
    sizes = [len(text.encode()) for text in seen.texts.texts]
    longest = max((sizes[index] for index in seen.compared), default=0)
    long = [index for index in said if sizes[index] * _BYTES_DIFFER > longest]
    return long if len(long) <= FEW * len(sizes) else []


def _found(seen: Comparison, checks: Mapping[str, Check]) -> Iterator[Finding]:
    for name, check in checks.items():
        if text := check(seen):
            yield Finding(name, text)


def _not_finite(seen: Comparison) -> str | None:
    if which := seen.of_state(State.BROKEN):
        return f"{named(which)}: not finite or all zero; as when float16 overflows"
    # This service answers an error in place of such numbers.
    return _no_vector(seen, finite=True)


def _no_vector(seen: Comparison, *, finite: bool) -> str | None:
    """Name texts that got no vector, other than those that may be too long."""
    excused = too_long(seen)
    wrong = [index for index in seen.refused if index not in excused]
    if not wrong or ("finite" in seen.refused[wrong[0]]) is not finite:
        return None
    return f"no vector for {named(wrong)}: {seen.refused[wrong[0]]}"


def _alone(seen: Comparison) -> str | None:
    """Name texts that are right in a batch and not in a request of their own."""
    which = [
        index
        for index, cosine in seen.alone_right.items()
        if not seen.low[index] and not cosine >= seen.threshold
    ]
    return f"{named(which)}: right in a batch, and wrong or missing alone" if which else None


def _dimensions(seen: Comparison) -> str | None:
    if seen.true.shape == seen.found.shape:
        return None
    return f"vectors have {seen.found.shape[1]} dimensions, and {seen.true.shape[1]} are right"


def _sign(seen: Comparison) -> str | None:
    return "all numbers have the other sign" if _are_found(-seen.true, seen) else None


def _permuted(seen: Comparison) -> str | None:
    order = (unit(seen.found.T) @ unit(seen.true.T).T).argmax(axis=1) if len(seen.true) else []
    moved = np.flatnonzero(order != np.arange(len(order)))
    if not len(moved) or not _are_found(seen.true[:, order], seen):
        return None
    return f"{named(moved, 'dimension')}: another one's numbers"


def _are_found(rows: Floats, seen: Comparison) -> bool:
    """Tell whether the wrong vectors are these."""
    enough = seen.low.any() and len(rows) >= _ENOUGH_TEXTS
    return bool(enough and row_cosines(rows, seen.found).min() >= seen.threshold)


def _scaled(seen: Comparison) -> str | None:
    """Name single dimensions that are larger, smaller or of the other sign than the rest."""
    if len(seen.true) < _ENOUGH_TEXTS:
        return None
    mine, theirs = unit(seen.found), unit(seen.true)
    scales, off = _scales(theirs, mine)
    if not 0 < off.mean() <= _FEW_DIMENSIONS:
        return None
    if row_cosines(theirs[:, ~off], mine[:, ~off]).min() < seen.threshold:
        return None  # they differ in more than that
    which = np.flatnonzero(off)
    return f"{named(which, 'dimension')} scaled by {scales[which[0]]:.3g}"


def _scales(true: Doubles, found: Doubles) -> tuple[Doubles, Which]:
    """Return each dimension's scale against the usual one, and whether it is off."""
    energy = (true**2).sum(axis=0)
    safe = np.maximum(energy, 1e-20)
    slopes: Doubles = (true * found).sum(axis=0) / safe
    usual = float(np.median(slopes))
    if usual <= 0:
        return slopes, np.zeros(len(slopes), bool)
    left = ((found - slopes * true) ** 2).sum(axis=0) / (len(true) - 1)
    errors = np.sqrt(left / safe) / usual
    off = np.abs(slopes / usual - 1) > np.maximum(_least_scale(true, found), _ERRORS * errors)
    return slopes / usual, off & (energy > _DEAD * np.median(energy))


def _least_scale(true: Doubles, found: Doubles) -> float:
    """Return by how much a dimension has to be off, which rounding is not."""
    typical = float(np.median(row_cosines(true, found)))
    noise = math.sqrt(2 * max(0.0, 1 - typical))
    return max(_SCALE, min(_NOISES * noise, _LARGE_SCALE))


def _not_normalised(seen: Comparison) -> str | None:
    """Say where vectors should have length 1 and have not, which dot products would show."""
    right, mine = (np.linalg.norm(rows, axis=1) for rows in (seen.true, seen.found))
    if not np.abs(right - 1).max(initial=0) <= _UNIT < np.abs(mine - 1).max(initial=0):
        return None
    return f"vectors are not normalised: lengths from {mine.min():.3g} to {mine.max():.3g}, not 1"


def _shuffled(seen: Comparison) -> str | None:
    """Name texts that have the vector of another text."""
    which = seen.compared
    rows = np.flatnonzero(seen.low[which])
    if not len(seen.true) or not len(rows):
        return None
    similarities = unit(seen.found[rows]) @ unit(seen.true).T
    known = similarities.max(axis=1) >= seen.threshold
    if known.sum() <= _MOST * len(rows):
        return None
    owners = zip(which[rows[known]], which[similarities.argmax(axis=1)[known]], strict=True)
    pairs = [f"text {mine} has that of text {theirs}" for mine, theirs in owners]
    return f"vectors in the wrong order: {_listed(pairs)}"


def _batching(seen: Comparison) -> str | None:
    alone = seen.alone_right.items()
    right = [cosine >= seen.threshold for index, cosine in alone if seen.low[index]]
    if not right or np.mean(right) <= _MOST:
        return None
    return "texts are right alone and wrong in a batch: padding, masks or the order of a batch"


def _only_those(seen: Comparison, *, having: Callable[[Texts], Which], text: str) -> str | None:
    """Say it where nearly all wrong texts have a property, and most that have it are wrong."""
    low, known = seen.low.sum(), len(seen.compared)
    have = having(seen.texts)
    wrong, all_having = (have & seen.low).sum(), (have & np.isfinite(seen.cosines)).sum()
    explains = wrong >= max(2, _NEARLY_ALL * low, _MOST * all_having)
    return text if explains and low < _NEARLY_ALL * known else None


def _have_capitals(texts: Texts) -> Which:
    return np.array([text != text.lower() for text in texts.texts])


def _have_capitals_or_marks(texts: Texts) -> Which:
    return np.array([text != text.lower() or _has_marks(text) for text in texts.texts])


def _has_marks(text: str) -> bool:
    return any(unicodedata.category(char) == "Mn" for char in unicodedata.normalize("NFD", text))


def _ends(seen: Comparison) -> str | None:
    """Tell whether the longer a text is, the less it differs, until hardly anything is left."""
    which = seen.compared
    if not _is_everywhere(seen) or len(which) < _ENOUGH_TEXTS:
        return None
    sizes, cosines = np.asarray(seen.texts.lengths)[which], seen.cosines[which]
    longest = cosines[sizes >= np.quantile(sizes, 0.75)]
    ranks = np.argsort(np.argsort([sizes, cosines]))
    if np.median(longest) <= _HARDLY or np.corrcoef(ranks)[0, 1] <= _RISES:
        return None
    return (
        "texts differ, short ones most: a prompt that is missing or should not be there, or a "
        "wrong start or end token"
    )


def _everywhere(seen: Comparison) -> str | None:
    if not _is_everywhere(seen):
        return None
    return (
        "texts differ, whatever their length and script: another pooling, other weights, another "
        "tokenizer, or for a model that reads its last token a wrong end token or prompt"
    )


def _is_everywhere(seen: Comparison) -> bool:
    low = seen.low.sum()
    return bool(low and low >= _MOST * len(seen.compared))


def _some(seen: Comparison) -> str | None:
    which = np.flatnonzero(seen.low)
    if not len(which):
        return None
    return f"{len(which)} of {len(seen.compared)} texts differ: {named(which)}"


def of_poolings(
    texts: Texts,
    found: Sequence[Answer],
    poolings: Mapping[str, Sequence[Answer]],
    threshold: float,
) -> Iterator[Finding]:
    """Name the pooling that would give these vectors; of each there are some first texts'."""
    for mode, answers in poolings.items():
        seen = compare(texts, answers, found[: len(answers)], Output.DENSE, threshold)
        if len(seen.compared) == len(answers) and not seen.low.any():
            yield Finding("pooling", f"the vectors are those of {mode} pooling")


def of_prompts(low_by_kind: dict[str, float]) -> Iterator[Finding]:
    """Say which prompt is wrong where some kinds of requests are right and others are not.

    `low_by_kind` has the share of texts below the threshold.
    """
    wrong = [kind for kind, low in low_by_kind.items() if low > _MOST]
    fine = [kind for kind, low in low_by_kind.items() if not low]
    if wrong and fine:
        right = " and ".join(fine)
        text = f"{' and '.join(wrong)} texts differ and {right} texts do not: their prompt"
        yield Finding("prompt", text)


def narrowed(findings: list[Finding]) -> list[Finding]:
    """Leave out guesses about all texts where the first finding says which one is right."""
    if not findings or findings[0].name not in ("pooling", "prompt"):
        return findings
    return [each for each in findings if each.name not in ("everywhere", "ends")]


def named(which: Indices, thing: str = "text") -> str:
    """Return `text 3` or `texts 3, 5 and 2 more`."""
    return f"{thing}{'s' if len(which) > 1 else ''} {_listed([str(index) for index in which])}"


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - _LISTED} more" if len(words) > _LISTED else ""
    return f"{', '.join(words[:_LISTED])}{more}"


Check = Callable[[Comparison], str | None]
_OF_SINGLE_TEXTS: Final[dict[str, Check]] = {
    "refused": partial(_no_vector, finite=False),
    "not_finite": _not_finite,
    "alone": _alone,
}
_OF_DIMENSIONS: Final[dict[str, Check]] = {
    "dimensions": _dimensions,
    "sign": _sign,
    "permuted": _permuted,
    "scaled": _scaled,
}
_OF_LENGTHS: Final[dict[str, Check]] = {"not_normalised": _not_normalised}
# The narrowest explanation comes first, and is the only one.
_OF_MANY_TEXTS: Final[dict[str, Check]] = {
    "shuffled": _shuffled,
    "batching": _batching,
    "truncation": partial(
        _only_those,
        having=lambda texts: texts.over_long,
        text="only texts that are longer than the context differ: cut at the other end or "
        "elsewhere",
    ),
    "lower_casing": partial(
        _only_those,
        having=_have_capitals,
        text="only texts with capital letters differ: lower-casing",
    ),
    "normalisation": partial(
        _only_those,
        having=_have_capitals_or_marks,
        text="only texts with capital letters or accents differ: lower-casing, or another part of "
        "the tokenizer's normalisation",
    ),
    "ends": _ends,
    "everywhere": _everywhere,
    "some": _some,
}

"""The report: JSON for programs, and one HTML page with pictures that needs no network.

Beginnings of the worst texts are in both.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, StrictUndefined

from embedding_service import __version__
from embedding_service.errors import BadConfiguration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from embedding_service.verify.result import ModelResult, Part

_SMALLEST = 1e-12  # of 1 - cosine: below it are float32's own steps


def write(path: Path, content: str) -> None:
    """Write a file. Raises `BadConfiguration`."""
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise BadConfiguration(f"{path}: {error.strerror}") from None


def as_json(results: Sequence[ModelResult]) -> str:
    """Return the whole outcome."""
    tree: dict[str, Any] = {
        "version": __version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "right": all(result.right for result in results),
        "models": [result.as_json() for result in results],
    }
    return json.dumps(tree, ensure_ascii=False, indent=1) + "\n"


def as_html(results: Sequence[ModelResult]) -> str:
    """Return the page."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    page = environment.from_string((files(__package__) / "report.html").read_text("utf-8"))
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return page.render(version=__version__, time=when, results=results, pictures=pictures)


class Axis(NamedTuple):
    """A linear axis: its ends, its name, and the values that get a mark, with their labels."""

    least: float
    most: float
    name: str
    marks: Sequence[tuple[float, str]]

    def percent(self, value: float) -> float:
        """Return where a value lies; values beyond an end lie at it."""
        share = (value - self.least) / (self.most - self.least)
        return round(100 * min(1.0, max(0.0, share)), 2)


class Picture(NamedTuple):
    """A histogram, or dots of a value of each axis with a `limit` of the second one.

    Data for the template, with places in percent of the plot: `bars` have their left end and the
    number of texts.
    """

    title: str
    x: Axis
    y: Axis
    bars: Sequence[tuple[float, int]] = ()
    bar_width: float = 0.0
    dots: Sequence[tuple[float, float]] = ()
    limit: float | None = None


def pictures(part: Part, result: ModelResult) -> Iterator[Picture]:
    """Yield the pictures of one kind of vector."""
    if part.cosines:
        distances = [math.log10(max(_SMALLEST, 1 - cosine)) for cosine in part.cosines]
        yield _histogram(distances, _distance(2), bins=41, title="1 − cosine of all texts")
        yield _by_length(part, distances, result)
    if part.neighbours:
        marks = [(share / 10, str(share)) for share in range(0, 11, 2)]
        x = Axis(-0.05, 1.05, "of a text's ten nearest, on both sides", marks)
        yield _histogram(part.neighbours, x, bins=11, title="the ten nearest texts")


def _distance(step: int) -> Axis:
    """Return the axis of log10(1 - cosine), with a mark at every `step` powers of ten."""
    return Axis(-12, 0.3, "1 − cosine", [(power, f"1e{power}") for power in range(-12, 1, step)])


def _histogram(values: Sequence[float], x: Axis, *, bins: int, title: str) -> Picture:
    """Count how many values fall into each of the equal bins of the axis."""
    counts = Counter(min(bins - 1, int(x.percent(value) * bins / 100)) for value in values)
    most = max(counts.values())
    y = Axis(0, most, "texts", [(0, "0"), (most, str(most))])
    bars = [(100 * place / bins, count) for place, count in counts.items()]
    return Picture(title, x, y, bars=bars, bar_width=100 / bins)


def _by_length(part: Part, distances: Sequence[float], result: ModelResult) -> Picture:
    sizes = [math.log2(max(1, size)) for size in part.lengths]
    longest = max(1.0, *sizes)
    marks = [(power, str(2**power)) for power in range(0, math.ceil(longest) + 1, 2)]
    return Picture(
        f"1 − cosine by {result.unit}; dashed: the threshold",
        Axis(0, longest, result.unit, marks),
        _distance(3),
        dots=list(zip(sizes, distances, strict=True)),
        limit=math.log10(1 - result.threshold) if result.threshold < 1 else None,
    )

"""Small SVG pictures: a histogram and a scatter plot, drawn in the page's own colours."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_WIDTH, _HEIGHT = 420, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 12, 40


class Axis(NamedTuple):
    """A linear axis: its ends, its name, and the values that get a mark, with their labels."""

    least: float
    most: float
    name: str
    marks: Sequence[tuple[float, str]]

    def share(self, value: float) -> float:
        """Return where a value lies, 0 to 1; values beyond an end lie at it."""
        span = (self.most - self.least) or 1.0
        return min(1.0, max(0.0, (value - self.least) / span))


def histogram(values: Sequence[float], x: Axis, *, bins: int, title: str) -> str:
    """Draw how many values fall into each of the equal bins of the axis."""
    counts = Counter(min(bins - 1, int(x.share(value) * bins)) for value in values)
    most = max(counts.values(), default=1)
    y = Axis(0, most, "texts", [(0, "0"), (most, str(most))])
    bars = [_bar(place / bins, 1 / bins, y.share(count), count) for place, count in counts.items()]
    return _frame(x, y, "".join(bars), title)


def scatter(
    points: Sequence[tuple[float, float]], x: Axis, y: Axis, *, line: float | None, title: str
) -> str:
    """Draw a dot for each point, and a dashed line at a value of the y axis."""
    dots = "".join(
        f'<circle class="mark" cx="{_x(x, a):.1f}" cy="{_y(y, b):.1f}" r="2.5"/>' for a, b in points
    )
    limit = "" if line is None else _rule(_y(y, line))
    return _frame(x, y, limit + dots, title)


def _bar(left: float, width: float, height: float, count: int) -> str:
    """Draw a bar; place and size are shares of the plot."""
    tall = height * _plot_height()
    x, y = _LEFT + left * _plot_width(), _HEIGHT - _BOTTOM - tall
    wide = max(1.0, width * _plot_width() - 1)
    place = f'x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}"'
    return f'<rect class="mark" {place}><title>{count} texts</title></rect>'


def _rule(y: float) -> str:
    return f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _frame(x: Axis, y: Axis, inside: str, title: str) -> str:
    axes = f'<path class="axis" d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}"/>'
    box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}"'
    svg = f"<svg {box}>{axes}{inside}{_labels(x, y)}</svg>"
    return f"<figure><figcaption>{title}</figcaption>{svg}</figure>"


def _labels(x: Axis, y: Axis) -> str:
    below, left = _HEIGHT - _BOTTOM + 14, _LEFT - 5
    marks = [_text(_x(x, value), below, label, anchor="middle") for value, label in x.marks]
    marks += [_text(left, _y(y, value) + 4, label, anchor="end") for value, label in y.marks]
    middle = _LEFT + _plot_width() / 2
    return "".join(marks) + _text(middle, _HEIGHT - 6, x.name, anchor="middle")


def _text(x: float, y: float, text: str, *, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _plot_width() -> float:
    return _WIDTH - _LEFT - _RIGHT


def _plot_height() -> float:
    return _HEIGHT - _BOTTOM - _TOP


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.share(value) * _plot_width()


def _y(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - axis.share(value) * _plot_height()

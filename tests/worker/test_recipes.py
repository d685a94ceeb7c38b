"""Any combination of module files is computed as sentence-transformers does, or refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.worker.direct import ROOT

pytestmark = pytest.mark.engine


def comparisons(seed: int, count: int) -> list[dict[str, Any]]:
    """Return those of random checkpoints, from a process that may import vLLM."""
    command = [sys.executable, "-m", "tests.worker.recipes", str(seed), str(count)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True)
    # vLLM writes lines of its own.
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check(found: list[dict[str, Any]]) -> None:
    """Each is equal to the reference, direction and length; what is not known is refused."""
    for comparison in found:
        if place := comparison["told"].get("stranger"):
            assert place in comparison["refused"]
        else:
            assert comparison["cosine"] >= 0.99999, comparison
            assert comparison["length"] < 1e-5, comparison


def test_random_module_files_are_right_or_refused() -> None:
    """Modes of pooling, layers, activations, prompts, lower-casing and lengths in any order."""
    found = comparisons(0, 25)
    assert len(found) == 25
    assert len([comparison for comparison in found if "refused" in comparison]) == 5
    check(found)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_many_random_module_files() -> None:
    """The same with a thousand of them."""
    check(comparisons(1000, 1000))

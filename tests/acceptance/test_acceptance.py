"""Checkpoints of the kinds that people serve are right, or refused with a line of use.

Random weights in the true layouts, compared through HTTP with sentence-transformers, transformers
and the authors' formulas; README.md has the commands. `make soak` compares all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.acceptance.__main__ import good
from tests.acceptance.run import ROOT, run
from tests.deploy.tools import free_ports

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.engine

# One of each kind that vLLM computes otherwise, or not at all.
QUICK = (
    "again-ru-en-rosberta",
    "bge-reranker-v2-gemma",
    "certain-reranker",
    "dense-normalize-layer-norm-dense",
    "dense-prelu-residual",
    "do-lower-case",
    "embeddinggemma",
    "gte-large-en",
    "head-ElectraForPreTraining",
    "head-gte-multilingual",
    "jina-v3-hf",
    "length-of-positions-linear",
    "llama-types",
    "max-seq-above-positions",
    "modernbert-types",
    "mxbai-rerank-v2",
    "no-modules-bert",
    "nomic-native",
    "pooling-three-modes",
    "prompt-names-0",
    "qwen3-reranker-finetuned",
    "qwen3-reranker-renamed",
    "qwen3-reranker-st",
    "ru-en-rosberta",
    "scaled-and-cut",
    "sentence-camembert",
    "splade-distil",
    "splade-sum-log1p",
    "stella-1.5b",
    "transformer-in-subfolder",
    "two-labels",
    "value-pairs-without-types",
    "value-splade-relu",
    "weightedmean-without-prompt",
    "unknown-module",
)
# Words that help nobody who does not know vLLM.
JARGON = ("Assertion failed", "dict_keys", "dispatch", "Traceback", "position_ids")
LINE = 500


def served(folder: Path, *names: str) -> dict[str, dict[str, Any]]:
    """Build checkpoints, serve them and return the results by name."""
    command = [sys.executable, "-m", "tests.acceptance", "build", str(folder), *names]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
    (port,) = free_ports(1)
    return {result["name"]: result for result in run(folder, port, list(names))}


def check(results: dict[str, dict[str, Any]]) -> None:
    """Each is right, or says in one line why it is not served, where that is allowed."""
    wrong = {name: result for name, result in results.items() if not good(result)}
    assert not wrong
    for result in results.values():
        line = result.get("message", "")
        assert "\n" not in line
        assert len(line) <= LINE
        assert not [word for word in JARGON if word in line]


@pytest.mark.timeout(900)  # 70 s where nothing else runs
def test_one_of_each_kind(tmp_path: Path) -> None:
    """Right, or refused."""
    results = served(tmp_path, *QUICK)
    assert results.keys() == set(QUICK)
    assert results["unknown-module"]["verdict"] == "NOT SERVED"
    check(results)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_all_of_them(tmp_path: Path) -> None:
    """Right, or refused."""
    check(served(tmp_path))

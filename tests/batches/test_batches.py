"""`/v1/batches`: lines are answered as requests are, once each, whatever happens meanwhile."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from embedding_service.batches import results as results_module
from embedding_service.types import Priority
from tests.batches.work import (
    EMBEDDINGS,
    RERANK,
    jsonl,
    line,
    lines,
    results,
    start,
    state,
    upload,
    wait,
)
from tests.child import wait_until
from tests.conftest import FAKE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from embedding_service.types import Batch, BatchResult
    from tests.conftest import RunningGateway

STEP_S, STEP_TEXTS = 0.05, 4  # 25 s for 2,000 lines: what is to meet a batch at work does


def model(name: str, output: str) -> dict[str, Any]:
    """Return a model of the fake engine that takes a moment for each step of four texts."""
    arguments = {"step_s": STEP_S, "outputs": [output]}
    fields = {"engine": "fake", "model_name": name, "required": True, "engine_args": arguments}
    return {**fields, "max_batch_size": STEP_TEXTS}


@pytest.fixture(scope="module")
def gateway(
    start_gateway: Callable[..., RunningGateway], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningGateway]:
    """Return a gateway with both kinds of model."""
    running = start_gateway(
        port=0,
        models=[model("fake", "dense"), model("ranker", "score")],
        state_dir=tmp_path_factory.mktemp("state"),
        cache_max_bytes=1 << 20,
        max_body_bytes=64 << 10,
        max_batch_lines=2000,
        metrics="open",
    )
    yield running
    running.stop()


@pytest.fixture
def http(gateway: RunningGateway) -> Iterator[httpx.Client]:
    with gateway.client() as client:
        yield client


def error(answer: httpx.Response) -> tuple[int, str | None, str | None]:
    body = answer.json()["error"]
    return answer.status_code, body["code"], body["param"]


def test_the_sdks_example_works(gateway: RunningGateway) -> None:
    """The unmodified SDK makes a batch, waits for it, and reads vectors as requests get them."""
    sdk = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0)
    asked = [line("one"), line("two", {"model": "fake", "input": ["w1", "w2"], "user": "x"})]
    file = sdk.files.create(file=("in.jsonl", jsonl(asked)), purpose="batch")
    batch = sdk.batches.create(
        input_file_id=file.id,
        endpoint="/v1/embeddings",
        completion_window="24h",
        metadata={"job": "nightly"},
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (batch.object, batch.status, batch.endpoint) == ("batch", "validating", EMBEDDINGS)
    assert (batch.input_file_id, batch.completion_window) == (file.id, "24h")
    assert batch.expires_at == batch.created_at + 86_400
    with gateway.client() as http:
        wait(http, batch.id)
    done = sdk.batches.retrieve(batch.id)
    assert (done.status, done.metadata, done.errors) == ("completed", {"job": "nightly"}, None)
    counts = done.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (2, 2, 0)
    times = (done.created_at, done.in_progress_at, done.finalizing_at, done.completed_at)
    assert None not in times
    assert sorted(map(int, times)) == list(times)
    assert (done.model, done.error_file_id) == ("fake", None)
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.input_tokens == 4 + 3 + 3
    assert done.output_file_id is not None
    output = sdk.files.retrieve(done.output_file_id)
    assert output.purpose == "batch_output"
    assert output.expires_at == output.created_at + 3600
    with gateway.client() as http:
        found = results(http, done.output_file_id)
    for entry in asked:
        answer = found[entry["custom_id"]]["response"]
        direct = httpx.post(f"{gateway.url}/v1/embeddings", json=entry["body"]).json()
        assert (answer["status_code"], answer["body"]) == (200, direct)
        assert answer["request_id"]
    assert batch.id in [each.id for each in sdk.batches.list(limit=1)]


def test_windows_files_are_read(http: httpx.Client) -> None:
    """A byte order mark, carriage returns, blank lines and a last line without its end are fine."""
    text = b"\xef\xbb\xbf" + jsonl(lines(3)).replace(b"\n", b"\r\n\r\n").rstrip()
    batch = wait(http, start(http, text))
    assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}


def test_reranking_is_batched(gateway: RunningGateway, http: httpx.Client) -> None:
    """Lines of /v1/rerank get what requests there get."""
    body = {"model": "ranker", "query": "w1", "documents": ["w2", "w3 w4"]}
    batch = wait(http, start(http, jsonl([line("a", body, RERANK)]), RERANK))
    answer = results(http, batch["output_file_id"])["a"]["response"]["body"]
    direct = http.post(RERANK, json=body).json()
    assert {**answer, "id": ""} == {**direct, "id": ""}


def test_a_wrong_line_fails_alone(http: httpx.Client) -> None:
    """A line that a request would be refused for is in the error file, in the same words; one that
    ends the engine fails its own line, and the others are answered.
    """
    wrong: dict[str, dict[str, Any]] = {
        "no model": {"model": "gpt-4", "input": "w1"},
        "no input": {"model": "fake"},
        "wrong size": {"model": "fake", "input": "w1", "dimensions": 7},
        "too long": {"model": "fake", "input": "w1 " * 600},
        "refused": {"model": "fake", "input": "fault-reject"},
        "nan": {"model": "fake", "input": "fault-nan"},
    }
    asked = [line(name, body) for name, body in wrong.items()]
    batch = wait(http, start(http, jsonl([*lines(40), *asked])))
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 46, "completed": 40, "failed": 6}
    assert len(results(http, batch["output_file_id"])) == 40
    failed = results(http, batch["error_file_id"])
    assert failed.keys() == wrong.keys()
    for name, body in wrong.items():
        direct = http.post(EMBEDDINGS, json=body)
        answer = failed[name]["response"]
        assert (answer["status_code"], answer["body"]) == (direct.status_code, direct.json())
        assert failed[name]["error"] is None


@pytest.mark.parametrize(
    ("content", "code", "number"),
    [
        (b"", None, None),
        (b"\n \n", "empty_file", None),
        (jsonl([line("a")]) + b"\n" * 1_000_001, "invalid_file", None),
        (jsonl([line("a")]) + b"{no json\n", "invalid_json_line", 2),
        (b"\n" + jsonl([[1]]), "invalid_json_line", 2),
        (jsonl([{**line("a"), "body": "x"}]), "invalid_request", 1),
        (jsonl([{"custom_id": "a"}]), "missing_required_parameter", 1),
        (jsonl([{**line("a"), "custom_id": 1}]), "invalid_request", 1),
        (jsonl([{**line("a"), "custom_id": ""}]), "invalid_custom_id", 1),
        (jsonl([{**line("a"), "method": "GET"}]), "invalid_method", 1),
        (jsonl([{**line("a"), "url": RERANK}]), "mismatched_url", 1),
        (jsonl([line("a"), line("b"), line("a")]), "duplicate_custom_id", 3),
        (jsonl([line("a", {"input": "x" * 70_000})]), "line_too_long", 1),
        (jsonl(lines(2001)), "too_many_lines", None),
        (b'{"custom_id":"a","custom_id":"b"}', "invalid_json_line", 1),
        (b"\xff\xfe", "invalid_json_line", 1),
    ],
)
def test_a_broken_file_fails_its_batch(
    http: httpx.Client, content: bytes, code: str | None, number: int | None
) -> None:
    """A file that is no list of requests fails before any line runs; each fault has its line."""
    if code is None:
        files, data = {"file": ("in.jsonl", content)}, {"purpose": "batch"}
        assert http.post("/v1/files", files=files, data=data).status_code == 400
        return
    batch = wait(http, start(http, content))
    assert batch["status"] == "failed"
    assert batch["failed_at"] >= batch["created_at"]
    assert batch["errors"]["object"] == "list"
    fault = batch["errors"]["data"][0]
    assert (fault["code"], fault["line"]) == (code, number)
    assert fault["message"]
    assert "request body" not in fault["message"]
    if code == "invalid_json_line":
        assert fault["message"].startswith(f"line {number} ")
        assert fault["message"].count("line") == 1  # its own alone
    assert (batch["output_file_id"], batch["error_file_id"]) == (None, None)


def test_wrong_batches_are_refused(http: httpx.Client) -> None:
    """A field that is wrong is named, and nothing is made."""
    good = {
        "input_file_id": upload(http, jsonl(lines(1))),
        "endpoint": EMBEDDINGS,
        "completion_window": "24h",
    }
    count = len(http.get("/v1/batches").json()["data"])
    for wrong, param in (
        ({"input_file_id": "file-no"}, "file_id"),
        ({"input_file_id": None}, "input_file_id"),
        ({"endpoint": "/v1/chat/completions"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
            "output_expires_after.seconds",
        ),
    ):
        answer = http.post("/v1/batches", json={**good, **wrong})
        status = 404 if param == "file_id" else 400
        assert error(answer)[::2] == (status, param), answer.text
    assert len(http.get("/v1/batches").json()["data"]) == count
    for path in ("/v1/batches/batch_no", "/v1/batches/%2e%2e"):
        assert http.get(path).status_code == 404
    assert error(http.post("/v1/batches/batch_no/cancel"))[:2] == (404, "not_found")


def test_a_batch_is_cancelled(http: httpx.Client) -> None:
    """The results so far are kept, other lines say that they did not run; an ended one stays."""
    batch = start(http, jsonl(lines(2000)))
    wait(http, batch, "in_progress", done=1)
    answer = http.post(f"/v1/batches/{batch}/cancel").json()
    assert (answer["status"], answer["cancelling_at"] is not None) == ("cancelling", True)
    ended = wait(http, batch)
    assert (ended["status"], ended["cancelled_at"] is not None) == ("cancelled", True)
    done = results(http, ended["output_file_id"])
    rest = results(http, ended["error_file_id"])
    assert 0 < len(done) < 2000
    assert done.keys() | rest.keys() == {f"line-{number}" for number in range(2000)}
    assert {row["error"]["code"] for row in rest.values()} == {"batch_cancelled"}
    assert error(http.post(f"/v1/batches/{batch}/cancel"))[:2] == (400, "batch_not_cancellable")


def test_a_file_in_use_stays(http: httpx.Client) -> None:
    """The input of a batch is deleted once the batch has ended, and not before."""
    batch = start(http, jsonl(lines(2000)))
    file = state(http, batch)["input_file_id"]
    assert error(http.delete(f"/v1/files/{file}"))[:2] == (400, "file_in_use")
    http.post(f"/v1/batches/{batch}/cancel")
    assert wait(http, batch)["status"] == "cancelled"
    assert http.delete(f"/v1/files/{file}").json()["deleted"]


def test_queries_come_first(
    gateway: RunningGateway, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a batch keeps the engine busy, a lone text waits for the step that runs and shares the
    next one; lines leave the cache to queries.
    """
    service = gateway.gateway.service
    served, cache = service.models.get("fake"), service.models.cache
    assert served is not None
    assert cache is not None
    steps: dict[Priority, list[int]] = {priority: [] for priority in Priority}
    run = served.engine.run

    async def counted(batch: Batch, **options: Any) -> BatchResult:
        result = await run(batch, **options)
        steps[batch.priority].append(result.steps)
        return result

    monkeypatch.setattr(served.engine, "run", counted)
    before = cache.entries
    batch = start(http, jsonl(lines(2000)))
    wait(http, batch, "in_progress", done=1)
    for number in range(8):
        http.post(EMBEDDINGS, json={"model": "fake", "input": f"w1 w{number} query"})
    assert state(http, batch)["status"] == "in_progress"
    assert cache.entries == before + 8
    http.post(f"/v1/batches/{batch}/cancel")
    wait(http, batch)
    assert len(steps[Priority.INTERACTIVE]) == 8
    assert max(steps[Priority.INTERACTIVE]) <= 2
    assert max(steps[Priority.BULK]) > 2  # they did wait


def test_a_full_disk_is_waited_for(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results that the disk does not take are written when it does: none is lost or there twice."""
    monkeypatch.setattr(results_module, "_RETRY_S", 0.05)
    batch = start(http, jsonl(lines(200)))  # writes for the first time after a second
    failures = []

    def full(_: int) -> None:
        failures.append(1)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        wait_until(lambda: len(failures) >= 5)
    ended = wait(http, batch)
    assert ended["request_counts"] == {"total": 200, "completed": 200, "failed": 0}
    assert len(results(http, ended["output_file_id"])) == 200


def test_batches_are_counted(gateway: RunningGateway, http: httpx.Client) -> None:
    """The metrics say how many batches there are, how their lines ended, and whether they move."""

    def samples() -> dict[str, float]:
        rows = http.get("/metrics").text.splitlines()
        split = (row.rpartition(" ") for row in rows if not row.startswith("#"))
        return {
            name: float(value) for name, _, value in split if name.startswith("embedding_batch")
        }

    before = samples()
    batch = start(http, jsonl([*lines(5), line("bad", {"input": []})]))
    wait(http, batch)
    name = 'embedding_batches{status="completed"}'
    wait_until(lambda: samples()[name] >= before[name] + 1)
    after = samples()
    for result, count in (("completed", 5), ("failed", 1)):
        name = f'embedding_batch_lines_total{{result="{result}"}}'
        assert after[name] - before.get(name, 0) == count
    assert after["embedding_batch_stalled_seconds"] == after["embedding_batch_oldest_seconds"] == 0


def test_results_without_room_fail_the_batch(
    start_gateway: Callable[..., RunningGateway], tmp_path: Path
) -> None:
    """A batch whose results are more than its owner may store fails, and says why."""
    gateway = start_gateway(**FAKE, state_dir=tmp_path, max_stored_bytes=8000)
    with gateway.client() as http:
        batch = wait(http, start(http, jsonl(lines(30))))
        assert batch["status"] == "failed"
        fault = batch["errors"]["data"][0]
        assert fault["code"] == "storage_limit_exceeded"
        assert "max_stored_bytes" in fault["message"]
        assert len(http.get("/v1/files").json()["data"]) == 1
    gateway.stop()
    assert len(list((tmp_path / "files").iterdir())) == 1
    assert list((tmp_path / "batches").iterdir()) == []

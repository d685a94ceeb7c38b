"""The disk and the database of batches: what they do not take, and what is left on them."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from embedding_service.batches import batches, files, leases, ledger, store
from embedding_service.batches import results as written
from embedding_service.batches.files import StoredFile
from embedding_service.batches.store import Store
from embedding_service.errors import StorageFull, Unavailable
from tests.batches.work import jsonl, line, lines, results, start, wait
from tests.child import wait_until
from tests.conftest import FAKE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from embedding_service.batches.ledger import Batch
    from tests.conftest import RunningGateway

COUNT = 1500


@pytest.fixture
def gateway(
    start_gateway: Callable[..., RunningGateway], tmp_path: Path
) -> Iterator[RunningGateway]:
    """Return a gateway that takes a moment for each step of four texts: 19 s for `COUNT`."""
    slow: dict[str, Any] = {"engine_args": {"step_s": 0.05}, "max_batch_size": 4}
    running = start_gateway(**FAKE, **slow, state_dir=tmp_path)
    yield running
    running.stop()


def test_segments_of_ended_batches_go(
    gateway: RunningGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments that an instance left behind are removed; those of a batch at work stay."""
    with gateway.client() as http:
        ended = wait(http, start(http, jsonl(lines(3))))
        running = start(http, jsonl(lines(COUNT)))
        wait(http, running, "in_progress", done=50)
        left = [tmp_path / "batches" / f"{name}.7.error" for name in (ended["id"], "batch_0")]
        for path in left:
            path.write_bytes(b"{}\n")
        monkeypatch.setattr(batches, "_SWEEP_S", 0)
        wait_until(lambda: not any(path.exists() for path in left))
        assert len(list((tmp_path / "batches").glob(f"{running}.*"))) == 2
        http.post(f"/v1/batches/{running}/cancel")
        found = wait(http, running)
        done = len(results(http, found["output_file_id"]))
        assert done == found["request_counts"]["completed"] >= 50


def test_a_write_that_can_never_succeed_fails_the_batch(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that may not be written is no full disk: the batch says so, and does not retry."""

    def refuse(_: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/secret")

    with gateway.client() as http:
        batch = start(http, jsonl(lines(COUNT)))
        wait(http, batch, "in_progress", done=50)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            found = wait(http, batch)
    assert (found["status"], found["output_file_id"]) == ("failed", None)
    fault = found["errors"]["data"][0]
    assert (fault["code"], fault["line"]) == ("storage_failed", None)
    assert os.strerror(errno.EROFS) in fault["message"]
    assert "/secret" not in fault["message"]


def test_results_that_are_gone_fail_the_batch(gateway: RunningGateway, tmp_path: Path) -> None:
    """Missing segments end the batch with the reason; a file that was made of others is removed."""
    with gateway.client() as http:
        wrong = line("wrong", {"model": "other", "input": "w1"})
        batch = start(http, jsonl([wrong, *lines(COUNT)]))
        wait(http, batch, "in_progress", done=50)
        next((tmp_path / "batches").glob("*.error")).unlink()
        http.post(f"/v1/batches/{batch}/cancel")
        found = wait(http, batch)
        wait_until(lambda: not any((tmp_path / "batches").iterdir()))
    assert (found["status"], found["output_file_id"]) == ("failed", None)
    assert found["errors"]["data"][0]["code"] == "storage_failed"
    assert [path.name for path in (tmp_path / "files").iterdir()] == [found["input_file_id"]]


def test_results_outlast_a_database_that_is_full(
    gateway: RunningGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For however many hours: files of no row that rest for one are removed as a crash's."""
    finish, ages = leases.finish, []

    def full(
        db: sqlite3.Connection, batch: Batch, status: str, made: dict[str, StoredFile], *rest: Any
    ) -> None:
        for file in made.values():
            path = tmp_path / "files" / file.id
            ages.append(time.time() - path.stat().st_mtime)
            os.utime(path, (0, 0))
        if len(ages) < 3:
            raise StorageFull("full")
        finish(db, batch, status, made, *rest)

    monkeypatch.setattr(written, "_RETRY_S", 0.01)
    with gateway.client() as http:
        monkeypatch.setattr(leases, "finish", full)
        found = wait(http, start(http, jsonl(lines(3))))
        assert len(results(http, found["output_file_id"])) == 3
    assert max(ages) < 3600


def test_an_input_that_cannot_be_read_fails_the_batch(
    gateway: RunningGateway, tmp_path: Path
) -> None:
    """An input that is no file any more is a reason as well, and not one to try again."""
    with gateway.client() as http:
        wait_until(lambda: http.get("/readyz").status_code == 200)
        blocker = start(http, jsonl(lines(COUNT)))  # a key's batches run one after another
        batch = start(http, jsonl(lines(3)))
        source = tmp_path / "files" / http.get(f"/v1/batches/{batch}").json()["input_file_id"]
        source.unlink()
        source.mkdir()
        http.post(f"/v1/batches/{blocker}/cancel")
        found = wait(http, batch)
    assert found["status"] == "failed"
    assert found["errors"]["data"][0]["code"] == "storage_failed"


async def test_readers_wait_for_no_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process holds the database, reading goes on; the log has SQLite's own words."""
    monkeypatch.setattr(store, "_BUSY_S", 0.05)
    here, other = Store(tmp_path), sqlite3.connect(tmp_path / "state.sqlite3", isolation_level=None)
    file = StoredFile("file-1", "a", "batch", "x", 1, 0, 1 << 40)
    await here.run(files.add, file)
    other.execute("BEGIN IMMEDIATE")
    assert await here.read(files.find, "a", "file-1") == file
    assert (await here.read(ledger.count)).oldest_s == 0
    with capture_logs() as log, pytest.raises(Unavailable):
        await here.run(files.delete, "a", "file-1")
    assert log == [
        {"event": "state_not_reached", "log_level": "error", "reason": "database is locked"}
    ]
    other.close()
    await here.close()


async def test_reading_writes_nothing(tmp_path: Path) -> None:
    """A write through the reading connection is refused, so that none can slip in unnoticed."""
    here = Store(tmp_path)
    with pytest.raises(Unavailable):
        await here.read(files.expire, 0.0)
    await here.close()


def test_an_upload_that_fails_leaves_its_cause() -> None:
    """The log has the disk's words; the client is told what to do."""
    with capture_logs() as log:
        answer = store.storage_error(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))
    assert isinstance(answer, StorageFull)
    assert os.strerror(errno.EDQUOT) in log[0]["reason"]

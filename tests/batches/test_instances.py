"""Batches over the end of instances, keys and time: each line once, and only for who may."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import openai
import pytest
import yaml

from embedding_service.batches import batches, leases, ledger
from embedding_service.batches.instances import Instance
from embedding_service.batches.leases import LeaseLost, Progress
from embedding_service.batches.ledger import Batch
from embedding_service.batches.output import Writer, join
from embedding_service.batches.store import Store
from tests.batches.work import jsonl, line, lines, results, start, state, wait
from tests.child import Child, wait_until
from tests.conftest import FAKE
from tests.test_cli import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import httpx

    from tests.conftest import RunningGateway

COUNT = 1500
STEP_TEXTS = 4  # of an instance that is to be at work for long: it takes 19 s for all lines
SLOW = ("--engine-args", json.dumps({"step_s": 0.05}), "--drain-grace-s", "0")


def child(folder: Path, name: str, *arguments: str) -> Child:
    """Start a gateway process on the state that all in this folder share."""
    (folder / name).mkdir()
    return Child(folder / name, *SLOW, "--state-dir", str(folder / "state"), *arguments)


def all_once(http: httpx.Client, batch: dict[str, Any], count: int) -> bool:
    """Tell whether each line has one answer, and no error."""
    assert (batch["status"], batch["error_file_id"]) == ("completed", None), batch
    assert batch["request_counts"] == {"total": count, "completed": count, "failed": 0}
    found = results(http, batch["output_file_id"])
    return found.keys() == {f"line-{number}" for number in range(count)}


@pytest.mark.process
def test_the_owner_is_killed_in_the_middle(tmp_path: Path) -> None:
    """Of two instances one works on a batch; when it is killed the other does, each line once."""
    owner = child(tmp_path, "a", "--max-batch-size", str(STEP_TEXTS))
    other = child(tmp_path, "b")
    try:
        other.process.send_signal(signal.SIGSTOP)  # else it might be the first to look for work
        with owner.client() as http:
            batch = start(http, jsonl(lines(COUNT)))
            owner.wait_for("batch_taken")
            other.process.send_signal(signal.SIGCONT)
            wait(http, batch, "in_progress", done=100)
        taken = [len(one.events("batch_taken")) for one in (owner, other)]
        assert taken == [1, 0]
        os.kill(owner.process.pid, signal.SIGKILL)
        owner.process.wait()
        with other.client() as http:
            done = state(http, batch)["request_counts"]["completed"]
            assert 100 <= done < COUNT
            ended = wait(http, batch)
            assert all_once(http, ended, COUNT)
        assert [event["lease"] for event in other.events("batch_taken")] == [2]
        answered = other.events("batch_in_progress")
        assert answered == []  # the file was not checked a second time
    finally:
        for one in (owner, other):
            one.process.send_signal(signal.SIGCONT)
            one.end()
    assert list((tmp_path / "state" / "batches").iterdir()) == []


@pytest.mark.process
def test_the_sdks_example_over_a_kill_and_a_restart(tmp_path: Path) -> None:
    """The SDK's client gets every result of its batch, though the server is killed and stopped."""
    slow = ("--max-batch-size", str(STEP_TEXTS))
    gateway = child(tmp_path, "a", *slow)
    sdk = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any")
    file = sdk.files.create(file=("in.jsonl", jsonl(lines(COUNT))), purpose="batch")
    batch = sdk.batches.create(
        input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
    ).id
    for name, end, speed in (("b", signal.SIGKILL, slow), ("c", signal.SIGTERM, ())):
        with gateway.client() as http:
            before = state(http, batch)["request_counts"]["completed"]
            wait(http, batch, "in_progress", done=before + 50)
        gateway.process.send_signal(end)
        gateway.process.wait(60)
        if end == signal.SIGTERM:
            assert gateway.process.returncode == 0
            assert gateway.events("batch_left")
        gateway = child(tmp_path, name, *speed)
        sdk = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any")
        assert sdk.batches.retrieve(batch).status == "in_progress"
    with gateway.client() as http:
        assert all_once(http, wait(http, batch), COUNT)
    gateway.end()


@pytest.mark.parametrize("code", ["file_not_found", "line_too_long"])
def test_a_file_that_cannot_be_read_on_fails_its_batch(
    code: str, start_gateway: Callable[..., RunningGateway], tmp_path: Path
) -> None:
    """Gone, or with lines too long: it is not taken up again, and the results so far stay."""
    settings = {**FAKE, "engine_args": {"step_s": 0.05}, "state_dir": tmp_path}
    gateway = start_gateway(**settings, max_batch_size=STEP_TEXTS, drain_grace_s=0)
    with gateway.client() as http:
        long = line("long", {"model": "fake", "input": "w1 " * 3000})
        batch = start(http, jsonl([*lines(COUNT), long]))
        source = wait(http, batch, "in_progress", done=50)["input_file_id"]
    gateway.stop()
    if code == "file_not_found":
        (tmp_path / "files" / source).unlink()
    gateway = start_gateway(**settings, max_body_bytes=4000)
    with gateway.client() as http:
        ended = wait(http, batch)
        assert (ended["status"], ended["errors"]["data"][0]["code"]) == ("failed", code)
        assert len(results(http, ended["output_file_id"])) >= 50


def made(store: Store, tenant: str = "a") -> Batch:
    """Return a batch that an instance works on."""
    now = int(time.time())
    with sqlite3.connect(store.folder / "state.sqlite3", isolation_level=None) as db:
        db.row_factory = sqlite3.Row
        db.execute(
            "INSERT INTO files VALUES (NULL, 'file-1', ?, 'batch', 'x', 1, ?, ?)",
            (tenant, now, now + 9999),
        )
        batch = Batch(
            id="batch_1",
            owner=tenant,
            endpoint="/v1/embeddings",
            input_file_id="file-1",
            completion_window="24h",
            created_at=now,
            expires_at=now + 86_400,
        )
        ledger.create(db, batch, most=1)
        taken = leases.acquire(db, "x", owners=[tenant], busy=[], until=now - 1)
        assert taken is not None
        return taken


def test_an_instance_is_gone_when_its_process_is(tmp_path: Path) -> None:
    """Locks tell instances that live from those that ended, or were killed."""
    here, other = Instance(tmp_path), Instance(tmp_path)
    assert here.dead([here.name, other.name]) == []
    script = (
        "import os, sys; from pathlib import Path; "
        "from embedding_service.batches.instances import Instance; "
        "print(Instance(Path(sys.argv[1])).name, flush=True); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    name = killed.stdout.strip()
    assert (tmp_path / name).exists()
    assert here.dead([name, other.name]) == [name]
    other.close()
    assert here.dead([other.name]) == [other.name]
    here.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_late_owner_changes_nothing(tmp_path: Path) -> None:
    """An instance that comes back late finds its writes refused, and no result has them."""
    store = Store(tmp_path)
    late = made(store)
    await store.run(leases.begin, late, total=2)
    first = Writer(store, late)
    progress = Progress(bytearray(b"\x01"), 1, 0, 3, "fake", *first.append([[b"one\n"], []]))
    await store.run(leases.advance, late, progress)
    until = time.time() + 60
    owner = await store.run(leases.acquire, "y", owners=["a"], busy=[], until=until)
    assert owner is not None
    assert (owner.fence, owner.done, owner.completed) == (2, b"\x01", 1)
    first.append([[b"late\n"], [b"late\n"]])
    first.close()
    for write in (
        store.run(leases.advance, late, progress),
        store.run(leases.renew, late, until=until),
        store.run(leases.finalize, late),
        store.run(leases.finish, late, "completed", {}),
        store.run(leases.release, late),
    ):
        with pytest.raises(LeaseLost):
            await write
    assert await store.run(leases.acquire, "z", owners=["a"], busy=[], until=until) is None
    second = Writer(store, owner)
    sizes = second.append([[b"two\n"], []])
    second.close()
    await store.run(leases.advance, owner, Progress(bytearray(b"\x03"), 2, 0, 6, "fake", *sizes))
    segments = await store.run(leases.finalize, owner)
    assert join(store, owner, segments, kind="output", name="whole") == 8
    assert store.path("whole").read_bytes() == b"one\ntwo\n"
    assert join(store, owner, segments, kind="error", name="none") == 0
    await store.close()


KEYS = [
    {"name": "a", "key": "key-a", "models": ["fake"]},
    {"name": "b", "key": "key-b", "tokens": "40/second", "requests": "6/minute"},
]


@pytest.fixture
def keyed(
    start_gateway: Callable[..., RunningGateway], tmp_path: Path
) -> tuple[RunningGateway, Path]:
    """Return a gateway with a file of keys and two models."""
    keys = tmp_path / "keys.yaml"
    keys.write_text(yaml.safe_dump(KEYS))
    model: dict[str, Any] = {"engine": "fake", "required": True, "max_batch_size": STEP_TEXTS}
    model["engine_args"] = {"step_s": 0.05}
    gateway = start_gateway(
        port=0,
        models=[{**model, "model_name": name} for name in ("fake", "closed")],
        api_keys_file=keys,
        state_dir=tmp_path / "state",
        metrics="open",
    )
    return gateway, keys


def change(gateway: RunningGateway, keys: Path, entries: list[dict[str, Any]]) -> None:
    """Write the keys anew, and have the gateway read them."""
    count = sum(event.get("event") == "reloaded" for event in gateway.log)
    keys.write_text(yaml.safe_dump(entries))
    gateway.loop.call_soon_threadsafe(gateway.gateway.reload)
    wait_until(lambda: sum(e.get("event") == "reloaded" for e in gateway.log) > count)


def of(gateway: RunningGateway, key: str) -> httpx.Client:
    """Return a client with a key."""
    return gateway.client(headers={"authorization": f"Bearer {key}"})


def test_batches_belong_to_a_name(keyed: tuple[RunningGateway, Path]) -> None:
    """Others do not see a key's batches; they survive its rotation, and end with its removal."""
    gateway, keys = keyed
    with of(gateway, "key-a") as mine, of(gateway, "key-b") as other:
        batch = start(mine, jsonl(lines(COUNT)))
        assert other.get(f"/v1/batches/{batch}").status_code == 404
        assert other.get("/v1/batches").json()["data"] == []
        assert other.post(f"/v1/batches/{batch}/cancel").status_code == 404
        wait(mine, batch, "in_progress", done=50)
        change(gateway, keys, [{**KEYS[0], "key": "new-a"}, KEYS[1]])
        assert mine.get("/v1/batches").status_code == 401
    with of(gateway, "new-a") as mine:
        found = wait(mine, batch, "in_progress", done=100)
        assert mine.get(f"/v1/files/{found['input_file_id']}").status_code == 200
        change(gateway, keys, [KEYS[1]])
        wait_until(lambda: any(e.get("event") == "batch_ended" for e in gateway.log))
        change(gateway, keys, [{**KEYS[0], "key": "new-a"}, KEYS[1]])
        assert state(mine, batch)["status"] == "cancelled"
    gateway.stop()


def test_rights_count_when_lines_run(keyed: tuple[RunningGateway, Path]) -> None:
    """A batch for a model of others fails before it runs; a right that goes fails what is left."""
    gateway, keys = keyed
    with of(gateway, "key-a") as http:
        wrong = [line("x", {"model": "closed", "input": "w1"})]
        batch = wait(http, start(http, jsonl([*lines(3), *wrong])))
        fault = batch["errors"]["data"][0]
        assert (batch["status"], fault["code"], fault["line"]) == ("failed", "permission_denied", 4)
        running = start(http, jsonl(lines(COUNT)))
        wait(http, running, "in_progress", done=50)
        change(gateway, keys, [{**KEYS[0], "models": ["closed"]}, KEYS[1]])
        ended = wait(http, running)
        failed = results(http, ended["error_file_id"])
        assert ended["status"] == "completed"
        assert 0 < len(failed) < COUNT
        assert {row["response"]["status_code"] for row in failed.values()} == {403}
    gateway.stop()


def test_rates_of_tokens_pace_lines(keyed: tuple[RunningGateway, Path]) -> None:
    """Lines wait for their key's tokens and do not fail; its rate of requests is not theirs."""
    gateway, _ = keyed
    with of(gateway, "key-b") as http:
        began = time.monotonic()
        batch = wait(http, start(http, jsonl(lines(40))))  # 4 tokens each
        assert time.monotonic() - began >= 2  # 160 tokens at 40 a second, and a window at once
        assert all_once(http, batch, 40)
    gateway.stop()


def test_what_is_not_done_in_time_expires(
    start_gateway: Callable[..., RunningGateway], tmp_path: Path
) -> None:
    """When the window ends, the results so far are kept, and the rest says that it did not run."""
    slow: dict[str, Any] = {"engine_args": {"step_s": 0.05}, "max_batch_size": STEP_TEXTS}
    gateway = start_gateway(**FAKE, **slow, state_dir=tmp_path)
    with gateway.client() as http:
        batch = start(http, jsonl(lines(COUNT)))
        wait(http, batch, "in_progress", done=50)
        gateway.stop()
        with sqlite3.connect(tmp_path / "state.sqlite3") as db:
            db.execute("UPDATE batches SET expires_at = ?", (int(time.time()),))
        db.close()
    gateway = start_gateway(**FAKE, state_dir=tmp_path)
    with gateway.client() as http:
        ended = wait(http, batch)
        assert (ended["status"], ended["expired_at"] is not None) == ("expired", True)
        done, rest = (results(http, ended[f"{kind}_file_id"]) for kind in ("output", "error"))
        assert 50 <= len(done) < COUNT
        assert len(done) + len(rest) == COUNT
        assert {row["error"]["code"] for row in rest.values()} == {"batch_expired"}
        assert {row["response"] for row in rest.values()} == {None}
    gateway.stop()


def test_old_files_go(start_gateway: Callable[..., RunningGateway], tmp_path: Path) -> None:
    """A file is gone once its time is over, with what a crash has left behind long ago; names whose
    file another instance has just moved are no hindrance.
    """
    gateway = start_gateway(**FAKE, state_dir=tmp_path)
    with gateway.client() as http:
        batch = wait(http, start(http, jsonl(lines(3))))
        gateway.stop()
        with sqlite3.connect(tmp_path / "state.sqlite3") as db:
            db.execute("UPDATE files SET expires_at = ?", (int(time.time()),))
        db.close()
    left = tmp_path / "files" / "file-0.part"
    left.write_text("x")
    os.utime(left, (0, 0))
    moved = {tmp_path / folder / f"{n}" for folder in ("files", "instances") for n in range(5)}
    for path in moved:
        path.symlink_to("nothing")
    gateway = start_gateway(**FAKE, state_dir=tmp_path)
    wait_until(lambda: set((tmp_path / "files").iterdir()) <= moved)
    with gateway.client() as http:
        assert http.get(f"/v1/files/{batch['output_file_id']}").status_code == 404
        assert state(http, batch["id"])["status"] == "completed"
    gateway.stop()


def test_a_dead_engine_fails_one_line(
    start_gateway: Callable[..., RunningGateway], tmp_path: Path
) -> None:
    """An input that ends the engine fails its own line; the others wait for the next engine."""
    gateway = start_gateway(**FAKE, state_dir=tmp_path)
    with gateway.client() as http:
        asked = [*lines(50), line("deadly", {"model": "fake", "input": "fault-die"})]
        batch = wait(http, start(http, jsonl(asked)))
        assert batch["request_counts"] == {"total": 51, "completed": 50, "failed": 1}
        failed = results(http, batch["error_file_id"])
        assert failed["deadly"]["response"]["status_code"] == 500
    gateway.stop()


def test_a_lease_outlives_a_slow_tick() -> None:
    """Leases are renewed several times before they end."""
    assert batches.LEASE_S >= 5 * batches.TICK_S


def test_the_vector_space_is_that_of_the_batch(
    start_gateway: Callable[..., RunningGateway], tmp_path: Path
) -> None:
    """The space that a batch requires is required of its lines; a line may ask for its own."""
    gateway = start_gateway(**FAKE, state_dir=tmp_path)
    with gateway.client() as http:
        first = http.post("/v1/embeddings", json={"model": "fake", "input": "w1"})
        space = first.headers["x-vector-space"]
        http.headers["x-require-vector-space"] = "fake@0123456789ab"
        batch = wait(http, start(http, jsonl(lines(2))))
        assert (batch["status"], batch["errors"]["data"][0]["code"]) == (
            "failed",
            "vector_space_mismatch",
        )
        http.headers["x-require-vector-space"] = space
        body = {"model": "fake", "input": "w1", "require_vector_space": "fake@0123456789ab"}
        batch = wait(http, start(http, jsonl([*lines(2), line("other", body)])))
        assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
        failed = results(http, batch["error_file_id"])["other"]["response"]
        assert failed["body"]["error"]["code"] == "vector_space_mismatch"
    gateway.stop()


def test_an_output_has_one_space_over_a_restart(
    start_gateway: Callable[..., RunningGateway], tmp_path: Path
) -> None:
    """Lines that are left when the service comes back with another model get no vectors of it."""
    options = {**FAKE, "state_dir": tmp_path}
    slow: dict[str, Any] = {"engine_args": {"step_s": 0.05}, "max_batch_size": STEP_TEXTS}
    gateway = start_gateway(**options, **slow, drain_grace_s=0)
    with gateway.client() as http:
        batch = start(http, jsonl(lines(COUNT)))
        wait(http, batch, "in_progress", done=1)
    gateway.stop()
    gateway = start_gateway(**options, default_truncate="right")
    with gateway.client() as http:
        found = wait(http, batch)
        counts = found["request_counts"]
        assert counts["completed"] > 0
        assert counts["failed"] > 0
        failed = results(http, found["error_file_id"])
        codes = {each["response"]["body"]["error"]["code"] for each in failed.values()}
        assert codes == {"vector_space_mismatch"}
    gateway.stop()

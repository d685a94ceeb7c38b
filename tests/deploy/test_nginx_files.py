"""Files and batches through the shipped nginx configuration, over instances with one state."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
from typing import TYPE_CHECKING

import openai
import pytest

from embedding_service.http.multipart import OVERHEAD_BYTES
from embedding_service.settings.gateway import Settings
from tests.batches.work import jsonl, lines, results, start, state, wait
from tests.deploy.cluster import SHIPPED, run_instances, run_nginx
from tests.deploy.tools import program

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 1500


@pytest.mark.server
def test_a_batch_through_nginx_over_a_kill(tmp_path: Path) -> None:
    """A large upload streams through; the instance at work is killed; each line arrives once."""
    program("nginx", "nginx")
    arguments = json.dumps({"step_s": 0.05})
    folder = tmp_path / "gateways"
    folder.mkdir()
    slow = ("--engine-args", arguments, "--max-batch-size", "8")  # nine seconds for all lines
    flags = (*slow, "--state-dir", str(tmp_path / "state"))
    instances = run_instances(folder, *flags)
    proxy = run_nginx(tmp_path, [instance.port for instance in instances])
    try:
        sdk = openai.OpenAI(base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key="any")
        large = sdk.files.create(file=("x", b"x" * (66 << 20)), purpose="batch")
        assert large.bytes == 66 << 20
        assert sum(map(len, sdk.files.content(large.id).iter_bytes())) == 66 << 20
        with proxy.client() as http:
            batch = start(http, jsonl(lines(COUNT)))
            wait(http, batch, "in_progress", done=100)
            logs = {port: log.read_text() for port, log in _logs(folder).items()}
            owner = next(one for one in instances if "batch_taken" in logs[one.port])
            owner.end(signal.SIGKILL)
            assert state(http, batch)["request_counts"]["completed"] < COUNT
            ended = wait(http, batch)
            assert ended["request_counts"] == {"total": COUNT, "completed": COUNT, "failed": 0}
            assert len(results(http, ended["output_file_id"])) == COUNT
    finally:
        proxy.stop()
        for instance in instances:
            if instance.process.poll() is None:
                instance.end(signal.SIGTERM)


def _logs(folder: Path) -> dict[int, Path]:
    return {int(path.stem): path for path in folder.glob("*.log")}


@pytest.mark.server
@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
def test_no_post_is_sent_twice(tmp_path: Path, path: str) -> None:
    """An instance that breaks off a POST is nginx's error; no other instance hears of it."""
    seen: list[int] = []
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]

    def break_off(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                seen.append(len(connection.recv(65536)))

    threads = [threading.Thread(target=break_off, args=[each], daemon=True) for each in listeners]
    for thread in threads:
        thread.start()
    proxy = run_nginx(tmp_path, [each.getsockname()[1] for each in listeners])
    try:
        with proxy.client() as http:
            # nginx may close a connection of which it has not read the body by then.
            answer = http.post(path, content=b"{}", headers={"connection": "close"})
            assert (answer.status_code, len(seen)) == (502, 1)
            assert http.get(path).status_code == 502
            assert len(seen) == 3
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {202 << 20}\r\n\r\n"
        status, _, body = proxy.raw(head.encode())
        assert (status, json.loads(body)["error"]["code"]) == (413, "request_too_large")
        assert len(seen) == 3
    finally:
        proxy.stop()
        for each in listeners:
            each.shutdown(socket.SHUT_RDWR)
            each.close()


def test_the_limits_of_files_belong_together() -> None:
    """nginx lets through what the gateway takes for a file, with the form around it."""
    found = re.search(r"client_max_body_size +(\d+)m; # .*max_file_bytes", SHIPPED.read_text())
    assert found
    assert int(found[1]) << 20 >= Settings().max_file_bytes + OVERHEAD_BYTES

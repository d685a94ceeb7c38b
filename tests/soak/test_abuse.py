"""Clients that mean harm: what others feel of the worst requests, and what is left of connections."""

from __future__ import annotations

import contextlib
import gzip
import json
import resource
import socket
import statistics
import threading
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.child import memory_bytes
from tests.conftest import FAKE, PLAIN
from tests.http.test_widest import MODEL, raw, tokenizer_file
from tests.measured import Measured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Record = Callable[[str, str, str], None]

pytestmark = [pytest.mark.process, pytest.mark.soak]

WORST = ["ideographs", "many long texts", "a long text", "just enough objects", "marks", "numbers"]
SHORT = json.dumps({"model": "widest", "input": "the quick fox " * 350, "truncate": "right"})
SECONDS = 15.0
MANY = 1000
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\n"
BODY = b'{"model":"fake","input":"w1"}'
PHASES = {
    "nothing": b"",
    "headers": HEAD + b"x-slow: ",
    "body": HEAD + b"content-length: 90000\r\n\r\n" + bytes(60_000),
    "gzip": HEAD
    + b"content-encoding: gzip\r\ncontent-length: 9000\r\n\r\n"
    + gzip.compress(bytes(2 << 20))[:-9],
    "trailers": HEAD
    + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\nx: " % (len(BODY), BODY),
    "answer": b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nhost: a\r\n\r\n",  # 1.5 MB
}


@pytest.fixture
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    """Return a gateway with a real tokenizer and the limits that are shipped."""
    folder = tmp_path_factory.mktemp("tokenizer")
    running = Measured(port=0, models=[{**MODEL, **tokenizer_file(folder)}])
    yield running
    assert running.end() == 0


def short_requests(url: str, seconds: float) -> list[float]:
    """Return the milliseconds of short requests, one after another. None may fail."""
    times, until = [], time.monotonic() + seconds
    with httpx.Client(**PLAIN | {"base_url": url}) as http:
        while time.monotonic() < until:
            began = time.monotonic()
            answer = http.post("/v1/embeddings", content=SHORT)
            assert answer.status_code == 200, answer.text
            times.append(1000 * (time.monotonic() - began))
    return sorted(times)


def bulk(url: str, shape: str, ended: threading.Event) -> None:
    """Send one of the worst requests again and again."""
    data = gzip.compress(b'{"model":"widest","input":' + raw(shape) + b"}", 1)
    with httpx.Client(**PLAIN | {"base_url": url}) as http:
        while not ended.is_set():
            http.post("/v1/embeddings", content=data, headers={"content-encoding": "gzip"})


def test_short_requests_beside_the_worst(gateway: Measured, record: Record) -> None:
    """Beside six clients that send nothing but the worst, short requests are answered, all of them."""
    short_requests(gateway.url, 2)
    alone = short_requests(gateway.url, SECONDS)
    ended = threading.Event()
    threads = [threading.Thread(target=bulk, args=(gateway.url, each, ended)) for each in WORST]
    for thread in threads:
        thread.start()
    beside = short_requests(gateway.url, SECONDS)
    ended.set()
    for thread in threads:
        thread.join()
    at = [statistics.quantiles(times, n=100)[98] for times in (alone, beside)]
    record(
        "Short requests beside six clients with the worst bodies, p99, of that alone",
        "≤ 3 ×",
        f"{at[1] / at[0]:.1f} × ({at[0]:.0f} → {at[1]:.0f} ms), 0 of {len(beside)} failed",
    )


def test_connections_that_stop_leave_nothing(record: Record) -> None:
    """1,000 connections that stop at the same place are closed, and their memory is free again."""
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (8192, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )
    slow = {"header_timeout_s": 2, "body_timeout_s": 2, "send_timeout_s": 2, "keep_alive_s": 2}
    gateway = Measured(**{**FAKE, **slow})
    grown = {}
    for phase, beginning in PHASES.items():
        sizes = []
        for _ in range(4):
            _stop_at(gateway, beginning)
            sizes.append(memory_bytes(gateway.process.pid))
        grown[phase] = sizes[3] / max(sizes[1:3]) - 1  # the first rounds fill malloc's arenas
    assert gateway.end() == 0
    worst = max(grown, key=lambda phase: grown[phase])
    record(
        f"Memory after {MANY} connections that stop, in each phase, of that after as many before",
        "< 2 %",
        f"{grown[worst]:+.1%} ({worst})",
    )
    assert grown[worst] < 0.02, grown


def _stop_at(gateway: Measured, beginning: bytes) -> None:
    """Open many connections, send so much, read nothing, and wait until all are closed."""
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    clients = []
    for _ in range(MANY):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((host, int(port)))
        client.sendall(beginning)
        clients.append(client)
    for client in clients:
        client.settimeout(60)
        time.sleep(0.005)
        with contextlib.suppress(ConnectionResetError):
            while client.recv(65536):
                pass
        client.close()
    assert gateway.take().reserved_bytes == 0

"""The shipped nginx configuration under a real nginx, in front of real gateways with the fake engine."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import httpx
import pytest

from embedding_service.settings import Settings
from tests.deploy.tools import DEPLOY, ROOT, free_ports, program, replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

SHIPPED = DEPLOY / "nginx" / "embedding-service.conf"
SERVERS = "    server 127.0.0.1:8890 max_fails=0;\n    server 127.0.0.1:8891 max_fails=0;\n"
START_S = 120  # a generous limit on waits; nothing here is judged by its speed


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Return once `condition` holds."""
    until = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < until, f"waited in vain: {what}"
        time.sleep(0.02)


class Instance:
    """One gateway process on a port that it keeps over restarts."""

    def __init__(self, port: int, log: Path, flags: Sequence[str]) -> None:
        self.port = port
        self._log = log
        self._flags = ["--model-name", "fake", "--engine", "fake", "--cache-max-bytes", "0", *flags]
        self.start()

    def start(self) -> None:
        """Start the process; `wait_ready` waits for it."""
        command = [sys.executable, "-m", "embedding_service", "serve", "--port", str(self.port), *self._flags]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        """Return once the gateway answers 200 to `/readyz`."""

        def ready() -> bool:
            assert self.process.poll() is None, self._log.read_text()[-2000:]
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"http://127.0.0.1:{self.port}/readyz").status_code == 200
            return False

        wait_until(ready, f"the gateway on port {self.port}")

    def end(self, number: signal.Signals) -> int:
        """Send a signal; return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(START_S)

    def roll(self) -> None:
        """Drain, and start again."""
        assert self.end(signal.SIGTERM) == 0
        self.start()
        self.wait_ready()


@dataclass
class Proxy:
    """A running nginx with the shipped configuration."""

    port: int
    log: Path

    def client(self, **options: Any) -> httpx.Client:
        """Return an HTTP client for it."""
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=START_S, **options)

    def raw(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send bytes that no HTTP client would; return status, headers and body of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=START_S) as connection:
            connection.sendall(data)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body

    def logged(self, request_id: str) -> str:
        """Return the access log's line of a request."""

        def lines() -> list[str]:
            return [line for line in self.log.read_text().splitlines() if line.endswith(f"id={request_id}")]

        wait_until(lambda: bool(lines()), f"a log line of {request_id}")
        return lines()[0]


@pytest.fixture(scope="module")
def start_nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Proxy]]:
    """Return a function that runs the shipped configuration over the given ports, changed where a test says so."""
    binary = program("nginx", "nginx")
    running: list[subprocess.Popen[bytes]] = []

    def start(ports: Sequence[int], changes: dict[str, str] | None = None) -> Proxy:
        folder = tmp_path_factory.mktemp("nginx")
        (port,) = free_ports(1)
        servers = "".join(f"    server 127.0.0.1:{each} max_fails=0;\n" for each in ports)
        ours = {
            SERVERS: servers,
            "listen 80;": f"listen 127.0.0.1:{port};",
            "listen [::]:80;": "",
            "/var/log/nginx/embedding-service.log": str(folder / "access.log"),
        }
        (folder / "site.conf").write_text(replaced(SHIPPED.read_text(), {**ours, **(changes or {})}))
        temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        (folder / "nginx.conf").write_text(
            f"{'user root;' if os.geteuid() == 0 else ''} daemon off; pid {folder}/pid; error_log {folder}/error.log;\n"
            "worker_processes 2; events { worker_connections 1024; }\n"
            f"http {{ {' '.join(f'{name}_temp_path {folder}/{name};' for name in temporary)} include site.conf; }}\n"
        )
        command = [binary, "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
        checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        assert "[warn]" not in checked.stderr, checked.stderr
        running.append(subprocess.Popen(command))

        def listening() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return True
            return False

        wait_until(listening, "nginx")
        return Proxy(port, folder / "access.log")

    yield start
    for process in running:
        process.terminate()
        process.wait(START_S)


@pytest.fixture(scope="module")
def start_instances(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[Instance]]]:
    """Return a function that runs three gateways with the given flags and waits until they are ready."""
    started: list[Instance] = []

    def start(*flags: str) -> list[Instance]:
        folder = tmp_path_factory.mktemp("gateways")
        instances = [Instance(port, folder / f"{port}.log", flags) for port in free_ports(3)]
        started.extend(instances)
        for instance in instances:
            instance.wait_ready()
        return instances

    yield start
    for instance in started:
        if instance.process.poll() is None:
            instance.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def instances(start_instances: Callable[..., list[Instance]]) -> list[Instance]:
    """Return three gateways whose engine takes 20 ms a step, so that requests are under way at any moment."""
    arguments = json.dumps({"step_s": 0.02, "outputs": ["dense", "colbert"]})
    return start_instances("--engine-args", arguments, "--trusted-proxies", "127.0.0.1")


@pytest.fixture(scope="module")
def proxy(start_nginx: Callable[..., Proxy], instances: list[Instance]) -> Proxy:
    """Return nginx in front of `instances`."""
    return start_nginx([instance.port for instance in instances])


@pytest.fixture(scope="module")
def nowhere(start_nginx: Callable[..., Proxy]) -> Proxy:
    """Return nginx in front of nobody, which lets an address hold three requests."""
    return start_nginx(free_ports(2), {"embedding_clients 256;": "embedding_clients 3;"})


def assert_envelope(content_type: str, body: bytes, code: str) -> None:
    """Check that an answer is OpenAI's error object with all of its four keys."""
    assert content_type == "application/json"
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert error["message"]
    assert error["type"]


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"what is this\r\n\r\n", 400, "bad_request"),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "uri_too_long"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"x" * 40_000 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"TRACE / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405, "method_not_allowed"),
        (b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 67108865\r\n\r\n", 413, "request_too_large"),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 403, "permission_denied"),
        (b"GET /stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 403, "permission_denied"),
        (b"POST /cache/clear HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 403, "permission_denied"),
        (b"GET //metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 403, "permission_denied"),
        (b"GET /v1/../%6detrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 403, "permission_denied"),
        (b"GET /nginx-error HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404, "not_found"),
        (b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 502, "unavailable"),
    ],
)
def test_errors_of_nginx_have_the_envelope(nowhere: Proxy, request_bytes: bytes, status: int, code: str) -> None:
    """What nginx refuses itself is an OpenAI error, with a request id and, where waiting helps, Retry-After."""
    found, headers, body = nowhere.raw(request_bytes)
    assert found == status
    assert_envelope(headers["content-type"], body, code)
    assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])
    assert headers.get("retry-after") == ("5" if status == 502 else None)


def test_too_many_requests_of_one_address(nowhere: Proxy) -> None:
    """The limit per address answers 429, with Retry-After."""
    unfinished = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345"
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", nowhere.port)))
            connection.sendall(unfinished)
        with nowhere.client() as client:
            wait_until(lambda: client.get("/readyz").status_code == 429, "the limit")
            answer = client.get("/readyz")
    assert_envelope(answer.headers["content-type"], answer.content, "rate_limit_exceeded")
    assert answer.headers["retry-after"] == "1"


def test_an_instance_that_does_not_answer(start_nginx: Callable[..., Proxy]) -> None:
    """A gateway that accepts and stays silent is a 504 in the envelope."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = start_nginx([silent.getsockname()[1]], {"proxy_read_timeout    60s": "proxy_read_timeout 1s"})
        with proxy.client() as client:
            answer = client.get("/readyz")
    assert answer.status_code == 504
    assert_envelope(answer.headers["content-type"], answer.content, "deadline_exceeded")
    assert answer.headers["retry-after"] == "5"


@pytest.mark.parametrize(
    ("timeout", "beginning"),
    [
        ("client_header_timeout 10s", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow:"),
        ("client_body_timeout   15s", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345"),
    ],
)
def test_a_client_that_stops_is_cut_off(start_nginx: Callable[..., Proxy], timeout: str, beginning: bytes) -> None:
    """Headers or a body that do not go on end the connection; no instance hears of it."""
    with socket.create_server(("127.0.0.1", 0)) as instance:
        proxy = start_nginx([instance.getsockname()[1]], {timeout: f"{timeout.split(maxsplit=1)[0]} 1s"})
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=START_S) as client:
            client.sendall(beginning)
            assert client.recv(1) == b""
        instance.setblocking(False)
        with pytest.raises(BlockingIOError):
            instance.accept()


def test_what_an_instance_is_told(start_nginx: Callable[..., Proxy]) -> None:
    """The client's address is nginx's word and not the client's; the request id goes along; connections are kept."""
    with socket.create_server(("127.0.0.1", 0)) as instance, ThreadPoolExecutor() as pool:
        proxy = start_nginx([instance.getsockname()[1]])

        def answer_once() -> str:
            connection, _ = instance.accept()
            with connection:
                head = connection.recv(65536).decode()
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            return head.lower()

        seen = pool.submit(answer_once)
        with proxy.client() as client:
            client.get("/", headers={"X-Forwarded-For": "192.0.2.1", "X-Request-ID": "mine-1"})
        head = seen.result(START_S)
    assert "x-forwarded-for: 127.0.0.1\r\n" in head
    assert "192.0.2.1" not in head
    assert "x-request-id: mine-1\r\n" in head
    assert "connection:" not in head


@pytest.mark.parametrize(("sent", "kept"), [("mine-2", True), ("not harmless", False)])
def test_one_request_id_everywhere(proxy: Proxy, sent: str, kept: bool) -> None:
    """A harmless id of the client's, or a new one, is in the answer and in the access log."""
    with proxy.client() as client:
        got = client.get("/v1/models", headers={"X-Request-ID": sent}).headers["x-request-id"]
    assert (got == sent) is kept
    assert " 200 " in proxy.logged(got)


def test_errors_of_the_gateway_pass_unchanged(proxy: Proxy, instances: list[Instance]) -> None:
    """nginx puts its own words over nobody else's."""
    call = {"url": "/v1/embeddings", "json": {"model": "no such", "input": "x"}}
    with proxy.client() as client, httpx.Client(base_url=f"http://127.0.0.1:{instances[0].port}") as direct:
        assert client.post(**call).content == direct.post(**call).content
        assert client.get("/nothing").json()["error"]["code"] == "not_found"


def test_a_large_answer_passes(proxy: Proxy) -> None:
    """2,048 × 4,096 floats, here as 128 token vectors of 32 for each text: far more than nginx holds in memory."""
    texts = [" ".join(f"w{(i * 7 + j) % 4900}" for j in range(127)) for i in range(2048)]
    asked = {"model": "fake", "input": texts, "return_dense": False, "return_colbert": True}
    with proxy.client() as client:
        answer = client.post("/v1/embeddings", json=asked)
    assert answer.status_code == 200
    assert answer.content.count(b'"index"') == 2048
    assert answer.content.count(b",") > 2048 * 4096


def test_an_overloaded_instance_is_not_set_aside(
    start_nginx: Callable[..., Proxy], start_instances: Callable[..., list[Instance]]
) -> None:
    """A gateway's 429 reaches the client as it is, is not tried elsewhere, and costs the instance nothing."""
    busy = start_instances("--max-queued-tokens", "64")
    proxy = start_nginx([instance.port for instance in busy])

    def ask(text: str) -> httpx.Response:
        with proxy.client() as client:
            return client.post("/v1/embeddings", json={"model": "fake", "input": text})

    refused: list[httpx.Response] = []

    def overloaded() -> bool:
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, ["fault-slow" + " w1" * 40] * 16))
        assert {answer.status_code for answer in answers} <= {200, 429}
        refused.extend(answer for answer in answers if answer.status_code == 429)
        return bool(refused)

    wait_until(overloaded, "an answer that says 429")
    for answer in refused:
        assert answer.json()["error"]["code"] == "engine_overloaded"
        assert int(answer.headers["retry-after"]) >= 1
        assert re.search(r" status=429 ", proxy.logged(answer.headers["x-request-id"]))

    answers = [ask("w1") for _ in range(9)]
    assert {answer.status_code for answer in answers} == {200}
    lines = [proxy.logged(answer.headers["x-request-id"]) for answer in answers]
    assert {line.partition("upstream=")[2].split()[0] for line in lines} == {f"127.0.0.1:{one.port}" for one in busy}


@dataclass
class Load:
    """Clients that ask without a pause, and what became of their requests."""

    proxy: Proxy
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(6)]
        for thread in self._threads:
            thread.start()
        self.go_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(START_S)
            assert not thread.is_alive()

    def go_on(self, requests: int = 60) -> None:
        """Return after this many more requests."""
        enough = self.outcomes.total() + requests
        wait_until(lambda: self.outcomes.total() >= enough, "the load to go on")

    def _ask(self, number: int) -> None:
        with self.proxy.client() as client:
            for turn in range(1_000_000):
                if self._stop.is_set():
                    return
                texts = [f"w{number} w{turn % 4900} w{i}" for i in range(4)]
                outcome = self._outcome(client, texts)
                self.outcomes[outcome.partition(":")[0]] += 1
                if not outcome.startswith(("answered", "cut")):
                    self.failures.append(outcome)

    @staticmethod
    def _outcome(client: httpx.Client, texts: list[str]) -> str:
        started = False
        try:
            with client.stream("POST", "/v1/embeddings", json={"model": "fake", "input": texts}) as answer:
                started = answer.status_code == 200
                body = answer.read()
        except httpx.TransportError as error:
            return "cut" if started else f"failed: {error!r}"
        if not started:
            return f"failed: {answer.status_code} {body[:300]!r}"
        return "answered" if len(json.loads(body)["data"]) == len(texts) else "failed: an incomplete answer"


def test_no_request_fails_while_instances_die_and_are_rolled(proxy: Proxy, instances: list[Instance]) -> None:
    """Under steady load: one killed, one drained and restarted, all three rolled. Nobody outside sees any of it.

    Only an answer that a killed instance was already sending can break off; those are counted apart.
    """
    with Load(proxy) as load:
        instances[0].end(signal.SIGKILL)
        load.go_on()
        instances[0].start()
        instances[0].wait_ready()
        load.go_on()
        cut_by_the_kill = load.outcomes["cut"]

        instances[1].roll()
        load.go_on()

        for instance in instances:
            instance.roll()
            load.go_on()

    logging.getLogger(__name__).info("seen through nginx: %s", dict(load.outcomes))
    assert load.failures == []
    assert load.outcomes["cut"] == cut_by_the_kill, "a drain broke an answer off"


def test_limits_that_belong_together() -> None:
    """nginx closes idle connections first, waits longer than the gateway, and reads more than it does."""
    text, settings = SHIPPED.read_text(), Settings()

    def number(name: str) -> int:
        found = re.search(rf"^\s+{name}\s+(\d+)", text, re.MULTILINE)
        assert found, name
        return int(found[1])

    assert number("keepalive_timeout") < settings.keep_alive_s  # the first one is the upstream's
    assert number("proxy_read_timeout") > settings.request_timeout_s
    assert number("client_max_body_size") << 20 >= settings.max_body_bytes

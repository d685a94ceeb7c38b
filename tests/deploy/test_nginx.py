"""The shipped nginx configuration under a real nginx, before gateways with the fake engine."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import pytest

from embedding_service.settings.gateway import Settings
from tests.deploy.cluster import (
    SHIPPED,
    START_S,
    Instance,
    Load,
    Proxy,
    run_instances,
    run_nginx,
    wait_until,
)
from tests.deploy.tools import free_ports, program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@pytest.fixture(scope="module")
def start_nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Proxy]]:
    """Return a function that runs nginx over the given ports, with the changes that a test makes."""
    running: list[Proxy] = []

    def start(ports: Sequence[int], changes: dict[str, str] | None = None) -> Proxy:
        running.append(run_nginx(tmp_path_factory.mktemp("nginx"), ports, changes))
        return running[-1]

    yield start
    for proxy in running:
        proxy.stop()


@pytest.fixture(scope="module")
def start_instances(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., list[Instance]]]:
    """Return a function that runs three gateways with the given flags."""
    running: list[Instance] = []

    def start(*flags: str) -> list[Instance]:
        program("nginx", "nginx")  # without it they are of no use
        instances = run_instances(tmp_path_factory.mktemp("gateways"), *flags)
        running.extend(instances)
        return instances

    yield start
    for instance in running:
        if instance.process.poll() is None:
            instance.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def instances(start_instances: Callable[..., list[Instance]]) -> list[Instance]:
    """Return three gateways with steps of 20 ms, so that requests are under way at any moment."""
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
        (
            b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"x" * 40_000 + b"\r\n\r\n",
            431,
            "headers_too_large",
        ),
        (b"TRACE / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405, "method_not_allowed"),
        (
            b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 67108865\r\n\r\n",
            413,
            "request_too_large",
        ),
        (
            b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            403,
            "permission_denied",
        ),
        (b"GET /stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 403, "permission_denied"),
        (
            b"POST /cache/clear HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            403,
            "permission_denied",
        ),
        (
            b"GET //metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            403,
            "permission_denied",
        ),
        (
            b"GET /v1/../%6detrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            403,
            "permission_denied",
        ),
        (b"GET /nginx-error HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404, "not_found"),
        (b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 502, "unavailable"),
    ],
)
@pytest.mark.server
def test_errors_of_nginx_have_the_envelope(
    nowhere: Proxy, request_bytes: bytes, status: int, code: str
) -> None:
    """An error of nginx's own is OpenAI's, with a request id and, where it helps, Retry-After."""
    found, headers, body = nowhere.raw(request_bytes)
    assert found == status
    assert_envelope(headers["content-type"], body, code)
    assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])
    assert headers.get("retry-after") == ("5" if status == 502 else None)


@pytest.mark.server
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


@pytest.mark.server
def test_an_instance_that_does_not_answer(start_nginx: Callable[..., Proxy]) -> None:
    """A gateway that accepts and stays silent is a 504 in the envelope."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = start_nginx(
            [silent.getsockname()[1]], {"proxy_read_timeout    60s": "proxy_read_timeout 1s"}
        )
        with proxy.client() as client:
            answer = client.get("/readyz")
    assert answer.status_code == 504
    assert_envelope(answer.headers["content-type"], answer.content, "deadline_exceeded")
    assert answer.headers["retry-after"] == "5"


@pytest.mark.parametrize(
    ("timeout", "beginning"),
    [
        ("client_header_timeout 10s", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow:"),
        (
            "client_body_timeout   15s",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345",
        ),
    ],
)
@pytest.mark.server
def test_a_client_that_stops_is_cut_off(
    start_nginx: Callable[..., Proxy], timeout: str, beginning: bytes
) -> None:
    """Headers or a body that do not go on end the connection; no instance hears of it."""
    with socket.create_server(("127.0.0.1", 0)) as instance:
        proxy = start_nginx(
            [instance.getsockname()[1]], {timeout: f"{timeout.split(maxsplit=1)[0]} 1s"}
        )
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=START_S) as client:
            client.sendall(beginning)
            assert client.recv(1) == b""
        instance.setblocking(False)
        with pytest.raises(BlockingIOError):
            instance.accept()


@pytest.mark.server
def test_what_an_instance_is_told(start_nginx: Callable[..., Proxy]) -> None:
    """nginx tells the client's address and passes the request id on; connections are kept."""
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
@pytest.mark.server
def test_one_request_id_everywhere(proxy: Proxy, sent: str, kept: bool) -> None:
    """A harmless id of the client's, or a new one, is in the answer and in the access log."""
    with proxy.client() as client:
        got = client.get("/v1/models", headers={"X-Request-ID": sent}).headers["x-request-id"]
    assert (got == sent) is kept
    assert " 200 " in proxy.logged(got)


@pytest.mark.server
def test_errors_of_the_gateway_pass_unchanged(proxy: Proxy, instances: list[Instance]) -> None:
    """nginx puts its own words over nobody else's."""
    call = {"url": "/v1/embeddings", "json": {"model": "no such", "input": "x"}}
    with (
        proxy.client() as client,
        httpx.Client(base_url=f"http://127.0.0.1:{instances[0].port}") as direct,
    ):
        assert client.post(**call).content == direct.post(**call).content
        assert client.get("/nothing").json()["error"]["code"] == "not_found"


@pytest.mark.server
def test_the_page_passes(proxy: Proxy, instances: list[Instance]) -> None:
    """The page and its figures come through, and the figures name the instance they are of."""
    with proxy.client() as client:
        page = client.get("/ui")
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        known = {"if-none-match": page.headers["etag"]}
        assert client.get("/ui", headers=known).status_code == 304
        named = {client.get("/ui/figures").json()["instance"] for _ in range(30)}
    ports = {name.rpartition(":")[2] for name in named}
    assert len(ports) > 1
    assert ports <= {str(instance.port) for instance in instances}


@pytest.mark.server
def test_a_large_answer_passes(proxy: Proxy) -> None:
    """2,048 × 4,096 floats, here as 128 token vectors of 32 a text: more than nginx holds."""
    texts = [" ".join(f"w{(i * 7 + j) % 4900}" for j in range(127)) for i in range(2048)]
    asked = {"model": "fake", "input": texts, "return_dense": False, "return_colbert": True}
    with proxy.client() as client:
        answer = client.post("/v1/embeddings", json=asked)
    assert answer.status_code == 200
    assert answer.content.count(b'"index"') == 2048
    assert answer.content.count(b",") > 2048 * 4096


@pytest.mark.server
def test_an_overloaded_instance_is_not_set_aside(
    start_nginx: Callable[..., Proxy], start_instances: Callable[..., list[Instance]]
) -> None:
    """A gateway's 429 reaches the client, is tried nowhere else, and costs the instance nothing."""
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
    assert {line.partition("upstream=")[2].split()[0] for line in lines} == {
        f"127.0.0.1:{one.port}" for one in busy
    }


@pytest.mark.server
def test_no_request_fails_while_instances_die_and_are_rolled(
    proxy: Proxy, instances: list[Instance]
) -> None:
    """Under steady load: one killed, then all three drained and restarted one by one. Nobody
    outside sees any of it.

    Only an answer that a killed instance was already sending can break off; those are counted
    apart.
    """
    with Load(
        proxy, pause_s=0.02
    ) as load:  # as long as a step: some are in an engine, and instances start in time
        load.kill(instances[0])
        cut_by_the_kill = load.outcomes["cut"]
        load.roll(*instances)

    logging.getLogger(__name__).info("seen through nginx: %s", dict(load.outcomes))
    assert load.failures == []
    assert load.outcomes["cut"] == cut_by_the_kill, "a drain broke an answer off"


def test_limits_that_belong_together() -> None:
    """nginx closes idle connections first, waits longer than the gateway, and reads no less."""
    text, settings = SHIPPED.read_text(), Settings()

    def number(name: str) -> int:
        found = re.search(rf"^\s+{name}\s+(\d+)", text, re.MULTILINE)
        assert found, name
        return int(found[1])

    assert number("keepalive_timeout") < settings.keep_alive_s  # the first one is the upstream's
    assert number("proxy_read_timeout") > settings.request_timeout_s
    assert number("client_max_body_size") << 20 >= settings.max_body_bytes

"""A request's memory is free when it is over, without the garbage collector."""

from __future__ import annotations

import contextlib
import gc
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from embedding_service.engine.pool import SLICE_TEXTS
from tests.calls import JSON
from tests.child import wait_until
from tests.conftest import FAKE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningGateway

REQUESTS = 20
ONE = b'{"model": "fake", "input": "w7"}'
MANY = json.dumps({"model": "fake", "input": [f"w{i} w7" for i in range(2 * SLICE_TEXTS)]}).encode()


@contextlib.contextmanager
def none_left(gateway: RunningGateway) -> Iterator[None]:
    """Check that the block, and the gateway meanwhile, leave no reference cycles."""
    gc.disable()
    gc.freeze()  # what there is already, garbage of other tests too, is not looked at
    try:
        yield
        wait_until(lambda: not gateway.gateway.lifecycle.in_flight)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert gc.garbage == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.unfreeze()
        gc.enable()


@contextlib.contextmanager
def connected(gateway: RunningGateway) -> Iterator[HTTPConnection]:
    """Provide a connection that has been used: a first request may fill caches."""
    with contextlib.closing(HTTPConnection(urlsplit(gateway.url).netloc, timeout=60)) as connection:
        send(connection, ONE)
        yield connection


def send(connection: HTTPConnection, body: bytes, **headers: str) -> int:
    """Send a request; return the status of its answer."""
    connection.request("POST", "/v1/embeddings", body, JSON | headers)
    response = connection.getresponse()
    response.read()
    return response.status


@pytest.fixture(scope="module")
def slow(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    """Return a gateway that nobody has an answer from at once."""
    return start_gateway(**FAKE, engine_args={"step_s": 0.5})


@pytest.fixture(scope="module")
def cached(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    """Return a slow gateway with a cache, where identical texts in flight are computed once."""
    return start_gateway(**FAKE, engine_args={"step_s": 0.05}, cache_max_bytes=1 << 20)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (ONE, 200),
        (MANY, 200),
        (b'{"model": "fake", "in', 400),
        (b'{"model": "fake", "input": []}', 400),
        (b'{"model": "other", "input": "w7"}', 404),
        (json.dumps({"model": "fake", "input": "w7 " * 10_000}).encode(), 400),
        (b'{"model": "fake", "input": "fault-nan"}', 500),
        (b'{"model": "fake", "input": "fault-reject"}', 500),
    ],
    ids=[
        "one message",
        "several",
        "not JSON",
        "wrong field",
        "unknown model",
        "too long",
        "not finite",
        "rejected",
    ],
)
def test_answers(fake: RunningGateway, body: bytes, status: int) -> None:
    """Neither an answer nor an error leaves anything behind."""
    with connected(fake) as connection:
        assert send(connection, body) == status
        with none_left(fake):
            assert {send(connection, body) for _ in range(REQUESTS)} == {status}


@pytest.mark.parametrize("body", [ONE, MANY], ids=["one message", "several"])
def test_deadlines(slow: RunningGateway, body: bytes) -> None:
    """Nor does a request whose time is up."""
    late = {"x-request-timeout-ms": "10"}
    with connected(slow) as connection:
        assert send(connection, body, **late) == 504
        with none_left(slow):
            assert {send(connection, body, **late) for _ in range(REQUESTS)} == {504}


@pytest.mark.parametrize(("text", "status"), [("w7", 200), ("fault-reject", 500)])
def test_flights(cached: RunningGateway, text: str, status: int) -> None:
    """Nor do requests that wait for what another computes, whatever becomes of it."""

    def ask(connection: HTTPConnection, turn: int) -> int:
        return send(connection, json.dumps({"model": "fake", "input": f"w{turn} {text}"}).encode())

    with ExitStack() as stack, ThreadPoolExecutor(4) as threads:
        connections = [stack.enter_context(connected(cached)) for _ in range(4)]
        assert {*threads.map(ask, connections, [0] * 4)} == {status}
        with none_left(cached):
            for turn in range(1, REQUESTS):
                assert {*threads.map(ask, connections, [turn] * 4)} == {status}


@pytest.mark.parametrize("body", [ONE, MANY], ids=["one message", "several"])
def test_clients_that_leave(slow: RunningGateway, body: bytes) -> None:
    """Nor does one whose client goes away before it has its answer."""
    before = len(slow.requests_logged())
    with connected(slow):
        wait_until(lambda: len(slow.requests_logged()) > before)
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    before = len(slow.requests_logged())
    with none_left(slow):
        for _ in range(REQUESTS):
            with socket.create_connection(urlsplit(slow.url).netloc.split(":")) as leaving:
                leaving.sendall(head % len(body) + body)
        wait_until(lambda: len(slow.requests_logged()) >= before + REQUESTS)
    lines = slow.requests_logged()[before:]
    assert [(line["status"], line["model"]) for line in lines] == [
        (499, "fake")
    ] * REQUESTS  # read, and being computed

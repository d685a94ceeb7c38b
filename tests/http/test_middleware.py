"""The onion around the routes: clients that go away, slow readers, deadlines, ids and counters."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from embedding_service.engine import heartbeat
from embedding_service.engine.protocol import Pong
from tests.calls import embed, error_of, vectors_of
from tests.child import wait_until
from tests.conftest import FAKE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningGateway

CANCELLED = 500


def request(body: bytes) -> bytes:
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def leftovers(gateway: RunningGateway) -> dict[str, Any]:
    """Return everything that a gateway and its worker still hold for requests."""
    (model,) = gateway.gateway.service.models
    (replica,) = model.engine.replicas
    progress = replica.progress
    return {
        "requests": gateway.gateway.lifecycle.in_flight,
        "tokens": model.gate.held,
        "bytes": gateway.gateway.service.answers.held,
        "preparing": model.preparing,
        "outstanding": replica.outstanding_tokens,
        "running": progress.running if progress else -1,
        "waiting": progress.waiting if progress else -1,
    }


def test_500_cancelled_requests_leave_nothing(
    start_gateway: Callable[..., RunningGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients that go away before, while or after the engine works leave nothing queued."""
    monkeypatch.setattr(heartbeat, "PING_EVERY_S", 0.05)
    gateway = start_gateway(**FAKE, engine_args={"step_s": 0.01})
    small = request(json.dumps({"model": "fake", "input": ["w1"] * 3}).encode())
    large = request(json.dumps({"model": "fake", "input": ["w1 " * 100] * 40}).encode())

    async def go_away(number: int) -> None:
        _, writer = await asyncio.open_connection(*gateway.address)
        body = large if number % 5 == 0 else small
        writer.write(body[: len(body) // 2] if number % 7 == 0 else body)
        await writer.drain()
        await asyncio.sleep(number % 10 / 50)
        writer.transport.abort()

    async def all_go_away() -> None:
        for start in range(0, CANCELLED, 100):
            await asyncio.gather(*(go_away(number) for number in range(start, start + 100)))

    asyncio.run(all_go_away())
    wait_until(lambda: not any(leftovers(gateway).values()))
    with gateway.client() as client:
        assert vectors_of(embed(client, input="w1")).shape == (1, 32)
    statuses = [line["status"] for line in gateway.requests_logged()]
    assert 499 in statuses
    assert not [status for status in statuses if status >= 500]
    assert not [
        event for event in gateway.log if event["level"] in ("error", "exception", "critical")
    ]
    assert gateway.stop() == 0


def test_cancelled_work_does_not_run(
    start_gateway: Callable[..., RunningGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a client gives up a request of many steps, the worker drops the rest of them."""
    monkeypatch.setattr(heartbeat, "PING_EVERY_S", 0.05)
    gateway = start_gateway(**FAKE, engine_args={"step_s": 0.2}, max_batch_size=1)
    (model,) = gateway.gateway.service.models
    (replica,) = model.engine.replicas
    with socket.create_connection(gateway.address) as leaving:
        leaving.sendall(request(json.dumps({"model": "fake", "input": ["w1"] * 1000}).encode()))
        wait_until(lambda: leftovers(gateway)["waiting"] > 0)
    wait_until(lambda: not any(leftovers(gateway).values()))
    assert isinstance(replica.progress, Pong)
    assert replica.progress.texts < 500, "the worker went on as if nobody had left"
    assert gateway.stop() == 0


def test_a_slow_reader_holds_its_answer_and_nobody_else(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """An answer that a client does not read keeps its bytes reserved; others are served."""
    gateway = start_gateway(**FAKE, engine_args={"outputs": ["dense", "colbert"]})
    body = {"model": "fake", "input": ["w1 " * 400] * 100, "return_colbert": True}
    with socket.create_connection(gateway.address) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(request(json.dumps(body).encode()))
        wait_until(lambda: slow.recv(1, socket.MSG_PEEK))
        with gateway.client() as client:
            assert embed(client, input="w1").status_code == 200
        assert leftovers(gateway)["bytes"] > 1 << 20
        assert leftovers(gateway)["tokens"] == 0
    wait_until(lambda: leftovers(gateway)["bytes"] == 0)
    assert gateway.stop() == 0


@pytest.mark.parametrize("wish", ["", "abc", "-1", "1.5", "99999999999999999999", "٣"])
def test_a_strange_deadline_is_no_deadline(fake: RunningGateway, wish: str) -> None:
    """An `x-request-timeout-ms` that is no number leaves the server's own limit."""
    with fake.client() as client:
        response = embed(client, input="w1", headers={"x-request-timeout-ms": wish.encode()})
    assert response.status_code == 200


def test_a_client_may_only_shorten_the_deadline(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """`request_timeout_s` is the longest that any request may take, whatever the client wishes."""
    gateway = start_gateway(**FAKE, request_timeout_s=0.2)
    with gateway.client() as client:
        response = embed(client, input="fault-slow", headers={"x-request-timeout-ms": "60000"})
        assert error_of(response, 504)["code"] == "deadline_exceeded"
        assert embed(client, input="w1", headers={"x-request-timeout-ms": "0"}).status_code == 504
    assert gateway.stop() == 0


def test_connections_are_kept(fake: RunningGateway) -> None:
    """Requests of one client, good and bad, share one connection."""
    with fake.client() as client:
        ports = set()
        for text in ("w1", "", "w2"):
            response = embed(client, input=text)
            stream = response.extensions["network_stream"]
            ports.add(stream.get_extra_info("client_addr"))
            assert response.headers.get("connection") != "close"
    assert len(ports) == 1


def test_pipelined_requests_are_answered_in_order(fake: RunningGateway) -> None:
    """Requests sent without waiting get their answers in the order they were sent."""
    bodies = [
        json.dumps({"model": "fake", "input": [f"w{i}"] * (i + 1)}).encode() for i in range(3)
    ]
    with socket.create_connection(fake.address, timeout=30) as connection:
        connection.sendall(b"".join(map(request, bodies)))
        received = b""
        while received.count(b'"usage"') < len(bodies):
            received += connection.recv(65536)
    assert [received.split(b'"usage"')[i].count(b'"index"') for i in range(3)] == [1, 2, 3]

"""Connections that are slow on purpose: cut off, and nobody else notices."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.conftest import FAKE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningGateway

BODY = b'{"model":"fake","input":"w1"}'
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n" % len(BODY)


@pytest.fixture(scope="module")
def strict(start_gateway: Callable[..., RunningGateway]) -> Iterator[RunningGateway]:
    """Return a gateway that waits half a second for headers and for each piece of a body."""
    gateway = start_gateway(**FAKE, header_timeout_s=0.5, body_timeout_s=0.5, keep_alive_s=60)
    yield gateway
    gateway.stop()


def connect(gateway: RunningGateway) -> socket.socket:
    """Open a connection."""
    return socket.create_connection(gateway.address, timeout=30)


def answer(connection: socket.socket) -> bytes:
    """Return what comes until there is a whole small answer, or the end."""
    received = b""
    while not received.endswith(b"}") and (part := connection.recv(65536)):
        received += part
    return received


@pytest.mark.parametrize(
    "sent", [b"", b"P", b"POST /v1/embeddings HTTP/1.1\r\n", HEAD, HEAD + b"x-slow: a"]
)
def test_headers_that_do_not_come_end_the_connection(strict: RunningGateway, sent: bytes) -> None:
    """A connection without all headers of its first request is closed, whatever it has sent so far."""
    with connect(strict) as slow:
        slow.sendall(sent)
        assert slow.recv(1000) == b""


def test_headers_that_trickle_end_the_connection(strict: RunningGateway) -> None:
    """A byte now and then does not buy more time."""
    until = time.monotonic() + 20
    with connect(strict) as slow:
        slow.sendall(HEAD)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() < until:
                slow.sendall(b"x")
                time.sleep(0.05)
    assert time.monotonic() < until


def test_the_second_request_of_a_connection_is_watched_as_well(strict: RunningGateway) -> None:
    """Between requests a connection may rest; once a byte of the next one is there, the clock runs."""
    with connect(strict) as client:
        client.sendall(HEAD + b"\r\n" + BODY)
        assert answer(client).startswith(b"HTTP/1.1 200")
        time.sleep(1.2)  # more than headers may take: this is keep-alive
        client.sendall(HEAD + b"\r\n" + BODY)
        assert answer(client).startswith(b"HTTP/1.1 200")
        client.sendall(b"POST /v1")
        assert client.recv(1000) == b""


def test_a_body_that_stops_is_told(strict: RunningGateway) -> None:
    """A body that makes no progress is answered with a 400 that says so."""
    with connect(strict) as slow:
        slow.sendall(HEAD + b"\r\n" + BODY[:5])
        text = answer(slow)
    assert text.startswith(b"HTTP/1.1 400")
    assert b"body_timeout" in text


def test_many_slow_connections_keep_nobody_out(strict: RunningGateway) -> None:
    """With 300 open connections that send nothing useful, a request is answered, and afterwards all
    are gone.
    """
    slow = [connect(strict) for _ in range(300)]
    for connection in slow:
        connection.sendall(HEAD)
    with connect(strict) as client:
        client.sendall(HEAD + b"\r\n" + BODY)
        assert answer(client).startswith(b"HTTP/1.1 200")
    for connection in slow:
        assert connection.recv(1000) == b""
        connection.close()


def test_an_empty_line_does_not_keep_a_connection(strict: RunningGateway) -> None:
    """A bare line end between requests is the beginning of one: it does not stop the clock of an
    idle connection.
    """
    with connect(strict) as client:
        client.sendall(HEAD + b"\r\n" + BODY)
        assert answer(client).startswith(b"HTTP/1.1 200")
        client.sendall(b"\r\n")
        assert client.recv(1000) == b""


def test_headers_without_end_are_refused(fake: RunningGateway) -> None:
    """More than 64 KiB of headers are not collected: 431 in the envelope, and the connection is
    closed.
    """
    with connect(fake) as client:
        client.sendall(HEAD)
        sent, received = 0, b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while (
                sent < 2_000_000 and not received
            ):  # at full speed, long before headers are too late
                sent += client.send(b"x-long: " + b"a" * 8000)
                client.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    received = client.recv(1000)
                client.settimeout(30)
                time.sleep(0.002)
    assert sent < 2_000_000
    assert not received or received.startswith(b"HTTP/1.1 431")


def test_a_body_that_trickles_ends_at_the_deadline(fake: RunningGateway) -> None:
    """A byte now and then is progress, and still does not go on for longer than the request may
    take.
    """
    with connect(fake) as slow:
        slow.sendall(HEAD + b"x-request-timeout-ms: 600\r\n\r\n")
        slow.settimeout(0.1)
        text = b""
        for number in range(len(BODY) - 1):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                slow.sendall(BODY[number : number + 1])
            with contextlib.suppress(TimeoutError):
                text += slow.recv(4096)
            if text:
                break
    assert text.startswith(b"HTTP/1.1 504")
    assert b"deadline_exceeded" in text


def test_an_answer_that_nobody_reads_is_let_go(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """A client that stops reading does not hold what its answer has reserved."""
    gateway = start_gateway(**FAKE, send_timeout_s=0.5, keep_alive_s=60)
    body = b'{"model":"fake","input":[%s]}' % b",".join(
        b'"w%d"' % (number % 5000) for number in range(2048)
    )
    ends = []
    for _ in range(4):  # beyond what the sockets' buffers take
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(gateway.address)
        client.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
            + body
        )
        ends.append(client)
    until = time.monotonic() + 60
    answers = gateway.gateway.service.answers
    while not gateway.requests_logged() or answers.held:
        assert time.monotonic() < until
        time.sleep(0.05)
    while len(gateway.requests_logged()) < len(ends):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert answers.held == 0
    for client in ends:
        client.close()
    gateway.stop()

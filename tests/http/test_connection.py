"""Connections that are slow on purpose: cut off, and nobody else notices."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.child import wait_until
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
    """A request is answered beside 300 useless open connections, which are gone afterwards."""
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
    """A bare line end begins a request: it does not stop the clock of an idle connection."""
    with connect(strict) as client:
        client.sendall(HEAD + b"\r\n" + BODY)
        assert answer(client).startswith(b"HTTP/1.1 200")
        client.sendall(b"\r\n")
        assert client.recv(1000) == b""


def test_headers_without_end_are_refused(fake: RunningGateway) -> None:
    """More than 64 KiB of headers are not collected: a 431, and the connection is closed."""
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
    """A byte now and then is progress, and ends where the request's time is over."""
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
        else:
            slow.settimeout(30)
            text = answer(slow)
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


def sent_in_pieces(gateway: RunningGateway, *pieces: bytes, answers: int = 1) -> bytes:
    """Send pieces that arrive one by one; return all that comes until there is nothing for a while.

    So many answers are waited for.
    """
    received = b""
    with connect(gateway) as client, contextlib.suppress(TimeoutError):
        for piece in pieces:
            client.sendall(piece)
            time.sleep(0.05)
        while part := client.recv(65536):
            received += part
            if received.count(b"HTTP/1.1 ") >= answers:
                client.settimeout(1)
    return received


UPGRADE = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAAA\r\n"
CHUNKED = b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n"
CHUNKS = b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)
GET = b"GET /livez HTTP/1.1\r\nhost: a\r\n"
OFFERS = {
    "a body": HEAD + UPGRADE + b"\r\n" + BODY,
    "chunks": CHUNKED + UPGRADE + b"\r\n" + CHUNKS + b"\r\n",
    "chunks and a trailer": CHUNKED + UPGRADE + b"\r\n" + CHUNKS + b"x-trailer: 1\r\n\r\n",
    "no body": GET + UPGRADE + b"\r\n",
    "a web socket": GET + b"connection: keep-alive, upgrade\r\nupgrade: websocket\r\n\r\n",
}


@pytest.mark.parametrize("pieces", [1, 2, 7])
@pytest.mark.parametrize("request_", OFFERS.values(), ids=OFFERS)
def test_an_upgrade_is_ignored(fake: RunningGateway, request_: bytes, pieces: int) -> None:
    """A client that offers another protocol is answered in this one, its next request as well."""
    twice = request_ * 2
    size = len(twice) // pieces + 1
    parts = [twice[start : start + size] for start in range(0, len(twice), size)]
    received = sent_in_pieces(fake, *parts, answers=2)
    assert received.count(b"HTTP/1.1 200") == received.count(b"HTTP/1.1 ") == 2, received


def test_an_upgrade_leaves_the_version(fake: RunningGateway) -> None:
    """A client of HTTP/1.0 that offers an upgrade is answered as one: the connection ends."""
    old = OFFERS["a body"].replace(b"HTTP/1.1", b"HTTP/1.0")
    received = sent_in_pieces(fake, old * 2)
    head = received.partition(b"\r\n\r\n")[0].lower()
    assert received.count(b" 200 ") == 1
    assert b"transfer-encoding" not in head


def test_many_upgrades_in_one_piece_are_read_in_turn(fake: RunningGateway) -> None:
    """However many offers one piece of data holds, each of them is a request."""
    received = sent_in_pieces(fake, OFFERS["a body"] * 50, answers=50)
    assert received.count(b"HTTP/1.1 200") == 50


def test_connect_is_refused(fake: RunningGateway) -> None:
    """Nobody gets a tunnel, and what follows is not read as a request."""
    received = sent_in_pieces(fake, b"CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n" + GET + b"\r\n")
    assert received.startswith(b"HTTP/1.1 400")
    assert received.count(b"HTTP/1.1 ") == 1


def test_trailers_are_no_headers(start_gateway: Callable[..., RunningGateway]) -> None:
    """A trailer authorises nobody, and names no request."""
    gateway = start_gateway(**FAKE, api_keys=["secret"])
    trailers = b"authorization: Bearer secret\r\nx-request-id: from-a-trailer\r\n\r\n"
    received = sent_in_pieces(gateway, CHUNKED + b"\r\n", CHUNKS + trailers)
    assert received.startswith(b"HTTP/1.1 401")
    assert b"from-a-trailer" not in received
    gateway.stop()


ENDLESS = {
    "a trailer": CHUNKED + b"\r\n" + CHUNKS + b"x-endless: ",
    "trailers": CHUNKED + b"\r\n" + CHUNKS,
    "a chunk's extension": CHUNKED + b"\r\n1;x=",
    "a header": HEAD + b"x-endless: ",
}


@pytest.mark.parametrize("beginning", ENDLESS.values(), ids=ENDLESS)
def test_what_is_no_body_is_bounded(fake: RunningGateway, beginning: bytes) -> None:
    """More than 64 KiB that are neither headers nor body end the connection, at no cost."""
    more = b"x-more: a\r\n" * 6000 if beginning == ENDLESS["trailers"] else b"a" * 66_000
    sent, until = 0, time.monotonic() + 20
    with connect(fake) as client, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(beginning)
        time.sleep(0.1)
        while sent < 50_000_000:
            client.sendall(more)
            sent += len(more)
            assert time.monotonic() < until
            time.sleep(0.002)
    assert sent < 50_000_000


def test_too_many_headers_are_refused(fake: RunningGateway) -> None:
    """The number of headers is bounded as well, also where all of them come at once."""
    received = sent_in_pieces(fake, HEAD + b"a: b\r\n" * 5000 + b"\r\n" + BODY)
    assert received.startswith(b"HTTP/1.1 431")
    assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("size", [1000, 8000])
def test_long_headers_in_one_piece_are_refused(fake: RunningGateway, size: int) -> None:
    """Their bytes are counted also where all come at once, with the body behind them."""
    lines = b"".join(b"x-%d: %s\r\n" % (number, b"a" * size) for number in range(72_000 // size))
    received = sent_in_pieces(fake, HEAD + lines + b"\r\n" + BODY)
    assert received.startswith(b"HTTP/1.1 431")


def test_requests_ahead_of_time_are_bounded(fake: RunningGateway) -> None:
    """A client cannot queue thousands of requests on one connection."""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        assert sent_in_pieces(fake, (GET + b"\r\n") * 5000).count(b"HTTP/1.1 200") < 100


@pytest.mark.parametrize("keys", [["secret"], []], ids=["no key", "too large"])
def test_a_refusal_reaches_a_client_that_sends_everything_first(
    start_gateway: Callable[..., RunningGateway], keys: list[str]
) -> None:
    """A client that reads only once all of its 20 MB are sent finds the answer, and not a reset."""
    gateway = start_gateway(**FAKE, api_keys=keys, max_body_bytes=1 << 20)
    body = bytes(20 << 20)
    with connect(gateway) as client:
        head = HEAD.replace(b"content-length: %d" % len(BODY), b"content-length: %d" % len(body))
        client.sendall(head + b"\r\n")
        client.sendall(body)
        received = client.recv(65536)
    assert received.startswith(b"HTTP/1.1 401" if keys else b"HTTP/1.1 413")
    gateway.stop()


def test_a_refused_body_is_not_read_for_ever(strict: RunningGateway) -> None:
    """Bytes behind a refusal are dropped for a while, and then the connection is closed."""
    until = time.monotonic() + 20
    with connect(strict) as client, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(CHUNKED + b"x-request-timeout-ms: 300\r\n\r\n")
        while time.monotonic() < until:
            client.sendall(b"4\r\nabcd\r\n")
            time.sleep(0.02)
    assert time.monotonic() < until


def test_a_long_number_as_length_is_a_413(fake: RunningGateway) -> None:
    """A `content-length` with thousands of digits is a large body, and no error of ours."""
    for digits in (b"9" * 18, b"1" + b"0" * 15):
        head = HEAD.replace(b"content-length: %d" % len(BODY), b"content-length: " + digits)
        assert sent_in_pieces(fake, head + b"\r\n").startswith(b"HTTP/1.1 413")


SCORES = {"model_name": "fake", "engine": "fake", "port": 0, "engine_args": {"outputs": ["score"]}}


def ask_for_documents(gateway: RunningGateway, size: int) -> socket.socket:
    """Ask for the scores of documents that come back with all that was sent in them."""
    document = {"text": "w1", "more": "x" * size}
    body = {"model": "fake", "query": "w1", "documents": [document], "return_documents": True}
    raw = json.dumps(body).encode()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(gateway.address)
    client.settimeout(30)
    head = b"POST /v1/rerank HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(raw)
    client.sendall(head + raw)
    return client


def test_an_answer_in_one_piece_is_reserved_and_let_go(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """An answer that no vectors are in is counted while nobody reads it, and cut off in time."""
    gateway = start_gateway(**SCORES, send_timeout_s=1, keep_alive_s=60)
    clients = [ask_for_documents(gateway, 10 << 20) for _ in range(3)]
    service = gateway.gateway.service
    until = time.monotonic() + 30
    most = 0
    while len(gateway.requests_logged()) < len(clients):
        most = max(most, service.answers.held)
        assert time.monotonic() < until
        time.sleep(0.01)
    assert most > 10 << 20
    assert (service.answers.held, service.bodies.held) == (0, 0)
    assert {line["status"] for line in gateway.requests_logged()} == {499}
    for client in clients:
        client.close()
    gateway.stop()


def test_a_drain_waits_until_an_answer_has_been_sent(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """A client that reads slowly gets the whole of an answer that was made before the stop."""
    gateway = start_gateway(**SCORES, drain_timeout_s=30)
    with ask_for_documents(gateway, 10 << 20) as client:
        received = client.recv(100)
        gateway.begin_to_stop()
        time.sleep(3)  # longer than a server waits that has nothing in flight
        while not received.endswith(b"}}") and (part := client.recv(1 << 20)):
            received += part
    assert len(received) > 10 << 20
    assert received.endswith(b"}}")
    gateway.wait_ended()
    assert gateway.status == 0


def test_bodies_are_bounded_together(start_gateway: Callable[..., RunningGateway]) -> None:
    """While others hold what all bodies may have, a new one is told when to come back; these end."""
    gateway = start_gateway(**FAKE, max_inflight_body_bytes=1 << 20)
    padding = b" " * (700 << 10)
    head = HEAD.replace(b"%d" % len(BODY), b"%d" % (len(BODY) + len(padding)))
    with connect(gateway) as first, connect(gateway) as second:
        first.sendall(head + b"\r\n" + padding)
        bodies = gateway.gateway.service.bodies
        wait_until(lambda: bodies.held >= len(padding))
        second.sendall(head + b"\r\n" + padding)
        refusal = answer(second)
        first.sendall(BODY)
        assert answer(first).startswith(b"HTTP/1.1 200")
    assert refusal.startswith(b"HTTP/1.1 429")
    assert b"retry-after: " in refusal
    assert b"engine_overloaded" in refusal
    wait_until(lambda: not bodies.held)
    gateway.stop()


def test_a_key_leaves_room_for_the_bodies_of_others(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """However many bodies one key's clients leave unfinished, those of another key are read."""
    names = ["greedy", "other"]
    keys = [{"key": name, "name": name} for name in names]
    gateway = start_gateway(**FAKE, max_inflight_body_bytes=1 << 20, api_keys=keys)
    padding = b" " * (60 << 10)
    head = HEAD.replace(b"%d" % len(BODY), b"%d" % (len(BODY) + len(padding)))
    greedy, other = (head + b"x-api-key: %s\r\n\r\n" % name.encode() for name in names)
    clients = [connect(gateway) for _ in range(40)]
    for client in clients:
        client.sendall(greedy + padding)
    until = time.monotonic() + 30
    while len(gateway.requests_logged()) < len(clients) - 8:  # 32 are refused, 8 are waited for
        assert time.monotonic() < until
        time.sleep(0.01)
    assert {line["status"] for line in gateway.requests_logged()} == {429}
    with connect(gateway) as client:
        client.sendall(other + padding + BODY)
        assert answer(client).startswith(b"HTTP/1.1 200")
    for client in clients:
        client.close()
    gateway.stop()


def test_many_inflating_bodies_stay_within_their_bound(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """Forty bodies of 32 MB each, which are 32 KB on the wire, never hold more than all may have."""
    gateway = start_gateway(**FAKE, keep_alive_s=60)
    body = gzip.compress(BODY + b" " * (30 << 20), 1)
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-encoding: gzip\r\n"
    head += b"content-length: %d\r\n\r\n" % len(body)
    clients = [connect(gateway) for _ in range(40)]
    most = 0
    for client in clients:
        client.sendall(head + body[:-10])
        most = max(most, gateway.gateway.service.bodies.held)
    until = time.monotonic() + 30
    while len(gateway.requests_logged()) < len(clients) - 2:
        most = max(most, gateway.gateway.service.bodies.held)
        assert time.monotonic() < until
        time.sleep(0.01)
    assert 30 << 20 < most <= gateway.settings.max_inflight_body_bytes
    assert {line["status"] for line in gateway.requests_logged()} == {429}
    for client in clients:
        client.close()
    gateway.stop()


def test_a_long_target_is_refused(fake: RunningGateway) -> None:
    """A query of a hundred thousand pairs is not taken apart."""
    received = sent_in_pieces(
        fake, b"GET /readyz?" + b"&a=" * 60_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n"
    )
    assert received.startswith(b"HTTP/1.1 431")

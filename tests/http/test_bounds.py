"""Work that a few bytes ask for is bounded: forms, gzip, lists, downloads, slow and old clients."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from embedding_service.dialects import tei
from embedding_service.dialects.dialect import Answer
from embedding_service.errors import InvalidRequest
from embedding_service.http import app, files, request_log
from embedding_service.http.answers import PIECE_BYTES, AnswerResponse
from embedding_service.http.multipart import OVERHEAD_BYTES, Form
from tests.calls import error_of, log_line, post
from tests.child import wait_until
from tests.conftest import FAKE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import httpx

    from embedding_service.service.prompts import Token
    from tests.conftest import RunningGateway

    Start = Callable[..., RunningGateway]

HEADER = b'content-disposition: form-data; name="file"; filename="a"\r\n\r\n'


@pytest.fixture(scope="module")
def stored(start_gateway: Start, tmp_path_factory: pytest.TempPathFactory) -> RunningGateway:
    """Return a gateway that keeps files."""
    return start_gateway(**FAKE, state_dir=tmp_path_factory.mktemp("state"))


@pytest.mark.parametrize(
    ("before", "unit"),
    [
        (b"", b"\r\n"),
        (b"--b\r\n" + HEADER + b"x\r\n--b", b" "),
        (b"--b\r\n" + HEADER + b"x\r\n--b", b"\t"),
        (b"--b\r\n" + HEADER + b"x\r\n--b--\r\n", b"x"),
    ],
    ids=["in front", "blanks", "tabs", "behind"],
)
def test_what_surrounds_a_file_is_bounded(before: bytes, unit: bytes) -> None:
    """64 KiB of neither a file nor a field are read: 64 MB of blanks were 20 s of CPU."""
    form = Form("multipart/form-data; boundary=b")
    form.feed(before)
    began = time.thread_time()
    with pytest.raises(InvalidRequest, match="around its fields' contents"):
        form.feed(unit * (4 * OVERHEAD_BYTES // len(unit)))
    assert time.thread_time() - began < 0.2


def test_a_long_file_is_no_surroundings() -> None:
    """All of a file comes out, whatever is in it."""
    form, line = Form("multipart/form-data; boundary=b"), b"\r\n--a \t\r"
    content = line * 100_000
    pieces = form.feed(b"--b\r\n" + HEADER + content)
    pieces += form.feed(b"\r\n--b--\r\n")
    assert b"".join(pieces) == content
    assert form.complete


class _Bits:
    """Bits as deflate has them, the lowest one first."""

    def __init__(self) -> None:
        self.number = self.size = 0

    def add(self, value: int, width: int) -> None:
        self.number |= value << self.size
        self.size += width


def slow_gzip(size: int) -> bytes:
    """Return a gzip stream of so many bytes, in which each 11 make a table of codes for nothing."""
    bits = _Bits()
    for _ in range(8):
        _add_empty_block(bits)
    blocks = bits.number.to_bytes(bits.size // 8, "little")
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + blocks * (size // len(blocks))


def _add_empty_block(bits: _Bits) -> None:
    order = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1]
    for value, width in [(0, 1), (2, 2), (0, 5), (0, 5), (len(order) - 4, 4)]:
        bits.add(value, width)
    for symbol in order:
        bits.add(symbol in (1, 18), 3)
    for value, width in [(1, 1), (127, 7), (1, 1), (107, 7), (0, 1), (0, 1), (0, 1)]:
        bits.add(value, width)


def test_a_gzip_body_that_is_slow_to_inflate_is_refused(client: httpx.Client) -> None:
    """32 MB of empty blocks took 4 s of CPU to become nothing."""
    body = slow_gzip(16 << 20)
    assert zlib.decompressobj(wbits=31).decompress(body[:100_000]) == b""
    error = error_of(post(client, body, content_encoding="gzip"), 400)
    assert "takes too long to inflate" in error["message"]


def test_the_document_is_made_once(start_gateway: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks while it is made waits for it; forty made it forty times, for 17 s."""
    made: list[float] = []

    def document(*_: object) -> dict[str, Any]:
        made.append(time.monotonic())
        time.sleep(0.3)
        return {"openapi": "3.1.0"}

    monkeypatch.setattr(app, "document", document)
    gateway = start_gateway(**FAKE)
    with gateway.client() as http, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: http.get("/openapi.json").json(), range(8)))
    assert answers == [{"openapi": "3.1.0"}] * 8
    assert len(made) == 1


def test_lists_of_files_are_written_beside_the_event_loop(
    stored: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of ten thousand files kept it for 0.12 s."""
    threads: list[threading.Thread] = []

    def shown(file: files.StoredFile) -> Any:
        threads.append(threading.current_thread())
        return {"id": file.id}

    with stored.client() as http:
        sent = http.post("/v1/files", files={"file": b"x"}, data={"purpose": "batch"})
        assert sent.status_code == 200, sent.text
        monkeypatch.setattr(files, "shown", shown)
        assert http.get("/v1/files").json()["data"] == [{"id": sent.json()["id"]}]
    assert [thread.name.startswith("step") for thread in threads] == [True]


def asked(gateway: RunningGateway, path: str) -> socket.socket:
    """Ask for something on a connection that takes little at a time."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(gateway.address)
    client.sendall(b"GET %s HTTP/1.1\r\nhost: a\r\nx-request-id: mine\r\n\r\n" % path.encode())
    return client


def test_nothing_is_read_for_a_client_that_has_left(stored: RunningGateway) -> None:
    """A download ends with its connection: 500 that were left after a moment cost 17 s of CPU."""
    with stored.client() as http:
        content = {"file": bytes(16 << 20)}
        sent = http.post("/v1/files", files=content, data={"purpose": "batch"}).json()
        asked(stored, f"/v1/files/{sent['id']}/content").close()
        wait_until(lambda: [each for each in stored.requests_logged() if each["id"] == "mine"])
        (line,) = (each for each in stored.requests_logged() if each["id"] == "mine")
        assert line["status"] == 499
        whole = http.get(f"/v1/files/{sent['id']}/content")
        assert len(whole.content) == 16 << 20
        assert log_line(stored, whole)["status"] == 200


def test_a_client_that_reads_slowly_is_cut_off(
    start_gateway: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece is read within `send_timeout_s`, and all of them take too long."""
    monkeypatch.setattr(request_log, "_SLOWEST_BYTES_A_S", 4 << 20)
    gateway = start_gateway(**FAKE, state_dir=tmp_path, send_timeout_s=2)
    with gateway.client() as http:
        content = {"file": bytes(16 << 20)}
        sent = http.post("/v1/files", files=content, data={"purpose": "batch"}).json()
    with asked(gateway, f"/v1/files/{sent['id']}/content") as client:
        received, began = 0, time.monotonic()
        try:
            while part := client.recv(64 << 10):
                received += len(part)
                time.sleep(len(part) / (1 << 20))  # a piece in 0.06 s, and all in 16
        except ConnectionResetError:
            pass
        assert received < 16 << 20
        assert time.monotonic() - began < 12
    assert gateway.stop() == 0


def test_an_old_client_gets_its_answer_in_pieces() -> None:
    """HTTP/1.0 is told the length; what is sent is not joined, which kept the event loop."""
    parts = [bytes([number]) * PIECE_BYTES for number in range(30)]
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    async def receive() -> Any:
        raise NotImplementedError

    scope = {"type": "http", "http_version": "1.0"}
    asyncio.run(AnswerResponse(Answer(iter(parts)))(scope, receive, send))
    head, *bodies = messages
    sent = [message["body"] for message in bodies]
    assert b"".join(sent) == b"".join(parts)
    assert max(map(len, sent)) < 2 * PIECE_BYTES
    assert (b"content-length", b"%d" % (30 * PIECE_BYTES)) in head["headers"]


def test_lists_of_tokens_are_reserved(
    start_gateway: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are while they are made: twenty requests held 1 GB that nobody had counted."""
    gateway = start_gateway(**FAKE)
    answers, held = gateway.gateway.service.answers, []

    def written(tokens: Iterable[Token]) -> bytes:
        held.append(answers.held)
        return orjson.dumps(len(list(tokens)))

    monkeypatch.setattr(tei, "_tokens_json", written)
    with gateway.client() as http:
        assert http.post("/tokenize", json={"inputs": ["w1 " * 100] * 50}).json() == [102] * 50
    assert len(held) == 50
    assert min(held) >= 50 * 100 * 60
    wait_until(lambda: answers.held == 0)
    assert gateway.stop() == 0


def test_long_lists_of_tokens_are_written_whole(client: httpx.Client) -> None:
    """A text of more tokens than are written at once has all of them, in order."""
    (tokens,) = client.post("/tokenize", json={"inputs": "w1 " * 10_000}).json()
    assert len(tokens) == 10_002
    assert [token["start"] for token in tokens[1:-1]] == list(range(0, 30_000, 3))


def test_a_log_line_moves_no_cursor(fake: RunningGateway, client: httpx.Client) -> None:
    """Names of paths and models come from clients; they are logged without control characters."""
    answer = client.get("/x%1b[2Jy%c2%85%e2%80%aez")
    assert log_line(fake, answer)["path"] == "/x?[2Jy??z"
    body = json.dumps({"model": "\x1b[1m\n", "input": "w1"}).encode()
    assert log_line(fake, post(client, body))["model"] == "?[1m?"

"""Jobs through running servers: the same rows, and patience where it helps."""

from __future__ import annotations

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pytest

from embedding_service import client
from embedding_service.bulk import servers
from embedding_service.errors import BadConfiguration, JobStopped, RowsFailed
from embedding_service.types import EmbedDtype, Output, Truncate
from tests.bulk.jobs import corpus, embed, errors_of, files_of, rows_of, texts_of, write_jsonl
from tests.conftest import FAKE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import RunningGateway

THREE = {"outputs": ["dense", "sparse", "colbert"]}


class Other:
    """Another server with OpenAI's API, which first gives `answers`: status, headers and body."""

    def __init__(self, *answers: tuple[int, dict[str, str], bytes]) -> None:
        self.answers = list(answers)
        self.bodies: list[dict[str, Any]] = []
        other = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["content-length"])
                other.bodies.append(orjson.loads(self.rfile.read(size)))
                texts = other.bodies[-1]["input"]
                status, headers, body = 200, {}, vectors(len(texts))
                if other.answers and texts != ["a"]:
                    status, headers, body = other.answers.pop(0)
                self.send_response(status)
                for name, value in {"content-length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=[0.02])
        self.thread.start()

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def vectors(count: int) -> bytes:
    """Return an answer with lists of numbers, in another order."""
    items = [{"index": i, "embedding": [float(i), 1.0]} for i in reversed(range(count))]
    return orjson.dumps({"data": items, "usage": {"prompt_tokens": count}})


def answer_of(vectors: list[Any], index: int | None = None, usage: object = None) -> bytes:
    """Return an answer with these vectors, as a server in Python may write it."""
    items = [
        {"index": i if index is None else index, "embedding": vector}
        for i, vector in enumerate(vectors)
    ]
    return json.dumps({"data": items, "usage": usage}).encode()


@pytest.fixture
def other() -> Iterator[Callable[..., Other]]:
    """Return a function that starts another server."""
    started: list[Other] = []

    def start(*answers: tuple[int, dict[str, str], bytes]) -> Other:
        started.append(Other(*answers))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.mark.parametrize("asked", [
    {},
    {"outputs": tuple(map(Output, THREE["outputs"])), "truncate": Truncate.CHUNK_MEAN},
    {"embed_dtype": EmbedDtype.INT8, "truncate": Truncate.LEFT},
])  # fmt: skip
def test_a_server_gives_the_same_rows(
    asked: dict[str, Any], tmp_path: Path, shared_gateway: Callable[..., RunningGateway]
) -> None:
    """The same files as with an engine of its own, those of rows that fail included."""
    settings = {**FAKE, "engine_args": THREE}
    url = shared_gateway(**settings).url
    records = [{"id": i, "text": text} for i, text in enumerate(texts_of(900))]
    records[7]["text"], records[500]["text"] = "w1 " * 600, "fault-reject"
    path = write_jsonl(tmp_path / "a.jsonl", records)
    local, remote = tmp_path / "local", tmp_path / "remote"
    for out, more in ((local, {"settings": settings}), (remote, {"servers": [url, f"{url}/v1"]})):
        with pytest.raises(RowsFailed, match="no vectors"):
            embed(path, out=out, rows_per_part=500, **more, **asked)
    parts = {name: content for name, content in files_of(local).items() if "part" in name}
    found = files_of(remote)
    for name, content in parts.items():
        if name.endswith("parquet"):
            assert found[name] == content
    assert [error["row"] for error in errors_of(remote)] == [
        error["row"] for error in errors_of(local)
    ]


def test_a_server_that_is_busy_or_gone_is_asked_again(
    other: Callable[..., Other], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too much at once, its own trouble, a connection that breaks: no row is lost."""
    monkeypatch.setattr(client, "_PAUSE_S", 0.01)
    busy = other((429, {"retry-after": "0.05"}, b"{}"), (503, {}, b"no"), (500, {}, b""))
    gone = other()
    gone.close()
    out = tmp_path / "out"
    embed(corpus(tmp_path / "a.jsonl", 600), out=out, model="x", servers=[busy.url, gone.url])
    assert len(rows_of(out)) == 600
    assert [vector[0] for vector in rows_of(out).values()][:256] == [float(i) for i in range(256)]


def test_a_server_that_stays_away_stops_the_job(
    other: Callable[..., Other], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while the job ends with a line, and goes on later."""
    monkeypatch.setattr(client, "_PAUSE_S", 0.01)
    monkeypatch.setattr(servers, "_PATIENCE_S", 0.1)
    server = other(*[(503, {}, b'{"error": {"message": "loading"}}')] * 100)
    path, out = corpus(tmp_path / "a.jsonl", 5), tmp_path / "out"
    with pytest.raises(JobStopped, match="503: loading; the same command goes on"):
        embed(path, out=out, model="x", servers=[server.url])
    server.answers.clear()
    embed(path, out=out, model="x", servers=[server.url])
    assert len(rows_of(out)) == 5


def test_waiting_is_told(
    other: Callable[..., Other], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and not again for half a minute."""
    monkeypatch.setattr(client, "_PAUSE_S", 0.01)
    server = other(*[(503, {}, b'{"error": {"message": "loading"}}')] * 3)
    path, out = corpus(tmp_path / "a.jsonl", 5), tmp_path / "out"
    log = embed(path, out=out, model="x", servers=[server.url])
    (line,) = [entry["event"] for entry in log if entry["level"] == "warning"]
    assert re.fullmatch(
        rf"no server answers since \d s \({server.url}/v1/embeddings: HTTP 503: loading\); trying "
        "for 15 minutes more",
        line,
    )


@pytest.mark.parametrize(("answer", "reason"), [
    ((401, {}, b'{"error": {"message": "wrong key"}}'), "401: wrong key"),
    ((200, {}, b"hello"), "not the answer of an embeddings server"),
    ((200, {}, vectors(3)), "3 vectors for 5 texts"),
    ((200, {}, answer_of([[1.0, 2.0, 3.0]] * 5)), "shape .3,., where others have 2 numbers"),
    ((200, {}, answer_of([[1.0, 2.0]] * 4 + [[1.0]])), "shape .1,., where others have 2 numbers"),
    ((200, {}, answer_of([[[1.0, 2.0]]] * 5)), "shape .1, 2., where others have 2 numbers"),
    ((200, {}, answer_of(["AAAA"] * 5)), "not the answer of an embeddings server"),
    ((200, {}, answer_of([[1.0, 2.0]] * 5, index=0)), "or not one for each"),
    ((200, {}, b'{"data": 5}'), "not the answer of an embeddings server"),
    ((400, {}, b"<html>bad gateway</html>"), "400: <html>bad gateway"),
    ((200, {"x-vector-space": "x@2"}, vectors(5)), "its vectors are of x@2, not None"),
])  # fmt: skip
def test_a_wrong_answer_stops_the_job(
    answer: tuple[int, dict[str, str], bytes],
    reason: str,
    other: Callable[..., Other],
    tmp_path: Path,
) -> None:
    """A key that is no longer known, or vectors that are not these texts', write nothing."""
    server = other(answer)
    out = tmp_path / "out"
    with pytest.raises(JobStopped, match=reason):
        embed(corpus(tmp_path / "a.jsonl", 5), out=out, model="x", servers=[server.url])
    assert list(files_of(out)) == ["_manifest.json"]


def test_rows_without_numbers_fail_alone(other: Callable[..., Other], tmp_path: Path) -> None:
    """Null and NaN, also as base64, are no vectors; a null for the usage is none to count."""
    nan = base64.b64encode(np.full(2, np.nan, np.float32).tobytes()).decode()
    given = [[1.0, 2.0], [None, None], [float("nan"), 1.0], nan, [3.0, 4.0]]
    server, out = other((200, {}, answer_of(given))), tmp_path / "out"
    with pytest.raises(RowsFailed, match="3 rows have"):
        embed(corpus(tmp_path / "a.jsonl", 5), out=out, model="x", servers=[server.url])
    assert [(error["row"], error["code"]) for error in errors_of(out)] == [
        (1, "not_finite"), (2, "not_finite"), (3, "not_finite"),
    ]  # fmt: skip
    assert rows_of(out) == {0: [1.0, 2.0], 40: [3.0, 4.0]}


def test_dimensions_that_a_server_passes_over_are_told(
    other: Callable[..., Other], tmp_path: Path
) -> None:
    """Vectors of another width than the one that was asked for are not taken."""
    path, out, url = corpus(tmp_path / "a.jsonl", 5), tmp_path / "out", other().url
    with pytest.raises(BadConfiguration, match="gives 2 numbers and not 5"):
        embed(path, out=out, model="x", servers=[url], dimensions=5)
    embed(path, out=out, model="x", servers=[url], dimensions=2)


def test_floats_are_no_small_integers(other: Callable[..., Other], tmp_path: Path) -> None:
    """A server that passes over `embed_dtype` is not believed."""
    with pytest.raises(JobStopped, match="float64 instead of int8"):
        embed(
            corpus(tmp_path / "a.jsonl", 5),
            out=tmp_path / "out",
            model="x",
            servers=[other().url],
            embed_dtype=EmbedDtype.INT8,
        )


def test_only_the_hex_of_a_space_is_compared(
    other: Callable[..., Other], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers may have two names for one space."""
    monkeypatch.setattr(servers, "PROBE", "b")  # so that it is answered by the list as well
    names = [(200, {"x-vector-space": f"{name}@{'1' * 12}"}, vectors(1)) for name in "xy"]
    server, out = other(*names), tmp_path / "out"
    embed(corpus(tmp_path / "a.jsonl", 1), out=out, model="x", servers=[server.url])
    assert len(rows_of(out)) == 1


@pytest.mark.parametrize(("body", "code"), [
    (b'{"error": {"message": "too long", "code": "length"}}', "length"),
    (b'{"message": "too long", "type": "Validation"}', "refused"),
    (b'{"error": "too long", "error_type": "Validation"}', "refused"),
])  # fmt: skip
def test_refused_texts_are_found_by_halves(
    body: bytes, code: str, other: Callable[..., Other], tmp_path: Path
) -> None:
    """A 400 about several texts says nothing of most of them, in whichever form it is."""
    refused = (400, {}, body)
    server = other(refused, refused, refused)
    out = tmp_path / "out"
    with pytest.raises(RowsFailed, match="1 row has"):
        embed(corpus(tmp_path / "a.jsonl", 4), out=out, model="x", servers=[server.url])
    assert [(error["id"], error["code"], error["reason"]) for error in errors_of(out)] == [
        (0, code, "too long")
    ]
    assert list(rows_of(out)) == [10, 20, 30]


def test_a_dry_run_does_not_measure_a_cache(
    other: Callable[..., Other], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Texts that the server knows say nothing about the time of others."""
    server = other((200, {"x-cache": "3/5"}, vectors(5)))
    path = corpus(tmp_path / "a.jsonl", 5)
    embed(path, out=None, model="x", servers=[server.url])
    assert "3 texts were answered from a cache: no estimate" in capsys.readouterr().out


def test_a_refusal_speaks_of_the_row(
    tmp_path: Path, shared_gateway: Callable[..., RunningGateway]
) -> None:
    """It names the command's flag, and no place in a request that nobody has written."""
    path, out = write_jsonl(tmp_path / "a.jsonl", [{"text": "w1 " * 600}]), tmp_path / "out"
    with pytest.raises(RowsFailed):
        embed(path, out=out, servers=[shared_gateway(**FAKE).url])
    reason = errors_of(out)[0]["reason"]
    assert reason.endswith("tokens in the text. Shorten it, or set --truncate right.")


def test_only_what_was_asked_is_sent(other: Callable[..., Other], tmp_path: Path) -> None:
    """Servers that know OpenAI's fields alone are not sent others for nothing."""
    server = other()
    embed(corpus(tmp_path / "a.jsonl", 1), out=tmp_path / "out", model="x", servers=[server.url])
    assert server.bodies[-1].keys() == {"model", "input", "encoding_format"}


def test_servers_are_checked_first(fake: RunningGateway, tmp_path: Path) -> None:
    """An address, a model or a field that cannot be: one line, and no folder."""
    path, out = corpus(tmp_path / "a.jsonl", 1), tmp_path / "out"
    for more, reason in (
        ({"servers": ["host:80"]}, "is not the URL of a server"),
        ({"servers": [fake.url], "model": "other"}, "404: The model `other` does not exist"),
        ({"servers": [fake.url], "dimensions": 5}, "400: dimensions must be 32"),
    ):
        with pytest.raises(BadConfiguration, match=reason) as caught:
            embed(path, out=out, **more)
        assert "\n" not in str(caught.value)
    for more in ({}, {"model": "x"}):
        with pytest.raises(JobStopped, match="cannot be reached: connection refused; start it, or"):
            embed(path, out=out, servers=["http://127.0.0.1:9"], **more)
    assert not out.exists()

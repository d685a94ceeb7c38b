"""`/v1/files`: what is uploaded comes back, belongs to one key, and is bounded."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import openai
import pytest
from fastapi.openapi.models import OpenAPI
from jsonschema import Draft202012Validator

from embedding_service.batches.store import VERSION, Store
from embedding_service.errors import BadConfiguration, InvalidRequest
from embedding_service.http.multipart import Form, shown_name
from tests.child import wait_until
from tests.conftest import FAKE
from tests.http.test_openapi import references

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx

    from tests.conftest import RunningGateway

CONTENT = b'{"custom_id":"one"}\n' * 10_000
KEYS = [{"name": "a", "key": "key-a"}, {"name": "b", "key": "key-b"}]


@pytest.fixture(scope="module")
def gateway(
    start_gateway: Callable[..., RunningGateway], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningGateway]:
    """Return a gateway with two keys and tight bounds."""
    running = start_gateway(
        **FAKE,
        api_keys=KEYS,
        state_dir=tmp_path_factory.mktemp("state"),
        max_file_bytes=1 << 20,
        max_files=5,
        max_stored_bytes=2 << 20,
        max_body_bytes=64 << 10,
    )
    yield running
    running.stop()


@pytest.fixture
def http(gateway: RunningGateway) -> Iterator[httpx.Client]:
    """Return a client with the first key, whose files are deleted in the end."""
    with gateway.client(headers={"authorization": "Bearer key-a"}) as client:
        yield client
        for file in client.get("/v1/files").json()["data"]:
            client.delete(f"/v1/files/{file['id']}")


def folder(gateway: RunningGateway) -> Path:
    """Return where the contents of files are."""
    assert gateway.settings.state_dir is not None
    return gateway.settings.state_dir / "files"


def upload(
    http: httpx.Client, content: bytes = CONTENT, name: str = "in.jsonl", **fields: str
) -> httpx.Response:
    """Upload a file as the SDKs do."""
    return http.post(
        "/v1/files", files={"file": (name, content)}, data={"purpose": "batch", **fields}
    )


def error(answer: httpx.Response) -> tuple[int, str | None, str | None]:
    """Return status, code and field of an answer in OpenAI's envelope."""
    body = answer.json()["error"]
    assert body.keys() == {"message", "type", "param", "code"}
    assert body["message"]
    return answer.status_code, body["code"], body["param"]


def test_the_sdk_keeps_files_here(gateway: RunningGateway, http: httpx.Client) -> None:
    """The SDK uploads a file larger than a body may be, describes, lists, reads and deletes it."""
    sdk = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="key-a", max_retries=0)
    before = int(time.time())
    made = sdk.files.create(
        file=("in.jsonl", CONTENT),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (made.object, made.bytes, made.filename) == ("file", len(CONTENT), "in.jsonl")
    assert (made.purpose, made.status) == ("batch", "processed")
    assert before <= made.created_at <= made.expires_at - 3600 <= time.time()
    assert sdk.files.retrieve(made.id) == made
    assert list(sdk.files.list(purpose="batch")) == [made]
    assert list(sdk.files.list(purpose="batch_output")) == []
    assert sdk.files.content(made.id).read() == CONTENT
    gone = sdk.files.delete(made.id)
    assert (gone.id, gone.deleted, gone.object) == (made.id, True, "file")
    with pytest.raises(openai.NotFoundError):
        sdk.files.retrieve(made.id)
    assert list(folder(gateway).iterdir()) == []


def test_lists_have_pages(gateway: RunningGateway, http: httpx.Client) -> None:
    """A page ends where it was asked to, the next one begins behind it, in either order."""
    ids = [upload(http, name=f"{number}").json()["id"] for number in range(3)]
    first = http.get("/v1/files", params={"limit": 2}).json()
    assert [file["id"] for file in first["data"]] == ids[:0:-1]
    assert (first["first_id"], first["last_id"], first["has_more"]) == (ids[2], ids[1], True)
    rest = http.get("/v1/files", params={"limit": 2, "after": ids[1]}).json()
    assert ([file["id"] for file in rest["data"]], rest["has_more"]) == ([ids[0]], False)
    sdk = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="key-a")
    assert [file.id for file in sdk.files.list(limit=1, order="asc")] == ids
    for wrong in ({"limit": "0"}, {"limit": "x"}, {"after": "file-no"}, {"order": "up"}):
        assert error(http.get("/v1/files", params=wrong))[::2] == (400, next(iter(wrong)))


def test_others_files_are_not_there(gateway: RunningGateway, http: httpx.Client) -> None:
    """A file of another key is as unknown as one that never was, and is left alone."""
    made = upload(http).json()["id"]
    with gateway.client(headers={"authorization": "Bearer key-b"}) as other:
        answers = [
            [
                other.get(f"/v1/files/{name}"),
                other.get(f"/v1/files/{name}/content"),
                other.delete(f"/v1/files/{name}"),
            ]
            for name in (made, "file-unknown")
        ]
        assert other.get("/v1/files").json()["data"] == []
        assert other.get("/v1/files", params={"after": made}).status_code == 400
    for theirs, nobodys in zip(*answers, strict=True):
        assert (theirs.status_code, theirs.json()) == (404, nobodys.json())
    assert http.get(f"/v1/files/{made}/content").content == CONTENT
    with gateway.client() as nobody:
        assert nobody.get("/v1/files").status_code == 401
        assert upload(nobody).status_code == 401


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "assistants"}, "purpose"),
        (
            {"expires_after[anchor]": "now", "expires_after[seconds]": "3600"},
            "expires_after.anchor",
        ),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "5"},
            "expires_after.seconds",
        ),
        ({"expires_after[anchor]": "created_at"}, "expires_after.seconds"),
    ],
)
def test_wrong_fields_are_named(
    gateway: RunningGateway, http: httpx.Client, fields: dict[str, str], param: str
) -> None:
    """A wrong field is refused by its name, and nothing of the file is left."""
    assert error(upload(http, **fields))[::2] == (400, param)
    assert list(folder(gateway).iterdir()) == []


def form(*parts: str, end: str = "--b--\r\n") -> bytes:
    """Return a form as it is sent."""
    return "".join(f"--b\r\n{part}\r\n" for part in parts).encode() + end.encode()


FILE = 'Content-Disposition: form-data; name="file"; filename="x"\r\n\r\n{}'
PURPOSE = 'Content-Disposition: form-data; name="purpose"\r\n\r\nbatch'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no form at all",
        form(FILE),
        form(PURPOSE),
        form(FILE, PURPOSE, end=""),
        form(FILE, FILE, PURPOSE),
        form(FILE, PURPOSE, PURPOSE),
        form(*[PURPOSE.replace("purpose", f"p{number}") for number in range(40)]),
        form(FILE, PURPOSE + "x" * 5000),
        form("X: " + "y" * 100_000 + "\r\n\r\n", FILE, PURPOSE),
        form("X: y\r\n\r\n", FILE, PURPOSE),
        form(FILE.replace("{}", ""), PURPOSE),
        form(FILE + "\r\n--bx" * 40, PURPOSE),
    ],
)
def test_broken_forms_leave_nothing(
    gateway: RunningGateway, http: httpx.Client, body: bytes
) -> None:
    """A form that is broken, incomplete or empty is a 400, and nothing of it is kept."""
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = http.post("/v1/files", content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert list(folder(gateway).iterdir()) == []


def test_lines_like_borders_cost_nothing() -> None:
    """A file of nothing but beginnings of borders is refused before they are looked at."""
    parser = Form("multipart/form-data; boundary=b")
    began = time.thread_time()
    with pytest.raises(InvalidRequest, match="in no other place"):
        parser.feed(form(FILE + "\r\n--bx" * 1_000_000, PURPOSE))
    assert time.thread_time() - began < 0.5  # read to its end it takes 1.2


def test_a_long_content_type_costs_nothing() -> None:
    """A content type that takes a parser the square of its length is cut off."""
    began = time.thread_time()
    with pytest.raises(InvalidRequest, match="boundary"):
        Form('multipart/form-data; x="' + ";" * 500_000)
    assert time.thread_time() - began < 0.5  # as a whole it takes 7


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data", ""])
def test_other_content_types_are_refused(http: httpx.Client, kind: str) -> None:
    """A body that is no form is refused before it is read."""
    answer = http.post("/v1/files", content=form(FILE, PURPOSE), headers={"content-type": kind})
    assert "multipart/form-data" in answer.json()["error"]["message"]
    assert answer.status_code == 400


def test_bounds_are_kept(gateway: RunningGateway, http: httpx.Client) -> None:
    """A file too large, one too many, more than a key may store: each is refused by its setting."""
    too_large = upload(http, b"x" * (1 << 20) + b"y")
    assert error(too_large)[:2] == (413, "request_too_large")
    assert "max_file_bytes" in too_large.json()["error"]["message"]
    much_too_large = upload(http, b"x" * (4 << 20))
    assert much_too_large.status_code == 413
    large = [upload(http, b"x" * (1 << 20)) for _ in range(3)]
    assert [answer.status_code for answer in large] == [200, 200, 400]
    assert "max_stored_bytes" in large[2].json()["error"]["message"]
    small = [upload(http, b"x") for _ in range(4)]
    assert [answer.status_code for answer in small] == [400] * 4  # full to the last byte
    for file in http.get("/v1/files").json()["data"]:
        http.delete(f"/v1/files/{file['id']}")
    small = [upload(http, b"x") for _ in range(6)]
    assert [answer.status_code for answer in small] == [200] * 5 + [400]
    assert "max_files" in small[5].json()["error"]["message"]
    assert len(list(folder(gateway).iterdir())) == 5


def test_a_full_quota_is_told_before_the_upload(
    gateway: RunningGateway, http: httpx.Client
) -> None:
    """An upload for which there is no room is refused before its content is waited for."""
    for _ in range(5):
        upload(http, b"x")
    connection = HTTPConnection(gateway.url.removeprefix("http://"), timeout=10)
    connection.putrequest("POST", "/v1/files")
    connection.putheader("authorization", "Bearer key-a")
    connection.putheader("content-type", "multipart/form-data; boundary=b")
    connection.putheader("content-length", "100000")
    connection.endheaders(form(FILE)[:20])
    answer = connection.getresponse()
    assert answer.status == 400
    assert json.load(answer)["error"]["code"] == "file_limit_exceeded"
    connection.close()


def test_a_compressed_form_is_bounded_inflated(gateway: RunningGateway, http: httpx.Client) -> None:
    """gzip is read, and counts as what it becomes."""
    import gzip

    headers = {"content-type": "multipart/form-data; boundary=b", "content-encoding": "gzip"}
    good = gzip.compress(form(FILE, PURPOSE))
    assert http.post("/v1/files", content=good, headers=headers).json()["bytes"] == 2
    bomb = gzip.compress(form(FILE.replace("{}", "0" * (8 << 20)), PURPOSE))
    assert http.post("/v1/files", content=bomb, headers=headers).status_code == 413
    assert len(list(folder(gateway).iterdir())) == 1


def test_a_full_disk_is_told(
    gateway: RunningGateway, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room on the disk an upload is a 507, not to be retried, and nothing is left of it."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        answer = upload(http)
    assert error(answer)[:2] == (507, "storage_full")
    assert answer.headers["x-should-retry"] == "false"
    assert list(folder(gateway).iterdir()) == []
    assert upload(http).status_code == 200


def test_a_client_that_leaves_leaves_nothing(gateway: RunningGateway) -> None:
    """An upload that breaks off is forgotten."""

    def parts() -> Iterator[bytes]:
        yield form(FILE, end="")[:-4]
        yield b"x" * (600 << 10)
        wait_until(lambda: list(folder(gateway).glob("*.part")))
        raise ZeroDivisionError

    headers = {"authorization": "Bearer key-a", "content-type": "multipart/form-data; boundary=b"}
    with gateway.client(headers=headers) as http, pytest.raises(ZeroDivisionError):
        http.post("/v1/files", content=parts())
    wait_until(lambda: not list(folder(gateway).iterdir()))


def test_uploads_at_a_time_are_bounded(gateway: RunningGateway, http: httpx.Client) -> None:
    """A key has eight uploads at most, which no quota knows of yet; others are not held up."""
    go_on = threading.Event()

    def slowly() -> Iterator[bytes]:
        whole = form(FILE, PURPOSE)
        yield whole[:20]
        assert go_on.wait(60)
        yield whole[20:]

    def send(key: str) -> int:
        headers = {
            "authorization": f"Bearer {key}",
            "content-type": "multipart/form-data; boundary=b",
        }
        with gateway.client(headers=headers) as client:
            return client.post("/v1/files", content=slowly()).status_code

    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(send, "key-b") for _ in range(8)]
        wait_until(lambda: len(list(folder(gateway).glob("*.part"))) == 8)
        with gateway.client(headers={"authorization": "Bearer key-b"}) as other:
            refused = upload(other)
        assert error(refused)[:2] == (429, "engine_overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert upload(http).status_code == 200
        go_on.set()
        assert [each.result() for each in waiting].count(200) == 5  # max_files
    with gateway.client(headers={"authorization": "Bearer key-b"}) as other:
        for file in other.get("/v1/files").json()["data"]:
            other.delete(f"/v1/files/{file['id']}")
        assert upload(other).status_code == 200
        other.delete(f"/v1/files/{other.get('/v1/files').json()['last_id']}")


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("in.jsonl", "in.jsonl"),
        ("../../etc/passwd", "passwd"),
        ("C:\\dir\\in.jsonl", "in.jsonl"),
        ("é\u202e\x00\nx", "éx"),
        ("..", "file"),
        ("x" * 5000, "x" * 255),
    ],
)
def test_names_are_shown_and_never_used(sent: str, shown: str) -> None:
    """A name from a client is shown without its folders and control characters."""
    assert shown_name(sent) == shown


def test_without_a_folder_there_are_no_files(client: httpx.Client) -> None:
    """Where `state_dir` is not set, these paths name the setting; others never do."""
    for path in ("/v1/files", "/v1/files/file-1/content", "/v1/batches", "/v1/batches/batch_1"):
        assert error(client.get(path))[:2] == (404, "not_found")
        assert "state_dir" in client.get(path).json()["error"]["message"]
    assert "state_dir" not in client.get("/v1/nowhere").text


def test_the_document_describes_them(gateway: RunningGateway, http: httpx.Client) -> None:
    """The OpenAPI document has all paths, is valid, and no reference in it dangles."""
    document: dict[str, Any] = http.get("/openapi.json").json()
    OpenAPI.model_validate(document)
    assert {
        path for path in document["paths"] if path.startswith(("/v1/files", "/v1/batches"))
    } == {
        "/v1/files",
        "/v1/files/{file_id}",
        "/v1/files/{file_id}/content",
        "/v1/batches",
        "/v1/batches/{batch_id}",
        "/v1/batches/{batch_id}/cancel",
    }
    components = document["components"]
    known = {
        f"#/components/{kind}/{x}" for kind in ("schemas", "headers") for x in components[kind]
    }
    assert set(references(document)) <= known
    described = {"$ref": "#/components/schemas/FileObject", "components": document["components"]}
    Draft202012Validator(described).validate(upload(http).json())


def test_a_folder_that_cannot_be_used_ends_the_start(tmp_path: Path) -> None:
    """One line names the setting: a file is in the way, a database newer, or none."""
    (tmp_path / "file").write_text("")
    newer, broken = tmp_path / "newer", tmp_path / "broken"
    for path in (newer, broken):
        path.mkdir()
    with sqlite3.connect(newer / "state.sqlite3") as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
    (broken / "state.sqlite3").write_text(json.dumps("no database" * 1000))
    for path in (tmp_path / "file", newer, broken):
        with pytest.raises(BadConfiguration, match=r"^state_dir: [^\n]+$"):
            Store(path)

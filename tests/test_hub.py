"""From a model's name to its files, with a hub that works, refuses, hangs, or is not asked.

The library reads its variables when it is imported, so every case is a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from embedding_service import hub
from embedding_service.settings.model import ModelOptions
from embedding_service.worker.location import resolve_model
from tests.conftest import MINILM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.process

NAME = "someone/model"
COMMIT = "a" * 40
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"the same weights once more",
    "1_Pooling/config.json": b'{"pooling_mode": "mean"}',
    "modules.json": json.dumps(
        [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    ).encode(),
    "onnx/model.onnx": b"for another program",
}
FETCHED = {"config.json", "model.safetensors", "1_Pooling/config.json", "modules.json"}
FIND = """
import json, sys
from embedding_service import hub
from embedding_service.errors import ModelNotLoaded
said = []
try:
    say = lambda text, **facts: said.append(text)
    found = hub.find(sys.argv[1], sys.argv[2] or None, say=say)
    print(json.dumps({"folder": str(found.folder), "commit": found.commit, "said": said}))
except ModelNotLoaded as error:
    print(json.dumps({"error": str(error)}))
"""


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub as the library asks for."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if NAME not in path:
            self.send_error(404)
            return
        if "/tree/" in path:
            self._json([{"type": "file", "path": name, **_file(name)} for name in FILES])
        elif "/resolve/" in path:
            self._file(path.rpartition(f"/resolve/{COMMIT}/")[2])
        else:
            siblings = [{"rfilename": name, "size": len(FILES[name])} for name in FILES]
            self._json({"id": NAME, "sha": COMMIT, "siblings": siblings})

    do_HEAD = do_GET  # noqa: N815 - the name that the base class looks up

    def _file(self, name: str) -> None:
        self._send(FILES[name], {"ETag": f'"{_file(name)["oid"]}"', "X-Repo-Commit": COMMIT})

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def _file(name: str) -> dict[str, Any]:
    return {"oid": hashlib.sha1(FILES[name]).hexdigest(), "size": len(FILES[name])}


@pytest.fixture(scope="module")
def working_hub() -> Iterator[str]:
    """Return the address of a hub that has the model."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@contextmanager
def hanging_hub() -> Iterator[str]:
    """Take connections and never answer."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def find(
    home: Path, endpoint: str, revision: str = "", *, name: str = NAME, **environ: str
) -> dict[str, Any]:
    """Look for the model in a process of its own, for a minute at most; return what it found."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", FIND, name, revision],
        env={**kept, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture
def cached(tmp_path: Path, working_hub: str) -> Path:
    """Return a cache that holds the model."""
    assert find(tmp_path, working_hub)["commit"] == COMMIT
    return tmp_path


def test_a_download_is_told_of_with_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While files arrive, whoever waits hears how much is there, and of how much."""
    monkeypatch.setattr(hub, "PROGRESS_EVERY_S", 0.01)
    (tmp_path / "there before").write_bytes(b"1234")
    done, told = threading.Event(), list[dict[str, int]]()

    def say(text: str, /, **facts: int) -> None:
        assert NAME in text
        told.append(facts)
        (tmp_path / "arriving").write_bytes(b"12345")
        if len(told) == 2:
            done.set()

    hub._tell(NAME, tmp_path, 20, done, say)
    assert told == [{"done_bytes": 4, "total_bytes": 20}, {"done_bytes": 9, "total_bytes": 20}]


REFUSING = "http://127.0.0.1:9"


def test_a_model_is_downloaded_without_what_nobody_reads(tmp_path: Path, working_hub: str) -> None:
    """The folder has the files that vLLM reads, and weights once."""
    found = find(tmp_path, working_hub)
    folder = tmp_path / "hub" / "models--someone--model" / "snapshots" / COMMIT
    assert found["folder"] == str(folder)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == FETCHED
    assert found["said"] == []


def test_a_cached_model_does_not_need_the_hub(cached: Path) -> None:
    """A hub that refuses or hangs costs a cached model seconds, and the log says why."""
    found = find(cached, REFUSING)
    assert found["commit"] == COMMIT
    assert "the hub cannot be reached" in found["said"][0]
    assert f"using {NAME} from the cache, commit {COMMIT}" in found["said"][0]
    with hanging_hub() as endpoint:
        late = find(cached, endpoint)
    assert late["commit"] == COMMIT
    assert "no answer within 5 s" in late["said"][0]
    assert "HF_HUB_OFFLINE" not in str(find(cached, REFUSING, HF_HUB_OFFLINE="1")["said"])


def test_a_cached_commit_is_not_asked_for(cached: Path) -> None:
    """A commit never changes, so the hub has nothing to say about it."""
    found = find(cached, REFUSING, COMMIT)
    assert found["commit"] == COMMIT
    assert found["said"] == []


@pytest.mark.parametrize("lost", ["model.safetensors", "1_Pooling/config.json"])
def test_half_a_model_is_refused(cached: Path, lost: str, working_hub: str) -> None:
    """A part of a model in the cache would give other vectors; a hub that works completes it."""
    snapshot = cached / "hub" / "models--someone--model" / "snapshots" / COMMIT
    (snapshot / lost).resolve().unlink()
    (snapshot / lost).unlink()
    missing = "weights" if lost == "model.safetensors" else lost
    assert f"in the local cache without {missing}" in find(cached, REFUSING)["error"]
    assert find(cached, working_hub)["commit"] == COMMIT
    assert (snapshot / lost).read_bytes() == FILES[lost]


def test_a_model_that_the_hub_does_not_have(tmp_path: Path, working_hub: str) -> None:
    """A hub that answers is not called unreachable."""
    found = find(tmp_path, working_hub, name="someone/else")
    assert found["error"].startswith("someone/else is not in the local cache, and the hub does not")


def test_a_model_that_is_nowhere_is_refused_soon(tmp_path: Path) -> None:
    """Neither the cache nor the hub has it: one line, within seconds."""
    found = find(tmp_path, REFUSING)
    assert found["error"].startswith(f"{NAME} is not in the local cache, and the hub cannot be")
    offline = find(tmp_path, REFUSING, HF_HUB_OFFLINE="1")
    assert offline["error"].startswith(
        f"{NAME} is not in the local cache and HF_HUB_OFFLINE is set: unset it, run "
    )


@pytest.mark.engine
def test_a_cached_model_is_served_while_the_hub_hangs(tmp_path: Path) -> None:
    """A gateway starts with what the cache holds, under the hub's name and commit, and says so."""
    snapshot = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}" / "snapshots" / COMMIT
    shutil.copytree(resolve_model(ModelOptions(model_path=MINILM["model_path"])).model, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-m", "embedding_service", "serve", "--log-format", "json"]
    command += ["--model-name", NAME, "--uds", str(tmp_path / "socket")]
    with hanging_hub() as endpoint:
        environ = {**kept, "HF_HOME": str(tmp_path), "HF_ENDPOINT": endpoint}
        gateway = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)
        events = []
        try:
            for line in gateway.stderr or ():
                events.append(json.loads(line))
                if events[-1]["event"] == "ready":
                    break
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(tmp_path / "socket"))) as http:
                info = http.get("http://unix/info").json()
        finally:
            gateway.terminate()
            gateway.communicate(timeout=60)
    assert (info["model_id"], info["model_sha"]) == (NAME, COMMIT)
    (told,) = [event["detail"] for event in events if event["event"] == "engine_progress"]
    assert told.endswith(f"using {NAME} from the cache, commit {COMMIT}")

"""`canary pin`: the vectors of a server or of the configured model, or one line about why not."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, ClassVar

import pytest

from embedding_service import canary, client
from embedding_service.errors import BadConfiguration, NoVectors, StartupError
from embedding_service.service import canaries
from tests.conftest import FAKE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import RunningGateway

    Start = Callable[..., RunningGateway]
    Given = tuple[int, dict[str, str], bytes]

ALL = {"outputs": ["dense", "sparse", "colbert"]}
KEY = "secret"


@pytest.fixture(scope="module")
def pinned(start_gateway: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of a running server's vectors."""
    path = tmp_path_factory.mktemp("canaries") / "canaries.json"
    gateway = start_gateway(**FAKE, engine_args=ALL)
    canary.pin_server(f"{gateway.url}/v1", path, name=None, key=None)
    return path


def test_servers_that_give_no_vectors(start_gateway: Start, pinned: Path, tmp_path: Path) -> None:
    """Unreachable, no key, a model that is not there, something else: a line each, status 6."""
    gateway, path = start_gateway(**FAKE, api_keys=[KEY]), tmp_path / "new.json"
    for url, name, key, words in (
        ("http://127.0.0.1:1", None, None, "cannot be reached"),
        (gateway.url, None, "wrong", "401"),
        (gateway.url, "other", KEY, "other is not a model"),
        (f"{gateway.url}/docs/", None, KEY, "404"),
    ):
        with pytest.raises(NoVectors, match=words) as caught:
            canary.pin_server(url, path, name=name, key=key)
        assert caught.value.exit_code == 6
    with pytest.raises(BadConfiguration, match="not the URL"):
        canary.pin_server("localhost:8890", path, name=None, key=None)
    with pytest.raises(BadConfiguration, match="No such file or directory"):
        canary.pin_server(gateway.url, tmp_path / "none" / "x", name=None, key=KEY)
    assert not path.exists()


def test_a_redirect_gets_no_key(tmp_path: Path) -> None:
    """Another host does not learn the key of the one that is named."""
    asked = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302)
            self.send_header("location", "/other")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(NoVectors, match="/v1/models: HTTP 302"):
            canary.pin_server(url, tmp_path / "new.json", name=None, key=KEY)
    assert asked == ["/v1/models"]


def test_a_server_with_narrow_limits(start_gateway: Start, pinned: Path, tmp_path: Path) -> None:
    """Texts that are refused together are sent alone; one that is refused alone ends it."""
    path = tmp_path / "narrow.json"
    gateway = start_gateway(**FAKE, engine_args=ALL, max_inputs=4)
    narrow = canary.pin_server(gateway.url, path, name=None, key=None)
    there = canaries.read(pinned)
    assert [each.vectors for each in narrow.texts] == [each.vectors for each in there.texts]
    narrower = start_gateway(**FAKE, max_text_characters=90)
    with pytest.raises(NoVectors, match="/v1/embeddings: HTTP 400"):
        canary.pin_server(narrower.url, path, name=None, key=None)


class Answers(BaseHTTPRequestHandler):
    """Gives the next of `given`, status, headers and body; the last one for ever."""

    given: ClassVar[list[Given]] = []

    def do_GET(self) -> None:
        """Answer."""
        status, headers, body = self.given.pop(0) if len(self.given) > 1 else self.given[0]
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 - the base class looks for this name

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def answers() -> Iterator[str]:
    """Return the URL of a server that gives `Answers`."""
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


SPACE = {"id": "m@0", "build": "b", "ingredients": {}, "build_ingredients": {"dtype": "float32"}}
ENTRY = {"id": "m", "root": "m", "outputs": ["dense"], "vector_space": SPACE}
MODELS: Given = 200, {}, json.dumps({"data": [ENTRY]}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"[1, 2]", b'{"data": ["m"]}', b'{"data": {}}', b'{"data": null}', b"{}", b"\xff", b"",
        b'{"data": [{"id": "m", "vector_space": "m@0"}]}',
        b'{"data": [{"id": "m", "vector_space": {"id": "m@0", "build": "b"}}]}',
        b'{"data": [{"id": "m", "vector_space": null}]}',
    ],
)  # fmt: skip
def test_a_list_of_models_that_is_none(answers: str, tmp_path: Path, body: bytes) -> None:
    """It is one line, whatever the server answers."""
    Answers.given = [(200, {}, body)]
    with pytest.raises(NoVectors) as caught:
        canary.pin_server(answers, tmp_path / "new.json", name=None, key=None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        None, {}, [], [1] * 8, [{"embedding": [0.5]}], [{"embedding": "AAAA"}] * 8, [{}] * 8,
        [{"embedding": []}] * 8, [{"embedding": [None]}] * 8, [{"embedding": [1e300]}] * 8,
    ],
)  # fmt: skip
def test_vectors_that_are_none(answers: str, tmp_path: Path, data: object) -> None:
    """Too few, no numbers, none: nothing is pinned."""
    body = json.dumps({"data": data}).encode()
    Answers.given = [MODELS, (200, {"x-vector-space": "m@0"}, body)]
    with pytest.raises(NoVectors, match="its answer is not this service's"):
        canary.pin_server(answers, tmp_path / "new.json", name=None, key=None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["http://[::1", "http://x y", "http://", "http://127.0.0.1:99999"])
def test_a_url_that_is_none(tmp_path: Path, url: str) -> None:
    """It is one line too."""
    with pytest.raises(StartupError, match=r"is not the URL of a server|cannot be reached"):
        canary.pin_server(url, tmp_path / "new.json", name=None, key=None)


def test_a_key_that_is_none(answers: str, tmp_path: Path) -> None:
    """A header takes ASCII alone."""
    with pytest.raises(BadConfiguration, match="SERVER_KEY"):
        canary.pin_server(answers, tmp_path / "new.json", name=None, key="schlüssel")


def test_a_server_without_room_is_asked_again(
    answers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the pause it asks for; not one of an hour, nor if it says that this is no use."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(client, "sleep", pause)
    body = json.dumps({"data": [{"embedding": [0.5]}] * 8}).encode()
    full = 429, {"retry-after": "7"}, b"too many"
    Answers.given = [full, MODELS, full, full, (200, {"x-vector-space": "m@0"}, body)]
    done = canary.pin_server(answers, tmp_path / "new.json", name=None, key=None)
    assert (done.dimension, pauses) == (1, [7.0, 7.0, 7.0])
    for headers in ({"retry-after": "3600"}, {"retry-after": "7", "x-should-retry": "false"}):
        Answers.given = [MODELS, (429, headers, b"too many")]
        with pytest.raises(NoVectors, match="429: too many"):
            canary.pin_server(answers, tmp_path / "new.json", name=None, key=None)
    assert pauses == [7.0, 7.0, 7.0]


@pytest.mark.process
def test_the_command_starts_the_configured_model(
    start_gateway: Start, pinned: Path, tmp_path: Path
) -> None:
    """It pins the same as the running server; a bad model ends it with status 4."""
    path = tmp_path / "here.json"
    command = [sys.executable, "-m", "embedding_service", "canary", "pin", str(path)]
    flags = ["--engine", "fake", "--model-name", "fake", "--engine-args", json.dumps(ALL)]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    here, there = canaries.read(path), canaries.read(pinned)
    assert (here.space, here.build, here.dtype) == (there.space, there.build, there.dtype)
    cosine, _ = canaries.worst(here, [text.vectors for text in there.texts])
    assert cosine == pytest.approx(1)
    refused = ["--engine-args", json.dumps({"refuse": "as asked"})]
    done = subprocess.run(
        [*command, "--force", *flags[:4], *refused], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1] == "embedding-service: fake: as asked"

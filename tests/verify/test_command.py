"""`embedding-service verify` as its users run it: exit statuses, one line for each error, reports."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from embedding_service.errors import BadConfiguration, NoVectors
from embedding_service.verify import reference
from embedding_service.verify.command import _one_line
from tests.test_cli import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import RunningGateway

pytestmark = pytest.mark.process
FAKE = ("--engine", "fake", "--model-name", "fake")
NOBODY = "http://127.0.0.1:9"


class Handler(BaseHTTPRequestHandler):
    """A server that answers in the way that its path begins with."""

    def do_GET(self) -> None:
        self._answer(404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path.startswith("/broken"):
            self._answer(400, {"error": {"message": "out of order"}})
            return
        data = [{"index": i, "embedding": [1.0] * 7} for i, _ in enumerate(body["input"])]
        self._answer(200, {"data": data})

    def _answer(self, status: int, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def other() -> Iterator[str]:
    """Return the URL of a server that is not ours."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_equal_servers_are_right(fake: RunningGateway, tmp_path: Path) -> None:
    """Status 0, a summary, and both reports; progress goes to standard error."""
    page, numbers = tmp_path / "report.html", tmp_path / "numbers.json"
    done = run(
        *("verify", "--server", fake.url, "--against", f"{fake.url}/v1"),
        *("--report", str(page), "--json", str(numbers)),
    )
    assert done.returncode == 0, done.stderr
    assert "RIGHT" in done.stdout
    assert "200 of 200 (100%)" in done.stderr
    found = json.loads(numbers.read_text("utf-8"))
    (model,) = found["models"]
    assert found["right"] is model["right"] is True
    assert [part["kind"] for part in model["parts"]] == ["plain"]  # there are no prompts
    assert model["parts"][0]["compared"] == 200
    html = page.read_text("utf-8")
    assert html.count("<svg") == 3
    assert not re.search(r"(src|href)=|@import|url\(|<script", html)


def test_the_configured_model_is_computed_here(fake: RunningGateway, tmp_path: Path) -> None:
    """Without --server, the settings' models run in this process, with texts of a file."""
    texts = tmp_path / "texts.txt"
    texts.write_text("w1 w2\nw3\r\n\nw4 fault-nan\n" + "".join(f"w{n}\n" for n in range(20)))
    done = run("verify", *FAKE, "--against", fake.url, "--texts", str(texts))
    assert done.returncode == 0, done.stderr
    assert "plain dense: 22 of 23 texts" in done.stdout


def test_other_dimensions_are_wrong(other: str, fake: RunningGateway) -> None:
    """Status 1, and a line that has both."""
    done = run("verify", "--server", other, "--model", "fake", "--against", fake.url)
    assert done.returncode == 1
    assert "vectors have 7 dimensions, and 32 are right" in done.stdout


ERRORS = {
    "made up": (FAKE, 2, "fake is made up (engine: fake): compare it with --against"),
    "unreachable": ((*FAKE, "--against", NOBODY), 6, f"{NOBODY} cannot be reached: "),
    "no server": (("--server", NOBODY, "--model", "m"), 6, f"{NOBODY} cannot be reached: "),
    "no file": (
        (*FAKE, "--texts", "/nonexistent", "--against", "{fake}"),
        2,
        "--texts /nonexistent: No such file or directory",
    ),
    "no setting": (("--treshold", "1"), 2, "--treshold: no such setting; try --threshold"),
    "no reference": (
        ("--server", "{fake}"),
        2,
        "name their folder, or their name on the hub, with --reference",
    ),
    "a slip first": (
        ("--server", NOBODY, "--refrence", "x"),
        2,
        "--refrence: no such setting; try --reference",
    ),
    "two truths": (
        ("--against", NOBODY, "--reference", "x"),
        2,
        "--reference and --against are two things to compare with: give one",
    ),
    "no model": ((*FAKE, "--model", "x"), 2, "there is no model called x with vectors to compare"),
    "scores": ((*FAKE, "--task", "rerank"), 2, "there is no model with vectors to compare"),
    "no URL": ((*FAKE, "--against", "ftp:nowhere"), 2, "'ftp:nowhere' is not the URL of a server"),
    "not in the cache": (("--model-name", "org/none"), 4, "org/none is not in the local cache"),
    "only errors": (
        ("--server", "{other}/broken", "--model", "fake", "--against", "{fake}"),
        6,
        "gave no vector: HTTP 400: out of order",
    ),
    "another model": (
        (*FAKE, "--against", "{fake}", "--against-model", "x"),
        6,
        "HTTP 404: The model `x` does not exist",
    ),
}


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_is_one_line_and_a_status(error: str, other: str, fake: RunningGateway) -> None:
    """Each error has its documented status, and its line comes last, without a traceback."""
    arguments, status, line = ERRORS[error]
    filled = [each.format(other=other, fake=fake.url) for each in arguments]
    done = run("verify", *filled, HF_HUB_OFFLINE="1")
    assert done.returncode == status, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("embedding-service: ")
    assert line in last
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_checkpoint_that_no_library_reads_ends_in_a_line(tmp_path: Path) -> None:
    """Status 2 for files that are no JSON, 6 for files that the library fails on."""
    (tmp_path / "config.json").write_text("{")
    done = run("verify", "--model-name", "m", "--model-path", str(tmp_path))
    assert done.returncode == 2
    assert "m: config.json is not JSON" in done.stderr


def test_an_error_that_nobody_foresaw_is_not_a_verdict() -> None:
    """It is a line with its place and status 6, for 1 says that vectors are wrong."""
    line = r"verify: KeyError 'x' \(test_command\.py:\d+\)"
    with pytest.raises(NoVectors, match=line) as found, _one_line():
        raise KeyError("x")
    assert found.value.exit_code == 6


def test_a_missing_library_names_the_extra() -> None:
    """The line says what to install."""
    with pytest.raises(BadConfiguration, match=r"pip install 'embedding-service\[verify\]'"):
        reference.check_installed("no_such_library", "some-model")

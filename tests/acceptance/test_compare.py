"""`compare` tells right vectors from wrong ones, whatever server it is pointed at."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.__main__ import main, parse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VECTORS = [[0.6, 0.8], [1.0, 0.0]]
REFERENCE = {
    "name": "tiny",
    "hub": "someone/tiny",
    "kind": "embed",
    "tolerance": 0.99999,
    "may_refuse": False,
    "texts": ["one", "two"],
    "cases": [{"name": "plain", "request": {}, "vectors": VECTORS}],
}


class Other(BaseHTTPRequestHandler):
    """A server of somebody else's, without headers and fields of ours."""

    scale = (1.0, 1.0)

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "someone/tiny"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert asked == {"model": "someone/tiny", "input": ["one", "two"]}
        rows = [[a * b for a, b in zip(row, self.scale, strict=True)] for row in VECTORS]
        self.answer({"data": [{"embedding": row} for row in rows]})

    def answer(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    """Return the server's address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        told = {"poll_interval": 0.01}
        threading.Thread(target=server.serve_forever, kwargs=told, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


@pytest.mark.parametrize(
    ("scale", "verdict", "status"), [((2, 2), "RIGHT", 0), ((1, 0.9), "WRONG", 1)]
)
def test_one_row_by_name(
    url: str,
    tmp_path: Path,
    scale: tuple[float, float],
    verdict: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A direction that is off is wrong, and so is the exit status."""
    monkeypatch.setattr(Other, "scale", scale)
    (tmp_path / "tiny.reference.json").write_text(json.dumps(REFERENCE))
    assert main(parse(["compare", url, str(tmp_path), "tiny"])) == status
    assert json.loads(capsys.readouterr().out)["verdict"] == verdict


def test_a_row_that_was_not_built(tmp_path: Path) -> None:
    """A name that nothing was built for is told, and not passed over."""
    with pytest.raises(SystemExit, match="tiny"):
        main(parse(["compare", "http://127.0.0.1:1", str(tmp_path), "tiny"]))

"""Every answer that is an error says its code, in whichever dialect, and the page has it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.test_layers import ROOT

if TYPE_CHECKING:
    from tests.conftest import RunningGateway

DOCUMENT = json.loads((ROOT / "tests/http/openapi.json").read_text("utf-8"))
PATHS = [path for path, methods in DOCUMENT["paths"].items() if "post" in methods]
PAGE = (ROOT / "docs/errors.md").read_text("utf-8")
JSON = {"content-type": "application/json"}
WRONG: dict[str, dict[str, Any]] = {
    "no JSON": {"content": "{", "headers": JSON},
    "a list": {"content": "[]", "headers": JSON},
    "not sent as JSON": {"content": "{}", "headers": {"content-type": "text/plain"}},
    "nothing": {"json": {}},
    "another model": {"json": {"model": "unknown", "input": "x", "inputs": "x", "texts": ["x"]}},
    "no gzip": {"content": "{}", "headers": {**JSON, "content-encoding": "gzip"}},
    "another method": {"method": "PUT"},
}


@pytest.mark.parametrize("path", PATHS)
def test_every_error_has_a_documented_code(fake: RunningGateway, path: str) -> None:
    """The header names a code that docs/errors.md has, the envelope the same where it has one."""
    errors = 0
    with fake.client() as http:
        for wrong in WRONG.values():
            answer = http.request(**{"method": "POST", "url": path, **wrong})
            if answer.status_code >= 400:
                errors += 1
                code = answer.headers["x-error-code"]
                assert f"| `{code}` |" in PAGE
                error = answer.json().get("error")
                if isinstance(error, dict) and isinstance(error.get("code"), str):
                    assert error["code"] == code
    assert errors > 1


def test_a_path_that_is_not_there_has_a_code(fake: RunningGateway) -> None:
    """Also what no dialect owns."""
    with fake.client() as http:
        assert http.get("/v2/nothing").headers["x-error-code"] == "not_found"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/v1/embeddings", "POST /v1/v1/embeddings: the base URL ends in /v1 already; leave"),
        ("/v1/embedding", "POST /v1/embedding; see /v1/embeddings, or /docs"),
        ("/v1/rerankings", "POST /v1/rerankings; see /v1/rerank, or /docs"),
        ("/v1/audio", "POST /v1/audio; see /docs"),
    ],
)
def test_a_path_that_is_nearly_there(fake: RunningGateway, path: str, words: str) -> None:
    """A slip in a path is answered with the path that was meant."""
    with fake.client() as http:
        assert words in http.post(path, json={}).json()["error"]["message"]

"""The requests that the log shows at the start work as they are, when they are copied."""

from __future__ import annotations

import json
import shlex
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from embedding_service.http.example_requests import Place
from tests.conftest import FAKE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import RunningGateway

KEY = "a-secret-key"
RERANKER = {"model_name": "a reranker's", "engine_args": {"outputs": ["score"]}, "required": True}
FAKE_MODEL = {"model_name": "fake", "engine": "fake"}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "name": {"model_name": 'it\'s a "name" ✓', "aliases": {}},
    "keys": {"api_keys": [KEY]},
    "everywhere": {"host": "0.0.0.0", "allow_anonymous": True, "docs": "off"},
    "sparse": {"engine_args": {"outputs": ["sparse"]}},
    "reranker": RERANKER,
    "both": {"models": [FAKE_MODEL, {**FAKE_MODEL, **RERANKER}]},
}


def ready(gateway: RunningGateway) -> dict[str, Any]:
    """Return the log's line."""
    until = time.monotonic() + 60  # it is written once the gateway is ready
    while not (lines := [line for line in gateway.log if line["event"] == "ready"]):
        assert time.monotonic() < until
        time.sleep(0.01)
    return lines[0]


def post(line: str, socket: str | None = None) -> Any:
    """Send what a line of curl would send."""
    line = line.replace("$KEY", KEY)
    words = shlex.split(line)
    headers = [word for before, word in pairwise(words) if before == "-H"]
    fields = dict(header.split(": ", 1) for header in headers)
    body = words[words.index("-d") + 1]
    (url,) = (word for word in words if word.startswith("http://"))
    if socket is not None:
        assert words[words.index("--unix-socket") + 1] == socket
    transport = httpx.HTTPTransport(uds=socket)
    with httpx.Client(transport=transport) as http:
        answer = http.post(url, content=body, headers=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def run(line: str) -> Any:
    """Run a line of Python; return its value."""
    *imports, call = line.split("; ")
    clients: list[openai.OpenAI] = []

    class Client(openai.OpenAI):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            clients.append(self)

    names: dict[str, Any] = {}
    exec("\n".join(imports), names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai, "OpenAI", Client)  # to be closed: a person's ends with their Python
        value = eval(call.replace("KEY", KEY), names)
    for client in clients:
        client.close()
    return value


@pytest.mark.parametrize("case", CASES)
def test_the_lines_can_be_copied(case: str, shared_gateway: Callable[..., RunningGateway]) -> None:
    """For each kind of model there is a line for a shell and one of Python, and both get an answer."""
    settings = {"port": 0} if case == "both" else FAKE
    gateway = shared_gateway(**settings | CASES[case])
    line = ready(gateway)
    kinds = {name for name in line if name.endswith(("curl", "python"))}
    scoring = {"rerank_curl", "rerank_python"}
    assert kinds == {"reranker": scoring, "both": scoring | {"curl", "python"}}.get(
        case, {"curl", "python"}
    )
    for kind in kinds:
        answer = post(line[kind]) if kind.endswith("curl") else run(line[kind])
        assert answer["results"] if kind in scoring else (dict(answer)["data"])
    assert KEY not in json.dumps(line)
    assert ("docs" in line) == (case != "everywhere")
    assert line["url"].startswith("http://127.0.0.1:")


def test_a_unix_socket_is_asked_by_its_path(
    start_gateway: Callable[..., RunningGateway], tmp_path: Path
) -> None:
    """Behind a Unix socket, both lines go there."""
    gateway = start_gateway(**FAKE | {"uds": tmp_path / "a socket"})
    line = ready(gateway)
    assert len(post(line["curl"], socket=str(tmp_path / "a socket"))["data"]) == 1
    assert len(run(line["python"]).data) == 1
    assert "docs" not in line
    gateway.stop()


@pytest.mark.parametrize(
    ("name", "url"),
    [
        (("127.0.0.1", 1), "http://127.0.0.1:1"),
        (("0.0.0.0", 1), "http://127.0.0.1:1"),
        (("192.0.2.1", 1), "http://192.0.2.1:1"),
        (("::", 1, 0, 0), "http://[::1]:1"),
        (("fe80::1%eth0", 1, 0, 2), "http://[fe80::1]:1"),
    ],
)
def test_addresses_are_ones_to_ask(name: tuple[Any, ...], url: str) -> None:
    """A gateway that listens everywhere is reached on this machine; IPv6 stands in brackets."""
    assert Place.of(name).url == url

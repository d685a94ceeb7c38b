"""Keys: every route is closed unless it is on the short list of open ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from embedding_service.http import page
from tests.calls import embed, error_of, log_line, routes_of
from tests.conftest import FAKE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from tests.conftest import RunningGateway

OPEN = {"/livez", "/readyz", "/health", "/ping"}
ASSETS = {
    f"/docs/assets/{name}" for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
}
DOCUMENTATION = {"/docs", "/openapi.json"} | ASSETS
SHELL = Path(page.__file__).parent / "page"
PAGE = {"/ui"} | {f"/ui/{path.name}" for path in SHELL.iterdir() if path.stem != "index"}
HASHED = "sha256:" + hashlib.sha256(b"second-key").hexdigest()
KEYS = ["first-key", HASHED, "schlüssel"]


@pytest.fixture(scope="module")
def keyed(start_gateway: Callable[..., RunningGateway]) -> Iterator[RunningGateway]:
    """Return a gateway with three keys, one of them given as its digest."""
    gateway = start_gateway(**FAKE, api_keys=KEYS, metrics="key")
    yield gateway
    gateway.stop()


@pytest.fixture(scope="module")
def secretive(start_gateway: Callable[..., RunningGateway]) -> Iterator[RunningGateway]:
    """Return a gateway that shows its documentation to holders of a key only."""
    gateway = start_gateway(**FAKE, api_keys=KEYS, docs="key", metrics="key")
    yield gateway
    gateway.stop()


def closed(gateway: RunningGateway, open_paths: set[str]) -> list[tuple[str, str]]:
    """Return method and path of every route that needs a key, and of some that do not exist."""
    routes = [
        (method, path.replace("{name:path}", "fake")) for path, method in routes_of(gateway.gateway)
    ]
    strange = [
        ("GET", "/nowhere"),
        ("DELETE", "/v1/models"),
        ("GET", "/v1//models/"),
        ("GET", "/%2fhealth"),
        ("POST", "/"),
    ]
    assets = [
        ("GET", "/docs/assets/"),
        ("GET", "/docs/assets/../../app.py"),
        ("GET", "/docs/assets/index.html"),
    ]
    return [(method, path) for method, path in routes if path not in open_paths] + strange + assets


def test_every_route_is_closed_but_the_open_ones(keyed: RunningGateway) -> None:
    """Without a key, probes and documentation answer; any other path is its dialect's same 401."""
    bodies = set()
    with keyed.client() as client:
        for method, path in closed(keyed, OPEN | DOCUMENTATION | PAGE):
            response = client.request(method, path)
            assert response.status_code == 401, (method, path)
            assert response.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                bodies.add(response.content)
        for path in OPEN | DOCUMENTATION | PAGE:
            assert client.get(path).status_code == 200, path
    message = (
        "You didn't provide an API key. Send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."
    )
    openai = {
        "message": message,
        "type": "authentication_error",
        "param": None,
        "code": "invalid_api_key",
    }
    envelopes = [
        {"error": openai},
        {"error": message, "error_type": "Validation"},
        {"message": message},
    ]
    written = [json.loads(body) for body in bodies]
    assert [envelope for envelope in envelopes if envelope not in written] == []
    assert all(message.encode() in body for body in bodies)


def test_the_documentation_can_be_closed_too(secretive: RunningGateway) -> None:
    """With `docs: key`, the documentation and its assets are behind the key as well."""
    assets = [("GET", "/docs/assets/swagger-ui.css"), ("GET", "/docs/assets/swagger-ui-bundle.js")]
    with secretive.client() as client:
        for method, path in closed(secretive, OPEN | PAGE) + assets:
            assert client.request(method, path).status_code == 401, (method, path)
        for path in OPEN:
            assert client.get(path).status_code == 200, path
    with secretive.client(headers={"x-api-key": "first-key"}) as client:
        for path in [*DOCUMENTATION, *(path for _, path in assets)]:
            assert client.get(path).status_code == 200, path


@pytest.mark.parametrize("key", ["first-key", "second-key", "schlüssel"])
@pytest.mark.parametrize(
    ("header", "form"),
    [
        ("authorization", "Bearer {}"),
        ("authorization", "bearer   {}"),
        ("X-API-Key", "{}"),
        ("x-api-key", "{}"),
    ],
)
def test_a_known_key_opens(keyed: RunningGateway, header: str, form: str, key: str) -> None:
    """Each key works as a bearer token and in X-API-Key, also where only its digest is configured."""
    with keyed.client() as client:
        response = embed(client, input="w1", headers={header: form.format(key).encode()})
    assert response.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "first-key"},
        {"authorization": "Basic first-key"},
        {"authorization": "Bearer First-key"},
        {"authorization": "Bearer first-key2"},
        {"authorization": "Bearer first-ke"},
        {"authorization": "Bearer first-key second-key"},
        {"authorization": f"Bearer {HASHED}"},
        {"authorization": f"Bearer {HASHED.removeprefix('sha256:')}"},
        {"authorization": "Bearer wrong", "x-api-key": "first-key"},
        {"x-api-key": ""},
        {"x-api-key": "Bearer first-key"},
        {"x-api-key": "first-key,second-key"},
        {"x-api-key": HASHED},
        {"x-api-key": "k" * 10_000},
        {"api-key": "first-key"},
        {"cookie": "x-api-key=first-key"},
    ],
)
def test_anything_else_does_not_open(keyed: RunningGateway, headers: dict[str, str]) -> None:
    """No key, a wrong one, a digest for its key, or a wrong place: a 401 that repeats nothing."""
    with keyed.client() as client:
        response = embed(client, input="w1", headers=headers)
    error = error_of(response, 401)
    assert (error["type"], error["param"], error["code"]) == (
        "authentication_error",
        None,
        "invalid_api_key",
    )
    assert "first-key" not in response.text
    assert "kkk" not in response.text


def test_a_key_in_the_query_does_not_open(keyed: RunningGateway) -> None:
    """Keys in the address, where logs would keep them, are not read."""
    with keyed.client() as client:
        assert client.get("/v1/models?api_key=first-key&x-api-key=first-key").status_code == 401


def test_a_body_without_a_key_is_not_judged(keyed: RunningGateway) -> None:
    """A client without a key learns nothing about limits or fields: 401 comes before 400 and 413."""
    with keyed.client() as client:
        for body in (b"{", b"x" * (64 << 10)):
            assert client.post("/v1/embeddings", content=body).status_code == 401


def test_keys_stay_out_of_the_log(keyed: RunningGateway) -> None:
    """Neither a right nor a wrong key is ever logged."""
    with keyed.client() as client:
        good = embed(client, input="w1", headers={"authorization": "Bearer first-key"})
        bad = embed(client, input="w1", headers={"authorization": "Bearer wrong-key"})
    assert log_line(keyed, good)["status"] == 200
    assert log_line(keyed, bad)["status"] == 401
    assert "first-key" not in str(keyed.log)
    assert "wrong-key" not in str(keyed.log)


def test_without_keys_everything_is_open(client: httpx.Client) -> None:
    """A gateway without keys (which listens on loopback only) asks for none, and minds none."""
    assert embed(client, input="w1").status_code == 200
    assert (
        embed(client, input="w1", headers={"authorization": "Bearer anything"}).status_code == 200
    )

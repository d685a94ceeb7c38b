"""For operators: information, probes, documentation, CORS, proxies, shutdown, Unix sockets."""

from __future__ import annotations

import json
import re
import socket
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from embedding_service import __version__
from embedding_service.http.answers import PIECE_BYTES
from tests.calls import embed, error_of, log_line, vectors_of
from tests.child import wait_until
from tests.conftest import FAKE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import RunningGateway


def test_the_root_says_which_service_this_is(client: httpx.Client) -> None:
    """GET / names service, version, model and status."""
    assert client.get("/").json() == {
        "service": "embedding-service",
        "version": __version__,
        "model": "fake",
        "status": "running",
    }


def test_health_describes_the_default_model(client: httpx.Client) -> None:
    """GET /health has the fields that clients of the qwen3-embedding service read."""
    response = client.get("/health")
    assert response.status_code == 200
    assert response.json() == {
        "status": "healthy",
        "model": "fake",
        "gpu_memory_utilization": 0.9,
        "max_model_len": 512,
        "device": "cpu",
    }


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/ping"])
def test_probes_answer_head_without_a_log_line(
    fake: RunningGateway, client: httpx.Client, path: str
) -> None:
    """Balancers may probe with HEAD, and successful probes do not fill the log."""
    head = client.head(path)
    assert head.status_code == client.get(path).status_code == 200
    assert head.content == b""
    log_line(fake, client.get("/"))  # written after what a probe would have written
    assert path not in {line["path"] for line in fake.requests_logged() if line["method"] == "HEAD"}


@pytest.mark.parametrize("model", [None, "fake", "text-embedding-3-small"])
def test_readyz_answers_for_all_or_for_one_model(client: httpx.Client, model: str | None) -> None:
    """/readyz is 200 while all required models, or the one asked for by any name, can work."""
    response = client.get("/readyz", params={} if model is None else {"model": model})
    assert response.status_code == 200
    assert response.json() == {"status": "ready", "models": {"fake": ["ready"]}}


def test_readyz_of_an_unknown_model_is_a_404(client: httpx.Client) -> None:
    """Asking about a model that is not served is an error of the one who asks."""
    assert error_of(client.get("/readyz?model=nobody"), 404)["code"] == "model_not_found"


def test_while_loading_only_liveness_is_well(start_gateway: Callable[..., RunningGateway]) -> None:
    """Until the model is loaded the gateway is alive, and all else is a 503 with Retry-After."""
    gateway = start_gateway(**FAKE, wait=False, engine_args={"load_s": 3600})
    with gateway.client() as client:
        assert client.get("/livez").status_code == 200
        assert client.get("/").json()["status"] == "starting"
        health, ready, embedding = (
            client.get("/health"),
            client.get("/readyz"),
            embed(client, input="w1"),
        )
        assert health.status_code == 503
        assert health.json()["status"] == "starting"
        assert error_of(ready, 503)["code"] == error_of(embedding, 503)["code"] == "unavailable"
        assert int(ready.headers["retry-after"]) >= 1
        assert int(embedding.headers["retry-after"]) >= 1
        assert client.get("/v1/models").json()["data"] == []
        wait_until(lambda: gateway.workers)
        gateway.workers["fake", 0].wake()
        gateway.wait_ready()
        assert client.get("/health").status_code == client.get("/readyz").status_code == 200
        assert embed(client, input="w1").status_code == 200
    assert gateway.stop() == 0


def test_a_model_that_is_not_required_may_be_missing(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """A broken optional model is logged and 503 by its name, while the gateway is ready without it."""
    broken = {
        "engine": "fake",
        "model_name": "broken",
        "engine_args": {"refuse": "its files are damaged"},
    }
    gateway = start_gateway(port=0, models=[{"engine": "fake", "model_name": "fake"}, broken])
    wait_until(lambda: "model_not_loaded" in {event["event"] for event in gateway.log})
    with gateway.client() as client:
        assert client.get("/readyz").status_code == 200
        assert client.get("/readyz?model=broken").status_code == 503
        assert embed(client, model="broken", input="w1").status_code == 503
        assert embed(client, input="w1").status_code == 200
        assert [entry["id"] for entry in client.get("/v1/models").json()["data"]] == ["fake"]
    assert "its files are damaged" in str(
        [e for e in gateway.log if e["event"] == "model_not_loaded"]
    )
    assert gateway.stop() == 0


def test_the_documentation_is_served_locally(client: httpx.Client) -> None:
    """/docs names no other host, and every asset that it names is there."""
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "//" not in re.sub(r"<!--.*?-->", "", page.text)
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {asset.rpartition(".")[2] for asset in assets} >= {"js", "css"}
    for asset in [*assets, "/openapi.json"]:
        assert asset.startswith("/")
        assert client.get(asset).status_code == 200, asset


@pytest.mark.parametrize("path", ["/docs", "/docs/", "/team/embed/docs"])
def test_the_documentation_works_behind_a_prefix(
    shared_gateway: Callable[..., RunningGateway], path: str
) -> None:
    """With `root_path` page and document name paths under it, whether a proxy removes it or not."""
    with shared_gateway(**FAKE, root_path="/team/embed").client() as client:
        page = client.get(path).text
        assets = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert "'/team/embed/openapi.json'" in page
        for asset in [*assets, "/team/embed/openapi.json"]:
            assert asset.startswith("/team/embed/")
            assert client.get(asset).status_code == 200
            assert client.get(asset.removeprefix("/team/embed")).status_code == 200
        assert client.get("/openapi.json").json()["servers"] == [{"url": "/team/embed"}]
        for name in ("fake", "text-embedding-3-small"):
            assert client.get(f"/team/embed/v1/models/{name}").json()["id"] == name
        missing = client.get("/team/embed/v1/models/some%2Fmodel")
        assert missing.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("prefix", "root"), [("/team", "/team"), ("/team/", "/team"), ("//evil.example", ""), ("x", "")]
)
def test_a_trusted_proxy_names_its_prefix(
    shared_gateway: Callable[..., RunningGateway], prefix: str, root: str
) -> None:
    """X-Forwarded-Prefix is believed where X-Forwarded-For is, if it is a plain path."""
    headers = {"x-forwarded-prefix": prefix, "x-forwarded-for": "203.0.113.9"}
    for trusted, expected in ((["127.0.0.1"], root), ([], "")):
        gateway = shared_gateway(**FAKE, trusted_proxies=trusted)
        with gateway.client(headers=headers) as client:
            assert f"'{expected}/openapi.json'" in client.get("/docs").text


@pytest.mark.parametrize(
    "path", ["/v1/embeddings/", "//v1/embeddings", "/v1//embeddings", "//v1///embeddings//"]
)
def test_stray_slashes_change_nothing(client: httpx.Client, path: str) -> None:
    """A client that joins its paths carelessly is served, and not redirected."""
    body = {"model": "fake", "input": "w1"}
    answer = client.post(str(client.base_url) + path, json=body)
    assert answer.status_code == 200
    assert answer.history == []
    assert client.get(str(client.base_url) + "//v1/models/").status_code == 200


def test_an_escaped_slash_stays_one(client: httpx.Client) -> None:
    """A proxy that guards a path would not see it, so it leads nowhere."""
    assert client.get("/%2fmetrics").status_code == 404


def test_http_1_0_is_told_the_length(fake: RunningGateway) -> None:
    """An answer of any size comes in one piece, with its length, and the connection ends."""
    body = json.dumps({"model": "fake", "input": ["w1 w2"] * 2000}).encode()
    head = b"POST /v1/embeddings HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d"
    with socket.create_connection(fake.address, timeout=30) as connection:
        connection.sendall(head % len(body) + b"\r\n\r\n" + body)
        answer = connection.makefile("rb").read()
    headers, _, content = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in headers.lower()
    assert b"content-length: %d" % len(content) in headers.lower()
    assert len(content) > 2 * PIECE_BYTES
    assert len(json.loads(content)["data"]) == 2000


@pytest.fixture(scope="module")
def proxied(start_gateway: Callable[..., RunningGateway]) -> Iterator[RunningGateway]:
    """Return a gateway that believes local proxies, lets one origin in, shows no documentation."""
    gateway = start_gateway(
        **FAKE,
        trusted_proxies=["127.0.0.1", "10.0.0.0/8"],
        cors_origins=["https://app.example"],
        docs="off",
    )
    yield gateway
    gateway.stop()


def test_the_documentation_can_be_off(proxied: RunningGateway) -> None:
    """With `docs: off` there is no documentation at all."""
    with proxied.client() as client:
        for path in ("/docs", "/openapi.json", "/docs/assets/swagger-ui.css"):
            assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("forwarded", "client_address"),
    [
        (None, "127.0.0.1"),
        ("203.0.113.9", "203.0.113.9"),
        ("203.0.113.9, 10.1.2.3", "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("2001:db8::1", "2001:db8::1"),
    ],
)
def test_listed_proxies_are_believed(
    proxied: RunningGateway, forwarded: str | None, client_address: str
) -> None:
    """X-Forwarded-For of a trusted proxy names the client: the last address that is no proxy."""
    headers = {} if forwarded is None else {"x-forwarded-for": forwarded}
    with proxied.client() as client:
        assert (
            log_line(proxied, embed(client, input="w1", headers=headers))["client"]
            == client_address
        )


def test_other_peers_are_not_believed(fake: RunningGateway, client: httpx.Client) -> None:
    """Without trusted proxies, nobody can choose the address that is logged."""
    headers = {
        "x-forwarded-for": "203.0.113.9",
        "forwarded": "for=203.0.113.9",
        "x-real-ip": "203.0.113.9",
    }
    assert log_line(fake, embed(client, input="w1", headers=headers))["client"] == "127.0.0.1"


def preflight(client: httpx.Client, origin: str) -> httpx.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    return client.options("/v1/embeddings", headers=headers)


def test_a_listed_origin_may_call(proxied: RunningGateway) -> None:
    """A browser on a listed origin may send requests and read our headers, on errors too."""
    origin = "https://app.example"
    with proxied.client() as client:
        response = preflight(client, origin)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == origin
        assert "POST" in response.headers["access-control-allow-methods"]
        for fields in ({"input": "w1"}, {"input": ""}):
            answer = embed(client, **fields, headers={"origin": origin})
            assert answer.headers["access-control-allow-origin"] == origin
            exposed = answer.headers["access-control-expose-headers"]
            assert {"x-request-id", "x-ignored-fields"} <= set(exposed.split(", "))


def test_other_origins_may_not(proxied: RunningGateway, client: httpx.Client) -> None:
    """An origin that is not listed gets no permission, and without a list none does."""
    with proxied.client() as listed:
        assert preflight(listed, "https://evil.example").status_code == 400
        answer = embed(listed, input="w1", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in answer.headers
    assert "access-control-allow-origin" not in preflight(client, "https://app.example").headers


def test_stopping_finishes_what_was_accepted(start_gateway: Callable[..., RunningGateway]) -> None:
    """On stop an accepted request is answered, a new one gets 503, and the exit status is 0."""
    gateway = start_gateway(**FAKE)
    answers: list[httpx.Response] = []

    def ask() -> None:
        with gateway.client() as client:
            answers.append(embed(client, input="fault-hang"))

    with gateway.client() as late:
        late.get("/livez")  # connects while new connections are still taken
        asking = threading.Thread(target=ask)
        asking.start()
        wait_until(lambda: gateway.gateway.lifecycle.in_flight == 1)
        gateway.loop.call_soon_threadsafe(gateway.gateway.stop)
        wait_until(lambda: gateway.gateway.lifecycle.phase == "draining")
        refused = embed(late, input="w1")
        ready = late.get("/readyz")
        gateway.workers["fake", 0].wake()
    asking.join()
    assert error_of(refused, 503)["code"] == "unavailable"
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["connection"] == "close"
    assert ready.status_code == 503
    assert vectors_of(answers[0]).shape == (1, 32)
    assert gateway.stop() == 0
    assert not gateway.gateway.folder.exists()


def test_stopping_while_loading_ends_at_once(start_gateway: Callable[..., RunningGateway]) -> None:
    """A gateway told to stop while it loads stops, with status 0 and without its worker."""
    gateway = start_gateway(**FAKE, wait=False, engine_args={"load_s": 3600})
    wait_until(lambda: any(event["event"] == "loading" for event in gateway.log))
    assert gateway.stop() == 0


def test_draining_ends_after_its_timeout(start_gateway: Callable[..., RunningGateway]) -> None:
    """Work that takes longer than `drain_timeout_s` is logged, and the gateway ends."""
    gateway = start_gateway(**FAKE, drain_timeout_s=0.2)
    errors: list[Any] = []

    def ask() -> None:
        with gateway.client() as client:
            try:
                errors.append(embed(client, input="fault-hang"))
            except httpx.TransportError as error:
                errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: gateway.gateway.lifecycle.in_flight == 1)
    assert gateway.stop() == 0
    asking.join()
    assert "drain_timed_out" in {event["event"] for event in gateway.log}


def test_a_unix_socket_serves_the_same(
    start_gateway: Callable[..., RunningGateway], tmp_path: Path
) -> None:
    """With `uds` the gateway listens on a path, over what a dead process left there."""
    path = tmp_path / "gateway.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    gateway = start_gateway(**FAKE, uds=path)
    with httpx.Client(
        transport=httpx.HTTPTransport(uds=str(path)), base_url="http://unix"
    ) as client:
        response = embed(client, input="w1")
        assert vectors_of(response).shape == (1, 32)
        assert log_line(gateway, response)["client"] is None
    assert gateway.stop() == 0

"""Rates seen from outside: who is counted for what, what the headers say, and what costs nothing."""

from __future__ import annotations

import itertools
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.calls import embed, error_of, watch_engine
from tests.child import wait_until
from tests.conftest import FAKE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from tests.conftest import RunningGateway

    Start = Callable[..., RunningGateway]

# Rates are per day, so that no window turns while a test runs; what fills one fits again in the day
# after it.
KEYS = [
    {"name": "a", "key": "key-a"},
    {"name": "b", "key": "key-b"},
    {"name": "own", "key": "key-own", "requests": "5/day", "tokens": "50/day"},
]
RESET = re.compile(r"\d+\.\d{3}s")


@pytest.fixture
def start(start_gateway: Start) -> Iterator[Start]:
    """Return a function that starts gateways which end with the test."""
    started: list[RunningGateway] = []

    def begin(**settings: Any) -> RunningGateway:
        started.append(start_gateway(**{**FAKE, **settings}))
        return started[-1]

    yield begin
    for gateway in started:
        gateway.stop()


@pytest.fixture(scope="module")
def shared(start_gateway: Start) -> Iterator[RunningGateway]:
    """Return a gateway with 20 tokens a day for each of many keys."""
    keys = [{"name": f"name-{i}", "key": f"key-{i}"} for i in range(20)]
    gateway = start_gateway(
        **FAKE,
        api_keys=keys,
        metrics="open",
        rate_limit_tokens="20/day",
        rate_limit_requests="100/day",
        engine_args={"outputs": ["dense", "colbert"]},
    )
    yield gateway
    gateway.stop()


_unused = itertools.count()


@pytest.fixture
def http(shared: RunningGateway) -> Iterator[httpx.Client]:
    """Return a client with a key that nobody has used."""
    with by_key(shared, f"key-{next(_unused)}") as client:
        yield client


def metrics_of(gateway: RunningGateway) -> str:
    with gateway.client() as client:
        return client.get("/metrics").text


def by_key(gateway: RunningGateway, key: str) -> httpx.Client:
    return gateway.client(headers={"x-api-key": key})


def forwarded(gateway: RunningGateway, address: str) -> httpx.Client:
    return gateway.client(headers={"x-forwarded-for": address})


def left(response: httpx.Response, kind: str) -> int:
    """Return what remains by an answer's headers, which are checked to be complete."""
    assert RESET.fullmatch(response.headers[f"x-ratelimit-reset-{kind}"])
    remaining, limit = (
        int(response.headers[f"x-ratelimit-{what}-{kind}"]) for what in ("remaining", "limit")
    )
    assert 0 <= remaining <= limit
    return remaining


def refused(response: httpx.Response, kind: str, *, retry: bool = True) -> None:
    """Check a 429 for a rate."""
    error = error_of(response, 429)
    assert (error["type"], error["param"], error["code"]) == (
        "rate_limit_error",
        None,
        "rate_limit_exceeded",
    )
    assert f"/day {kind} exceeded" in error["message"]
    assert f"x-ratelimit-limit-{kind}" in response.headers
    if retry:
        assert 1 <= int(response.headers["retry-after"]) <= 2 * 86_400
        assert "x-should-retry" not in response.headers
    else:
        assert "retry-after" not in response.headers
        assert response.headers["x-should-retry"] == "false"


def test_requests_are_counted_for_each_key(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key has its requests and no more; a refused one never reaches the engine."""
    gateway = start(api_keys=KEYS, rate_limit_requests="3/day")
    computed = watch_engine(gateway, "fake", monkeypatch)
    with (
        by_key(gateway, "key-a") as a,
        by_key(gateway, "key-b") as b,
        by_key(gateway, "key-own") as own,
    ):
        assert [left(embed(a, input="w1"), "requests") for _ in range(3)] == [2, 1, 0]
        for body in ({"input": "w1"}, {"input": 5}):
            last = embed(a, **body)
            refused(last, "requests")
            assert last.headers["x-ratelimit-limit-requests"] == "3"
            assert left(last, "requests") == 0
        assert computed == [1, 1, 1]
        assert left(embed(b, input="w1"), "requests") == 2
        assert [left(embed(own, input="w1"), "requests") for _ in range(5)] == [4, 3, 2, 1, 0]
        refused(embed(own, input="w1"), "requests")
        metrics = metrics_of(gateway)
        assert 'embedding_rate_limited_total{limit="requests"} 3.0' in metrics
        assert 'embedding_errors_total{code="rate_limit_exceeded"} 3.0' in metrics


def test_wrong_keys_cost_nobody_anything(start: Start) -> None:
    """Requests that are a 401 are nobody's."""
    gateway = start(api_keys=KEYS, rate_limit_requests="2/day")
    with by_key(gateway, "wrong") as wrong, by_key(gateway, "key-a") as a:
        assert {embed(wrong, input="w1").status_code for _ in range(5)} == {401}
        assert left(embed(a, input="w1"), "requests") == 1


def test_addresses_are_counted_where_there_are_no_keys(start: Start) -> None:
    """Behind a trusted proxy each address counts, IPv6 by its /64, IPv4 in IPv6 by its IPv4."""
    gateway = start(trusted_proxies=["127.0.0.1"], rate_limit_requests="2/day")

    def remaining(address: str) -> int:
        with forwarded(gateway, address) as http:
            return left(embed(http, input="w1"), "requests")

    assert [remaining("203.0.113.1"), remaining("203.0.113.2"), remaining("203.0.113.1")] == [
        1,
        1,
        0,
    ]
    with forwarded(gateway, "203.0.113.1") as http:
        refused(embed(http, input="w1"), "requests")
    assert [remaining("2001:db8:1:2::1"), remaining("2001:db8:1:2:ffff::9")] == [1, 0]
    assert remaining("2001:db8:1:3::1") == 1
    assert [
        remaining("::ffff:198.51.100.1"),
        remaining("::ffff:198.51.100.2"),
        remaining("198.51.100.1"),
    ] == [1, 1, 0]


def test_an_address_that_anybody_can_write_does_not_count(start: Start) -> None:
    """Without a trusted proxy, X-Forwarded-For changes nothing."""
    gateway = start(rate_limit_requests="2/day")
    for address, remaining in (("203.0.113.1", 1), ("203.0.113.2", 0)):
        with forwarded(gateway, address) as http:
            assert left(embed(http, input="w1"), "requests") == remaining


def test_probes_and_questions_are_never_limited(start: Start) -> None:
    """Pages for balancers, monitors and people cost nothing, and answer when all is used up."""
    gateway = start(rate_limit_requests="1/day", rate_limit_tokens="100/day")
    with gateway.client() as http:
        assert embed(http, input="w1").status_code == 200
        refused(embed(http, input="w1"), "requests")
        for path in (
            "/livez",
            "/readyz",
            "/health",
            "/ping",
            "/",
            "/v1/models",
            "/metrics",
            "/stats",
            "/docs",
        ):
            for _ in range(3):
                answer = http.get(path)
                assert answer.status_code == 200, path
                assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


def test_paths_count_on_their_own(start: Start) -> None:
    """A path with a rate has a counter of its own; a key's own rate counts everywhere."""
    gateway = start(
        api_keys=KEYS,
        engine_args={"outputs": ["dense", "colbert"]},
        rate_limit_requests="3/day",
        rate_limit_paths={"/v1/rerank": "2/day"},
    )
    body = {"model": "fake", "query": "w1", "documents": ["w2"]}
    with by_key(gateway, "key-a") as a, by_key(gateway, "key-own") as own:
        assert [left(a.post("/v1/rerank", json=body), "requests") for _ in range(2)] == [1, 0]
        refused(a.post("/v1/rerank", json=body), "requests")
        assert [left(embed(a, input="w1"), "requests") for _ in range(3)] == [2, 1, 0]
        assert left(own.post("/v1/rerank", json=body), "requests") == 4
        assert left(embed(own, input="w1"), "requests") == 3


def test_a_path_alone_may_be_limited(start: Start) -> None:
    """Where only a path has a rate, others have none and say nothing about it."""
    gateway = start(rate_limit_paths={"/embeddings": "1/day"})
    body = {"model": "fake", "input": "w1"}
    with gateway.client() as http:
        assert left(http.post("/embeddings", json=body), "requests") == 0
        refused(http.post("/embeddings", json=body), "requests")
        answer = http.post("/v1/sparse-embeddings", json=body)
        assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize(
    ("path", "aliases", "body"),
    [
        ("/v1/embeddings", ["/embeddings"], {"input": "w1"}),
        ("/embeddings", ["/v1/embeddings"], {"input": "w1"}),
        ("/v1/rerank", ["/rerank", "/v2/rerank"], {"query": "w1", "documents": ["w2"]}),
        ("/v2/rerank", ["/v1/rerank", "/rerank"], {"query": "w1", "documents": ["w2"]}),
        ("/score", ["/v1/score"], {"text_1": "w1", "text_2": "w2"}),
        ("/v1/score", ["/score"], {"text_1": "w1", "text_2": "w2"}),
    ],
)
def test_a_path_is_limited_under_all_its_names(
    start: Start, path: str, aliases: list[str], body: dict[str, Any]
) -> None:
    """A path's rate counts what other paths do in its place, all of them together."""
    gateway = start(engine_args={"outputs": ["dense", "colbert"]}, rate_limit_paths={path: "3/day"})
    with gateway.client() as http:
        for name in [path, *aliases, path][:3]:
            http.post(name, json={"model": "fake", **body}).raise_for_status()
        for name in [path, *aliases]:
            assert http.post(name, json={"model": "fake", **body}).status_code == 429


@pytest.mark.parametrize("sign", ["%0a", "%0d%0a", "%00", "%7f", "%09", "%e2%80%a8", "%c2%85"])
def test_a_control_character_is_in_no_path(start: Start, sign: str) -> None:
    """A path that a router would take for another one is served to nobody, and passes no rule."""
    gateway = start(rate_limit_paths={"/v1/embeddings": "100/day"}, metrics="loopback")
    with gateway.client(headers={"x-forwarded-for": "203.0.113.9"}) as http:
        for path in ("/metrics", "/v1/embeddings", "/livez"):
            answer = http.post(path + sign, json={"model": "fake", "input": "w1"})
            assert answer.status_code == 404
            assert http.get(path + sign).status_code == 404


def test_tokens_are_counted_as_they_are_computed(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens cost what the model reads: cached, repeated and refused ones are free."""
    gateway = start(api_keys=KEYS, rate_limit_tokens="20/day", cache_max_bytes=1 << 20)
    computed = watch_engine(gateway, "fake", monkeypatch)
    with (
        by_key(gateway, "key-a") as a,
        by_key(gateway, "key-b") as b,
        by_key(gateway, "key-own") as own,
    ):
        assert left(embed(a, input="w1 w2 w3"), "tokens") == 15  # [CLS] and [SEP] are two more
        for _ in range(10):
            assert embed(a, input="w1 w2 w3").headers["x-cache"] == "1/1"
        assert left(embed(a, input=["w1 w2 w3", "w4", "w4", "w4"]), "tokens") == 12
        long = embed(a, input=["w5", "w6 " * 8])  # 3 + 10
        refused(long, "tokens")
        assert left(long, "tokens") == 12
        assert computed == [1, 1]
        assert left(embed(a, input="w6 " * 10), "tokens") == 0
        refused(embed(a, input="w7"), "tokens")
        assert embed(a, input=["w4", "w1 w2 w3"]).status_code == 200, (
            "what is known needs no tokens"
        )
        assert left(embed(b, input="w8"), "tokens") == 17
        assert left(embed(own, input="w9"), "tokens") == 47
        assert 'embedding_rate_limited_total{limit="tokens"} 2.0' in metrics_of(gateway)


def test_what_never_fits_is_not_to_be_tried_again(http: httpx.Client) -> None:
    """A request larger than the whole limit is a final 429 and costs nothing."""
    refused(embed(http, input="w1 " * 19), "tokens", retry=False)
    assert left(embed(http, input="w1 " * 18), "tokens") == 0


@pytest.mark.parametrize(
    ("text", "headers", "status"),
    [
        ("w1 fault-reject", {}, 500),
        ("w1 fault-raise", {}, 500),
        ("w1 fault-slow", {"x-request-timeout-ms": "50"}, 504),
        ("", {}, 400),
        (5, {}, 400),
    ],
)
def test_failed_work_is_given_back(
    http: httpx.Client, text: Any, headers: dict[str, str], status: int
) -> None:
    """Whoever gets an error instead of vectors keeps his tokens; the request itself counts."""
    failed = embed(http, input=text, headers=headers)
    assert failed.status_code == status, failed.text
    assert left(failed, "requests") == 99
    wait_until(lambda: http.get("/readyz").status_code == 200)
    assert left(embed(http, input="w1 " * 18), "tokens") == 0


def test_who_goes_away_does_not_pay(shared: RunningGateway, http: httpx.Client) -> None:
    """Tokens of a client that closes its connection before the answer are given back."""
    replica = next(iter(shared.gateway.service.models)).engine.replicas[0]
    body = b'{"model":"fake","input":"w1 fault-hang"}'
    with slow_request(shared, body, http.headers["x-api-key"]):
        wait_until(lambda: replica.outstanding_tokens > 0)
    wait_until(lambda: 499 in [line["status"] for line in shared.requests_logged()])
    shared.workers["fake", 0].wake()
    assert left(embed(http, input="w1 " * 18), "tokens") == 0


def slow_request(gateway: RunningGateway, body: bytes, key: str = "") -> socket.socket:
    """Send a request and return the connection, on which the answer has yet to come."""
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    client = socket.create_connection((host, int(port)), timeout=60)
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nX-API-Key: {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)
    return client


def test_an_overloaded_engine_takes_no_tokens(start: Start) -> None:
    """429 for want of capacity is another code, and costs no tokens."""
    gateway = start(rate_limit_tokens="100/day", max_queued_tokens=10)
    body = b'{"model":"fake","input":"fault-hang w2 w3 w4 w5 w6 w7"}'
    replica = next(iter(gateway.gateway.service.models)).engine.replicas[0]
    with slow_request(gateway, body) as client, gateway.client() as http:
        wait_until(lambda: replica.outstanding_tokens > 0)
        assert error_of(embed(http, input="w1"), 429)["code"] == "engine_overloaded"
        gateway.workers["fake", 0].wake()
        assert client.recv(12) == b"HTTP/1.1 200"
        assert left(embed(http, input="w1"), "tokens") == 100 - 9 - 3


def test_late_interaction_pays_for_what_it_reads(http: httpx.Client) -> None:
    """Reranking with an embedding model costs its query and documents as tokens, once."""
    body = {"model": "fake", "query": "w1", "documents": ["w2", "w3 w4"]}
    assert left(http.post("/v1/rerank", json=body), "tokens") == 20 - 3 - 3 - 4
    refused(http.post("/v1/rerank", json={**body, "documents": ["w2 " * 10]}), "tokens")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_other_methods_with_a_body_count(
    start_gateway: Callable[..., RunningGateway], method: str
) -> None:
    """A request whose body is read is counted, whether the route knows the method or not."""
    gateway = start_gateway(**FAKE, rate_limit_requests="1/day")
    with gateway.client() as client:
        statuses = [
            client.request(method, path, content=b"{}").status_code
            for path in ("/v1/embeddings", "/health")
        ]
    assert statuses == [405, 429]
    gateway.stop()

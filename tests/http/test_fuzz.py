"""Requests that nobody would write by hand, made from our own OpenAPI: FUZZ_REQUESTS says how many."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import re
import socket
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from embedding_service.dialects.dialect import Dialect
from embedding_service.dialects.errors import OPENAI
from embedding_service.http.app import DIALECTS
from tests.calls import embed, error_of
from tests.child import Child, memory_bytes, wait_until
from tests.conftest import FAKE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningGateway

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "2000"))
Strategy = st.SearchStrategy[Any]

TEXT = st.one_of(
    st.text(max_size=20), st.sampled_from(["w1 w2", "w1 " * 600, "\ud83d", "\0", "null"])
)
NUMBER = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31, -(2**63), 2**64, 10**400, 1e308, 0.5, float("nan")]),
)
LEAF = st.one_of(st.none(), st.booleans(), NUMBER, TEXT)
ANYTHING = st.recursive(
    LEAF,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)

SETTINGS: dict[str, Any] = {
    "cache_max_bytes": 1 << 20,
    "engine_args": {"outputs": ["dense", "sparse", "colbert"]},
    "rate_limit_requests": "1000000/second",
    "rate_limit_tokens": "100000000/second",
}
OTHER_ENVELOPES = [
    dialect.errors.model.model_fields.keys()
    for dialect in DIALECTS
    if isinstance(dialect, Dialect) and dialect.errors is not OPENAI
]


def made_by(schema: dict[str, Any], schemas: dict[str, Any]) -> Strategy:
    """Return what fits a schema, more or less."""
    if "$ref" in schema:
        return made_by(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of(*(made_by(each, schemas) for each in schema["anyOf"]))
    kind = schema.get("type")
    if kind == "object" and "properties" in schema:
        fields = {
            name: with_slips(made_by(each, schemas)) for name, each in schema["properties"].items()
        }
        required = {name: fields[name] for name in schema.get("required", ())}
        return st.fixed_dictionaries(
            required, optional={n: f for n, f in fields.items() if n not in required}
        )
    if kind == "array":
        return st.lists(made_by(schema.get("items", {}), schemas), max_size=5)
    plain = {
        "string": TEXT,
        "integer": NUMBER,
        "number": NUMBER,
        "boolean": st.booleans(),
        "null": st.none(),
    }
    return plain.get(str(kind), ANYTHING)


def with_slips(strategy: Strategy) -> Strategy:
    """Return something else now and then."""
    return st.integers(0, 9).flatmap(lambda number: ANYTHING if number == 0 else strategy)


def requests(document: dict[str, Any]) -> Strategy:
    """Return method, path, body, headers: mostly a route of ours with a body that nearly fits."""
    schemas = document["components"]["schemas"]
    known = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            schema = (
                operation.get("requestBody", {})
                .get("content", {})
                .get("application/json", {})
                .get("schema")
            )
            body = st.none() if schema is None else made_by(schema, schemas).flatmap(_named)
            known.append(st.tuples(st.just(method.upper()), st.just(path), with_slips(body)))
    posts = [
        each
        for each, (_, path) in zip(known, _operations(document), strict=True)
        if "embed" in path or "rerank" in path
    ]
    strange = st.tuples(
        st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]),
        PATH,
        ANYTHING,
    )
    # One in ten, however many routes there are.
    ours = st.one_of(*posts, *known)
    request = st.integers(0, 9).flatmap(lambda number: strange if number == 0 else ours)
    return st.tuples(
        request, st.integers(0, 20), HEADERS, st.binary(max_size=30), st.integers(0, 400)
    )


def _operations(document: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (method, path) for path, operations in document["paths"].items() for method in operations
    ]


def _named(body: Any) -> Strategy:
    """Give most bodies the name of a model that is served."""
    if not isinstance(body, dict):
        return st.just(body)
    return st.sampled_from([{**body, "model": "fake"}] * 4 + [body])


PATH = st.text(max_size=12).map(
    lambda text: "/" + httpx.URL("", params={"x": text}).query.decode()[2:]
)
VALUE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20).map(
    str.strip
) | st.sampled_from(
    [
        "0",
        "-1",
        "9" * 30,
        "gzip",
        "application/json",
        "application/x+json",
        "text/plain",
        "*/*",
        "Bearer x",
    ]
)
NAMES = [
    "content-type",
    "content-encoding",
    "authorization",
    "x-api-key",
    "x-request-id",
    "x-request-timeout-ms",
]
NAMES += [
    "accept",
    "accept-encoding",
    "traceparent",
    "origin",
    "x-forwarded-for",
    "range",
    "expect",
]
HEADERS = st.one_of(st.just({}), st.dictionaries(st.sampled_from(NAMES), VALUE, max_size=3))


def written(body: Any, slip: int, noise: bytes, where: int) -> tuple[bytes, dict[str, str]]:
    """Return a body as bytes, now and then damaged, and the headers that go with it."""
    raw = b"" if body is None else json.dumps(body).encode("utf-8", "surrogatepass")
    if slip == 0:
        return raw[: where % (len(raw) + 1)] + noise + raw[where % (len(raw) + 1) :], {}
    if slip == 1:
        return raw[: where % (len(raw) + 1)], {}
    if slip == 2:
        return noise, {}
    if slip == 3:
        return gzip.compress(raw)[: where + 1], {"content-encoding": "gzip"}
    return raw, {}


class State:
    """Memory, descriptors and tasks of a gateway while nothing is asked of it."""

    def __init__(self, gateway: RunningGateway) -> None:
        self.gateway = gateway

    def tasks(self) -> int:
        """Count the event loop's tasks."""

        async def count() -> int:
            return len(asyncio.all_tasks())

        return asyncio.run_coroutine_threadsafe(count(), self.gateway.loop).result(30)

    def descriptors(self) -> int:
        """Count what this process has open."""
        return len(list(Path("/proc/self/fd").iterdir()))

    def held(self) -> list[int]:
        """Count what is reserved for requests."""
        (model,) = self.gateway.gateway.service.models
        (replica,) = model.engine.replicas
        service = self.gateway.gateway.service
        mine = [model.gate.held, model.preparing, model.compute.in_flight]
        return [
            *mine,
            service.answers.held,
            self.gateway.gateway.lifecycle.in_flight,
            replica.outstanding_tokens,
        ]


def send_many(http: httpx.Client, count: int, troubles: Callable[[], Any]) -> Counter[int]:
    """Send so many requests and count the statuses: no 5xx, and every error in its envelope."""
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=count,
        database=None,
        derandomize=count <= 2000,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(requests(http.get("/openapi.json").json()))
    def send(request: Any) -> None:
        (method, path, body), slip, headers, noise, where = request
        raw, more = written(body, slip, noise, where)
        assume(
            b"fault-" not in raw
        )  # Hypothesis finds the fake engine's words in the source, and they do as they say
        answer = http.request(
            method,
            path.replace("{name}", "fake"),
            content=raw,
            headers={"content-type": "application/json"} | headers | more,
        )
        statuses[answer.status_code] += 1
        if answer.status_code >= 400 and method != "HEAD":
            in_time = answer.status_code != 504 or "x-request-timeout-ms" not in headers
            assert answer.status_code < 500 or not in_time, (answer.text, raw, troubles())
            if answer.json().keys() not in OTHER_ENVELOPES:
                error_of(answer, answer.status_code)

    send()
    return statuses


def test_nothing_unforeseen(start_gateway: Callable[..., RunningGateway]) -> None:
    """Whatever is sent: no 5xx, every error in its envelope, and nothing is held afterwards."""
    gateway = start_gateway(**FAKE, **SETTINGS)
    state = State(gateway)

    def troubles() -> list[dict[str, Any]]:
        return [event for event in gateway.log if event["level"] in ("error", "warning")]

    with gateway.client() as http:
        embed(http, input="w1")
        before = state.tasks(), state.descriptors()
        statuses = send_many(http, REQUESTS, troubles)
        assert embed(http, input="w1").status_code == 200
        assert http.get("/readyz").status_code == 200
        wait_until(lambda: state.held() == [0] * 6)
        wait_until(lambda: state.tasks() <= before[0] + 2)
        wait_until(lambda: state.descriptors() <= before[1] + 10)
    assert statuses.total() >= min(REQUESTS, 2000) * 0.9, statuses
    assert {200, 400, 404, 405} <= statuses.keys(), statuses
    assert statuses[200] >= 0.05 * statuses.total(), statuses
    assert troubles() == []
    gateway.stop()


SMALL = b'{"model":"fake","input":"w1"}'
LINES = [
    b"content-length: %d" % len(SMALL),
    b"content-length: 5",
    b"content-length: " + b"9" * 30,
    b"content-length: 0",
    b"content-length: -1",
    b"content-length: +5",
    b"transfer-encoding: chunked",
    b"transfer-encoding: gzip, chunked",
    b"connection: Upgrade, HTTP2-Settings",
    b"connection: close",
    b"upgrade: h2c",
    b"upgrade: websocket",
    b"expect: 100-continue",
    b"content-encoding: gzip",
    b"x-request-timeout-ms: 200",
    b"trailer: x",
]
CHUNKS = b"%x\r\n%s\r\n" % (len(SMALL), SMALL)
ENDS = [
    SMALL,
    CHUNKS + b"0\r\n\r\n",
    CHUNKS + b"0\r\ncontent-length: 5\r\nx: y\r\n\r\n",
    b"1;x=y\r\n{\r\n" + CHUNKS,
    b"fffffffffffffffff\r\n",
    b"[" * 3000,
    SMALL + b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n",
    b"",
]


@settings(max_examples=min(REQUESTS, 5000) // 2, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from([b"POST", b"GET", b"CONNECT", b"OPTIONS"]),
    st.sampled_from([b"/v1/embeddings", b"/livez%0a", b"*", b"/%00", b"/v1/rerank?" + b"&" * 9000]),
    st.lists(st.sampled_from(LINES), max_size=5),
    st.sampled_from(ENDS),
    st.integers(1, 4),
)
def test_odd_frames(
    fake: RunningGateway, method: bytes, target: bytes, lines: list[bytes], end: bytes, parts: int
) -> None:
    """Whatever frame a request comes in, no answer is a 5xx but at a deadline, and none hangs."""
    head = b"%s %s HTTP/1.1\r\nhost: a\r\n" % (method, target)
    data = head + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + end
    size = len(data) // parts + 1
    received = b""
    client = socket.create_connection(fake.address, timeout=60)
    with client, contextlib.suppress(ConnectionError):
        for start in range(0, len(data), size):
            client.sendall(data[start : start + size])
        with contextlib.suppress(OSError):  # it has been closed already
            client.shutdown(socket.SHUT_WR)
        while part := client.recv(65536):
            received += part
    statuses = re.findall(rb"^HTTP/1.1 (\d+)", received, re.MULTILINE)
    assert not [status for status in statuses if status >= b"500" and status != b"504"], data


@pytest.mark.soak
@pytest.mark.process
def test_memory_does_not_grow(tmp_path: Path) -> None:
    """A gateway's process is as large after the second half of the requests as after the first."""
    flags = [
        f"--{name.replace('_', '-')}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in SETTINGS.items()
    ]
    child, sizes = Child(tmp_path, *flags), []
    with child.client() as http:
        for _ in range(2):
            send_many(http, max(REQUESTS, 10_000) // 2, lambda: child.events("error"))
            sizes.append(memory_bytes(child.process.pid))
    assert child.end() == 0
    assert sizes[1] <= 1.02 * sizes[0], sizes

"""No head hurts: the widest query, path and headers, at every route.

Routes come from the gateway's own table: one that is added is under this test.
"""

from __future__ import annotations

import gzip
import http.client
import re
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.http.test_widest import BODY_BYTES, CALLBACK_S, RECORDS, REFUSED_CPU_S, SILENT_S, TRIES
from tests.measured import Measured

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.measured import Taken

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

REQUESTS = 900
VALUE_BYTES = 60_000  # of the 64 KiB that all headers may have
QUERY_BYTES = 15_000  # of 16 KiB
# Each is where some parser might take the square of the length, or make an object of each unit.
UNITS = [
    ",",
    ";",
    "a,",
    "a=b;",
    '";',
    "\t x",
    "127.0.0.1,",
    "text/plain;version=1,",
    "%41",
    "a=b&",
    "0",
    "bytes=0-1,",
    "upgrade,",
    "@aaaaaaaaaaaa",
    '"\\',
]
HEADERS = [
    "accept",
    "accept-encoding",
    "authorization",
    "baggage",
    "connection",
    "content-encoding",
    "content-type",
    "cookie",
    "if-none-match",
    "origin",
    "range",
    "traceparent",
    "tracestate",
    "transfer-encoding",
    "x-api-key",
    "x-forwarded-for",
    "x-forwarded-prefix",
    "x-request-id",
    "x-request-timeout-ms",
    "x-require-vector-space",
]
BEFORE = {"content-type": "multipart/form-data; boundary=", "authorization": "Bearer "}


class Head(NamedTuple):
    """Query, headers and body beside a path."""

    unit: str
    header: str | None = None

    def __str__(self) -> str:
        return f"{self.header or 'query'} of {self.unit!r}"


HEADS = [Head(unit, name) for name in (None, *HEADERS) for unit in UNITS]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    """Return a gateway with all that can be on: files, metrics, trusted proxies, browsers."""
    running = Measured(
        port=0,
        models=[{"engine": "fake", "model_name": "fake"}],
        state_dir=str(tmp_path_factory.mktemp("state")),
        records=RECORDS,
        trusted_proxies=["127.0.0.1"],
        cors_origins=["*"],
    )
    yield running
    assert running.end() == 0


def send(gateway: Measured, method: str, path: str, head: Head) -> int:
    """Send a request with one wide part; return the status."""
    filled = (head.unit * VALUE_BYTES)[:VALUE_BYTES]
    client = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=60)
    if head.header is None:
        client.putrequest(method, path + "?" + "".join(filled[:QUERY_BYTES].split()))
    else:
        client.putrequest(method, path)
        client.putheader(head.header, BEFORE.get(head.header, "") + filled)
    if method == "POST":
        client.putheader("content-length", "2")
    client.endheaders(b"{}" if method == "POST" else None)
    try:
        return client.getresponse().status
    finally:
        client.close()


def missed(status: int, taken: Taken) -> list[str]:
    """Return the bars that a request has missed."""
    found = {
        f"status {status}": status >= 500,
        f"a callback of {taken.callback_s:.3f} s of CPU": taken.callback_s > CALLBACK_S,
        f"silent for {taken.silent_s:.3f} s": taken.silent_s > SILENT_S,
        f"{taken.cpu_s:.2f} s of CPU": taken.cpu_s > REFUSED_CPU_S,
    }
    return [words for words, is_true in found.items() if is_true]


def troubles(gateway: Measured, cases: list[tuple[str, str, Head]]) -> dict[str, list[str]]:
    """Send all, and return those that did what they should not."""
    gateway.take()
    found = {}
    for method, path, head in cases:
        bars: list[str] = []
        for _ in range(TRIES):
            status = send(gateway, method, re.sub(r"\{.*?\}", "x", path), head)
            if not (bars := missed(status, gateway.take())):
                break
        if bars:
            found[f"{method} {path} {head}"] = bars
    return found


def test_no_head_hurts(gateway: Measured) -> None:
    """Whatever a head is full of, it costs little and no route answers it with a 5xx."""
    routes = gateway.routes
    assert ["/v1/files", "POST"] in routes
    assert len(routes) > 60
    every = len(HEADS) * len(routes) // REQUESTS
    cases = [
        (method, path, head)
        for number, (path, method) in enumerate(routes)
        for head in HEADS[number % every :: every]
    ]
    assert troubles(gateway, cases) == {}


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_no_head_hurts_at_any_route(gateway: Measured) -> None:
    """So it is with every head at every route."""
    cases = [(method, path, head) for path, method in gateway.routes for head in HEADS]
    assert troubles(gateway, cases) == {}


def test_no_body_hurts_where_none_is_read(gateway: Measured) -> None:
    """A body of zeros is read, inflated and dropped by operations that have none."""
    data = gzip.compress(bytes(BODY_BYTES), 1)
    headers = {"content-encoding": "gzip", "content-type": "multipart/form-data; boundary=b"}
    for path, method in gateway.routes:
        if method not in ("GET", "HEAD"):
            gateway.take()
            bars: list[str] = []
            for _ in range(TRIES):
                client = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=60)
                client.request(method, re.sub(r"\{.*?\}", "x", path), data, headers)
                status = client.getresponse().status
                client.close()
                if not (bars := missed(status, gateway.take())):
                    break
            assert bars == [], (path, method)

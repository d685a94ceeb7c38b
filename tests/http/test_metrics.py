"""Seen from outside: counters that count, labels that cannot grow, and who may look."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from tests.calls import embed, error_of
from tests.child import wait_until
from tests.conftest import FAKE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningGateway

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def counted(start_gateway: Callable[..., RunningGateway]) -> Iterator[RunningGateway]:
    """Return a gateway of our own, with a cache, whose numbers nobody else moves."""
    gateway = start_gateway(**FAKE, cache_max_bytes=1 << 20)
    yield gateway
    gateway.stop()


def samples(gateway: RunningGateway) -> Samples:
    """Return every sample of `/metrics`."""
    with gateway.client() as http:
        answer = http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(of: Samples, name: str, **labels: str) -> float:
    """Return one sample, 0 if there is none yet."""
    return of.get((f"embedding_{name}", tuple(sorted(labels.items()))), 0.0)


def test_a_request_is_counted_in_every_way(counted: RunningGateway) -> None:
    """Requests, tokens, stages, cache and steps are counted as they were sent, and no more."""
    before = samples(counted)
    with counted.client() as http:
        assert embed(http, input=["w1", "w2 w3"]).status_code == 200
        assert embed(http, input=["w1", "w9"]).status_code == 200
        assert embed(http, input="").status_code == 400
        assert http.get("/nowhere/at/all").status_code == 404
    after = samples(counted)

    def moved(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert moved("requests_total", route="/v1/embeddings", status="200") == 2
    assert moved("requests_total", route="/v1/embeddings", status="400") == 1
    assert moved("requests_total", route="other", status="404") == 1
    assert moved("errors_total", code="invalid_value") == 1
    assert moved("errors_total", code="not_found") == 1
    assert moved("request_duration_seconds_count", route="/v1/embeddings") == 3
    assert moved("inputs_total", model="fake") == 4
    assert moved("tokens_total", model="fake") == 3 + 4 + 3 + 3
    for stage in ("tokenize", "queue", "engine"):
        assert moved("stage_duration_seconds_count", model="fake", stage=stage) == 2
    assert moved("cache_hits_total") == 1
    assert moved("cache_misses_total") == 3
    assert value(after, "cache_entries") == 3
    assert value(after, "ready") == 1
    assert value(after, "queued_tokens", model="fake") == 0
    assert value(after, "queue_limit_tokens", model="fake") == 2_000_000
    assert value(after, "replicas", model="fake", state="ready") == 1
    wait_until(lambda: value(samples(counted), "event_loop_lag_seconds_count") > 0)
    assert after["process_open_fds", ()] > 0


def test_steps_are_counted_by_their_size(counted: RunningGateway) -> None:
    """The batch size histogram has the texts of each step, once a pong has come."""
    with counted.client() as http:
        assert embed(http, input=[f"w{number} w77" for number in range(20)]).status_code == 200
    replica = next(iter(counted.gateway.service.models)).engine.replicas[0]
    wait_until(lambda: replica.totals.texts >= 20 and sum(replica.totals.batch_sizes[5:]))
    found = samples(counted)
    under, upto = (
        value(found, "batch_size_bucket", model="fake", le=le) for le in ("16.0", "32.0")
    )
    assert upto - under == 1
    assert value(found, "batch_size_count", model="fake") == replica.totals.steps


def test_labels_do_not_grow_with_what_clients_send(counted: RunningGateway) -> None:
    """Paths, models, methods and names that a client makes up add no series."""
    before = len(samples(counted))
    with counted.client() as http:
        for number in range(50):
            http.get(f"/made/up/{number}")
            http.get(f"/v1/models/made-up-{number}")
            http.request("PURGE", f"/v1/embeddings?{number}")
            embed(
                http,
                input="w1",
                model=f"made-up-{number}",
                headers={"x-request-id": f"id-{number}"},
            )
    assert (
        len(samples(counted)) <= before + 40
    )  # the first 404 and 405 of a route, with its buckets


def test_a_client_that_goes_away_is_counted(counted: RunningGateway) -> None:
    """A cancelled request is a cancellation and not an error."""
    before = value(samples(counted), "cancellations_total")
    timeout = httpx.Timeout(60, read=0.5)
    with counted.client(timeout=timeout) as http, pytest.raises(httpx.ReadTimeout):
        embed(http, input="fault-hang w5")
    wait_until(lambda: value(samples(counted), "cancellations_total") > before)
    counted.workers["fake", 0].wake()
    after = samples(counted)
    assert value(after, "cancellations_total") == before + 1
    assert value(after, "requests_total", route="/v1/embeddings", status="499") == 1


def test_stats_say_the_same_for_people(counted: RunningGateway) -> None:
    """`/stats` shows state, backlog and work of every replica."""
    with counted.client() as http:
        shown = http.get("/stats").json()
    assert shown["status"] == "ready"
    (replica,) = shown["models"]["fake"]["replicas"]
    assert (replica["state"], replica["restarts"], replica["outstanding_tokens"]) == ("ready", 0, 0)
    assert shown["requests_in_flight"] == 1  # this one


def test_no_request_leaves_a_task(counted: RunningGateway) -> None:
    """The event loop has as many tasks after requests as before."""
    before = value(samples(counted), "asyncio_tasks")
    with counted.client() as http:
        assert [embed(http, input=f"w{number}").status_code for number in range(20)] == [200] * 20
    wait_until(lambda: 0 < value(samples(counted), "asyncio_tasks") <= before)


@pytest.mark.parametrize(
    ("setting", "headers", "status"),
    [
        ("open", {}, 200),
        ("open", {"x-forwarded-for": "203.0.113.9"}, 200),
        ("loopback", {}, 200),
        ("loopback", {"x-forwarded-for": "127.0.0.1"}, 401),
        ("loopback", {"forwarded": "for=127.0.0.1"}, 401),
        ("loopback", {"via": "1.1 proxy"}, 401),
        ("loopback", {"host": "api.example"}, 401),
        ("loopback", {"host": "localhost:8890"}, 200),
        ("loopback", {"host": "[::1]:8890"}, 200),
        ("loopback", {"x-forwarded-for": "203.0.113.9", "x-api-key": "right"}, 200),
        ("key", {}, 401),
        ("key", {"x-api-key": "wrong"}, 401),
        ("key", {"x-api-key": "right"}, 200),
        ("off", {"x-api-key": "right"}, 404),
    ],
)
def test_who_may_see_the_metrics(
    shared_gateway: Callable[..., RunningGateway],
    setting: str,
    headers: dict[str, str],
    status: int,
) -> None:
    """Everybody, this machine (but not through a proxy on it), holders of a key, or nobody."""
    with shared_gateway(**FAKE, api_keys=["right"], metrics=setting).client() as http:
        answer = http.get("/metrics", headers=headers)
    assert answer.status_code == status
    if status != 200:
        error_of(answer, status)


def test_openmetrics_is_spoken_too(counted: RunningGateway) -> None:
    """A scraper that prefers OpenMetrics gets it."""
    with counted.client() as http:
        answer = http.get(
            "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}
        )
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


@pytest.mark.parametrize("kind", ["text/plain", "application/openmetrics-text"])
@pytest.mark.parametrize("version", ["", "a", "9.x.0", "-", "9" * 5000])
def test_a_version_that_is_none_is_no_defect(
    counted: RunningGateway, kind: str, version: str
) -> None:
    """Whatever version a scraper asks for, it gets the metrics."""
    with counted.client() as http:
        answer = http.get("/metrics", headers={"accept": f"{kind};version={version}"})
    assert answer.status_code == 200
    assert "embedding_ready 1" in answer.text


class Collector:
    """A real HTTP server that takes OTLP, and what it was sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.attributes: dict[str, str] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                request = ExportTraceServiceRequest.FromString(body)
                for group in request.resource_spans:
                    outer.attributes |= {
                        a.key: a.value.string_value for a in group.resource.attributes
                    }
                    outer.spans += [span for scope in group.scope_spans for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                """Be quiet."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Return an OTLP collector."""
    running = Collector()
    yield running
    running.server.shutdown()
    running.server.server_close()


def test_traces_reach_a_collector(
    start_gateway: Callable[..., RunningGateway], collector: Collector
) -> None:
    """With an endpoint, a request is a span under its caller's, without any text of its own."""
    gateway = start_gateway(
        **FAKE, otlp_endpoint=f"http://127.0.0.1:{collector.server.server_port}"
    )
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with gateway.client() as http:
        answer = embed(
            http, input=["w1 planted", "w2"], headers={"traceparent": f"00-{trace}-{parent}-01"}
        )
        assert answer.status_code == 200
        http.get("/livez")
    assert gateway.stop() == 0
    spans = {span.name: span for span in collector.spans}
    assert spans.keys() == {"POST /v1/embeddings", "tokenize", "queue", "engine"}
    assert {span.trace_id.hex() for span in spans.values()} == {trace}
    whole = spans.pop("POST /v1/embeddings")
    assert whole.parent_span_id.hex() == parent
    for child in spans.values():
        assert child.parent_span_id == whole.span_id
        assert whole.start_time_unix_nano <= child.start_time_unix_nano <= child.end_time_unix_nano
        assert child.end_time_unix_nano <= whole.end_time_unix_nano
    attributes = {a.key: a.value.int_value or a.value.string_value for a in whole.attributes}
    assert attributes["embedding.texts"] == 2
    assert attributes["http.response.status_code"] == 200
    assert attributes["embedding.request_id"] == answer.headers["x-request-id"]
    assert collector.attributes["service.name"] == "embedding-service"
    assert "planted" not in json.dumps([str(span) for span in collector.spans])


def test_a_collector_that_is_gone_costs_nothing(
    start_gateway: Callable[..., RunningGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are answered, and the gateway ends, where nobody takes the traces."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")  # the exporter tries again until then
    gateway = start_gateway(**FAKE, otlp_endpoint="http://127.0.0.1:1")
    with gateway.client() as http:
        assert embed(http, input="w1").status_code == 200
    assert gateway.stop() == 0

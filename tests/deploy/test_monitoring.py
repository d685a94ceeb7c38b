"""Alert rules and dashboard: they parse, and ask only for metrics and labels that the gateway has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from embedding_service.engine.states import State
from tests.conftest import FAKE
from tests.deploy.tools import DEPLOY, ROOT, program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import RunningGateway

PROMETHEUS = DEPLOY / "prometheus"
DASHBOARD = DEPLOY / "grafana" / "embedding-service.json"

COUNTERS_AND_GAUGES: dict[str, set[str]] = {
    "embedding_requests_total": {"route", "status"},
    "embedding_errors_total": {"code"},
    "embedding_tokens_total": {"model"},
    "embedding_inputs_total": {"model"},
    "embedding_queued_tokens": {"model"},
    "embedding_queue_limit_tokens": {"model"},
    "embedding_requests_in_flight": set(),
    "embedding_asyncio_tasks": set(),
    "embedding_cache_hits_total": set(),
    "embedding_cache_misses_total": set(),
    "embedding_cache_bytes": set(),
    "embedding_cache_entries": set(),
    "embedding_cancellations_total": set(),
    "embedding_worker_restarts_total": {"model", "replica"},
    "embedding_replicas": {"model", "state"},
    "embedding_canary_cosine": {"model", "replica"},
    "embedding_rate_limited_total": {"limit"},
    "embedding_redis_errors_total": {"use"},
    "embedding_redis_open": {"use"},
    "embedding_batches": {"status"},
    "embedding_batch_lines_total": {"result"},
    "embedding_batch_oldest_seconds": set(),
    "embedding_batch_stalled_seconds": set(),
    "embedding_ready": set(),
    "embedding_build_info": {"version"},
    "process_resident_memory_bytes": set(),
    "process_cpu_seconds_total": set(),
    "process_open_fds": set(),
    "process_max_fds": set(),
}
HISTOGRAMS: dict[str, set[str]] = {
    "embedding_request_duration_seconds": {"route"},
    "embedding_stage_duration_seconds": {"model", "stage"},
    "embedding_batch_size": {"model"},
    "embedding_event_loop_lag_seconds": set(),
}
SERIES = (
    {"up": set()}
    | COUNTERS_AND_GAUGES
    | {f"{name}_bucket": {*labels, "le"} for name, labels in HISTOGRAMS.items()}
    | {f"{name}_{part}": labels for name, labels in HISTOGRAMS.items() for part in ("sum", "count")}
)
TARGET_LABELS = {"job", "instance"}  # Prometheus adds them


def alerts() -> list[dict[str, Any]]:
    """Return the alert rules."""
    groups = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's panels."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> list[str]:
    """Return every PromQL expression that is shipped, Grafana's variables filled in."""
    targets = [target["expr"] for panel in panels() for target in panel["targets"]]
    filled = [expr.replace("$__rate_interval", "5m").replace("$instance", ".*") for expr in targets]
    return [rule["expr"] for rule in alerts()] + filled


def parts(node: Any) -> Iterator[Any]:
    """Walk a parsed expression."""
    yield node
    children = [
        getattr(node, name, None) for name in ("expr", "lhs", "rhs", "vector_selector", "param")
    ]
    for child in [*children, *getattr(node, "args", [])]:
        if child is not None:
            yield from parts(child)


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_asks_for_what_there_is(expression: str) -> None:
    """Metrics, labels that are matched and labels that are grouped by exist."""
    nodes = list(parts(promql_parser.parse(expression)))
    selectors = [node for node in nodes if isinstance(node, promql_parser.VectorSelector)]
    labels: set[str] = set()
    for selector in selectors:
        known = SERIES[selector.name] | TARGET_LABELS
        assert {matcher.name for matcher in selector.matchers.matchers} <= known
        labels |= known
    for node in nodes:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            assert set(node.modifier.labels) <= labels
    assert selectors


def test_the_gateway_has_these_metrics(
    start_gateway: Callable[..., RunningGateway], tmp_path: Path
) -> None:
    """Every metric named above is there, of the right kind, and no sample of it has other labels."""
    gateway = start_gateway(**FAKE, metrics="open", cache_max_bytes=1 << 20, state_dir=tmp_path)
    with gateway.client() as client:
        client.post("/v1/embeddings", json={"model": "fake", "input": ["w1", "w1"]})
        client.post("/v1/embeddings", json={"model": "no such", "input": "w1"})
        families = {
            family.name: family
            for family in text_string_to_metric_families(client.get("/metrics").text)
        }
    kinds = {name: family.type for name, family in families.items()}
    assert {name: kinds.get(name) for name in HISTOGRAMS} == dict.fromkeys(HISTOGRAMS, "histogram")
    assert {
        name for name in COUNTERS_AND_GAUGES if kinds.get(name.removesuffix("_total")) is None
    } == set()
    for family in families.values():
        for sample in family.samples:
            if sample.name in SERIES:
                assert set(sample.labels) == SERIES[sample.name], sample


def test_states_that_alerts_name_exist() -> None:
    """A replica can be in every state that an expression matches."""
    named = re.findall(r'state="(\w+)"', " ".join(expressions()))
    assert set(named) <= {str(state) for state in State}


def test_every_alert_says_what_to_do() -> None:
    """An alert has a name of its own, a severity, a summary and a description."""
    rules = alerts()
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "description"}


def test_panels_do_not_overlap() -> None:
    """Panels have names of their own and lie beside each other on Grafana's 24 columns."""
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


@pytest.mark.server
def test_promtool_agrees(tmp_path: Path) -> None:
    """The files are valid, and the alerts fire when they should."""
    promtool = program("promtool", "prometheus")
    for file in (*PROMETHEUS.glob("*.yaml"), ROOT / "tests" / "deploy" / "alerts_test.yaml"):
        shutil.copy(file, tmp_path)
    for command in (["check", "config", "prometheus.yaml"], ["test", "rules", "alerts_test.yaml"]):
        result = subprocess.run(
            [promtool, *command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr

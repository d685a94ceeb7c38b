"""`/ui/figures`: one instance's state and counters, of which the page draws the last minutes.

Nothing is kept for it: rates and quantiles follow from the differences of two answers.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Container
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from embedding_service import __version__
from embedding_service.dialects.dialect import Access, Answer, Operation, Request, probe
from embedding_service.http.metrics import ModelStats, stats

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client import Counter, Histogram

    from embedding_service.service.models import ServedModel
    from embedding_service.settings.gateway import Settings
    from embedding_service.telemetry import Metrics

    Sample = tuple[Mapping[str, str], float]

Routes = Callable[[], Container[str]]
Counts = dict[str, float]
_FIRST_ERROR_STATUS = 400
_PROCESS = secrets.token_hex(4)


class CacheFigures(BaseModel):
    """How often the cache in memory knew a result, and its size; counted since the start."""

    model_config = ConfigDict(from_attributes=True)

    hits: int
    misses: int
    entries: int
    bytes: int
    max_bytes: int


class ModelFigures(ModelStats):
    """A model and its counters since the start.

    `engine` counts requests by how long they were computed: upper bounds in seconds (`+Inf` for the
    last), cumulative, as Prometheus' histograms are.
    """

    name: str
    ready: bool
    device: str | None
    dtype: str | None
    dimension: int | None
    load_s: float
    texts: float
    tokens: float
    engine: Counts


class RequestFigures(BaseModel):
    """Requests with a body, those that were errors, and their time as `ModelFigures.engine`."""

    requests: float
    errors: float
    seconds: Counts


class Figures(RequestFigures):
    """The present state of one instance, and of the models that the key may use.

    `process` tells an instance from the one before it, whose counters it does not continue. It is
    the instance's name too for a key that may not use all models. `time` is monotonic, in seconds.
    """

    instance: str
    process: str
    version: str
    time: float
    status: str
    uptime_s: float
    requests_in_flight: int
    cache: CacheFigures | None
    models: list[ModelFigures]


def operation(path: str, routes: Routes) -> Operation:
    """Return the operation, which counts requests to `routes`.

    It is asked every other second, also while the gateway drains, and so logged as a probe is.
    """

    async def figures(request: Request[None]) -> Answer:
        return Answer.json(_figures(request, routes()), headers={"cache-control": "no-store"})

    return replace(probe(path, figures, "", documented=False), access=Access.KEY)


def _figures(request: Request[None], routes: Container[str]) -> Figures:
    tenant, metrics, cache = request.call.tenant, request.service.metrics, request.models.cache
    state = stats(request.lifecycle, tenant)
    return Figures(
        instance=_PROCESS if tenant.models is not None else _instance(request.settings),
        process=_PROCESS,
        version=__version__,
        time=time.monotonic(),
        status=state.status,
        uptime_s=state.uptime_s,
        requests_in_flight=state.requests_in_flight,
        cache=CacheFigures.model_validate(cache) if cache else None,
        models=_models(request.models, state.models, metrics),
        **dict(_requests(metrics, routes)),
    )


def _instance(settings: Settings) -> str:
    return f"{socket.gethostname()}:{settings.uds or settings.port}"


def _models(
    models: Iterable[ServedModel], states: Mapping[str, ModelStats], metrics: Metrics
) -> list[ModelFigures]:
    texts, tokens = _by_model(metrics.inputs), _by_model(metrics.tokens)
    engine = _by_model(metrics.stage, stage="engine")
    return [
        ModelFigures(
            **dict(states[model.name]),
            **_facts(model),
            texts=_sum(texts[model.name]),
            tokens=_sum(tokens[model.name]),
            engine=_buckets(engine[model.name]),
        )
        for model in models
        if model.name in states
    ]


def _facts(model: ServedModel) -> dict[str, Any]:
    facts = model.facts
    return {
        "name": model.name,
        "ready": model.ready,
        "device": facts.device if facts else None,
        "dtype": facts.dtype if facts else None,
        "dimension": facts.dimension if facts else None,
        "load_s": round(model.load_s, 1),
    }


def _requests(metrics: Metrics, routes: Container[str]) -> RequestFigures:
    answered = _at(metrics.requests, routes)
    failed = [each for each in answered if int(each[0]["status"]) >= _FIRST_ERROR_STATUS]
    seconds = _buckets(_at(metrics.duration, routes))
    return RequestFigures(requests=_sum(answered), errors=_sum(failed), seconds=seconds)


def _at(metric: Counter | Histogram, routes: Container[str]) -> list[Sample]:
    return [each for each in _samples(metric) if each[0]["route"] in routes]


def _by_model(metric: Counter | Histogram, stage: str | None = None) -> dict[str, list[Sample]]:
    found: defaultdict[str, list[Sample]] = defaultdict(list)
    for labels, value in _samples(metric):
        if labels.get("stage") == stage:
            found[labels["model"]].append((labels, value))
    return found


def _samples(metric: Counter | Histogram) -> Iterator[Sample]:
    """Yield labels and value of every count, or of every bucket."""
    for family in metric.collect():
        for sample in family.samples:
            if sample.name.endswith(("_total", "_bucket")):
                yield sample.labels, sample.value


def _sum(samples: Iterable[Sample]) -> float:
    return sum(count for _, count in samples)


def _buckets(samples: Iterable[Sample]) -> Counts:
    """Return cumulative counts by upper bound, those of all series added up."""
    counts: Counts = defaultdict(float)
    for labels, count in samples:
        counts[labels["le"]] += count
    return counts

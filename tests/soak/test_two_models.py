"""An embedder and a reranker at one address, under mixed load: `make soak`, SOAK_S=10."""

from __future__ import annotations

import itertools
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.texts import SNIPPETS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from tests.conftest import RunningGateway

pytestmark = [pytest.mark.engine, pytest.mark.soak]

DURATION_S = float(os.environ.get("SOAK_S", "120"))
CALIBRATION_S = min(10.0, DURATION_S / 3)
THREADS = 3  # of each kind
# Of what each completes alone. The workers share all cores, so half is fair; 0.2 was seen on two
# cores at load 5.
SHARE = 0.1

Requests = list[tuple[str, dict[str, Any]]]
TEXTS = list(SNIPPETS)
ALL_THREE = {"return_sparse": True, "return_colbert": True, "encoding_format": "base64"}
EMBED: Requests = [
    ("/v1/hybrid-embeddings", {"model": "bge-m3", "input": TEXTS[:4]}),
    ("/v1/embeddings", {"model": "bge-m3", "input": TEXTS[4:10], **ALL_THREE}),
    ("/v1/hybrid-embeddings", {"model": "bge-m3", "input": TEXTS[10]}),
    ("/v1/sparse-embeddings", {"model": "bge-m3", "input": TEXTS}),
]
RERANK: Requests = [
    ("/v1/rerank", {"model": "reranker", "query": TEXTS[0], "documents": TEXTS[:8]}),
    (
        "/v1/rerank",
        {"model": "reranker", "query": "who is born free?", "documents": TEXTS, "top_n": 3},
    ),
    ("/v1/rerank", {"model": "reranker", "query": "a fox", "documents": ["one"]}),
]


@pytest.fixture(scope="module")
def gateway(
    start_gateway: Callable[..., RunningGateway], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningGateway]:
    """Return a gateway that serves both, float32."""
    from tests import checkpoints

    builders = {"bge-m3": checkpoints.tiny_bge_m3, "reranker": checkpoints.tiny_xlmr_reranker}
    models = [
        {
            "model_name": name,
            "model_path": str(build(tmp_path_factory.mktemp(name))),
            "required": True,
        }
        for name, build in builders.items()
    ]
    running = start_gateway(
        port=0,
        gpu_memory_utilization=0.1,
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        models=models,
    )
    yield running
    running.stop()


class Load:
    """Threads that send requests one after another, and count good answers and others."""

    def __init__(self, http: httpx.Client, requests: Requests) -> None:
        self.http = http
        self.requests = requests
        self.completed = itertools.count()
        self.errors: list[str] = []
        self.slowest_s = 0.0

    def start(self, until: float) -> list[threading.Thread]:
        """Send until then (monotonic seconds)."""
        threads = [
            threading.Thread(target=self._send, args=(first, until)) for first in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        return threads

    def _send(self, first: int, until: float) -> None:
        for path, body in itertools.islice(itertools.cycle(self.requests), first, None):
            started = time.monotonic()
            if started >= until:
                return
            try:
                answer = self.http.post(path, json=body)
            except Exception as error:  # noqa: BLE001 - whatever it is, a client would have seen it
                self.errors.append(f"{path}: {error!r}")
                return
            if answer.status_code != 200:
                self.errors.append(f"{path}: {answer.status_code} {answer.text[:200]}")
            self.slowest_s = max(self.slowest_s, time.monotonic() - started)
            next(self.completed)


def run(http: httpx.Client, *kinds: Requests, duration_s: float) -> list[float]:
    """Send all kinds of requests at once; return how many of each were answered in a second."""
    loads = [Load(http, requests) for requests in kinds]
    until = time.monotonic() + duration_s
    for thread in [thread for load in loads for thread in load.start(until)]:
        thread.join()
    assert [load.errors for load in loads] == [[]] * len(loads)
    print(", ".join(f"{load.requests[0][0]}: slowest {load.slowest_s:.2f} s" for load in loads))  # noqa: T201
    return [next(load.completed) / duration_s for load in loads]


def is_idle(gateway: RunningGateway) -> bool:
    """Return whether nothing is admitted, on the wire or in an engine, by the engine's own count."""
    service = gateway.gateway.service
    replicas = [replica for model in service.models for replica in model.engine.replicas]
    return (
        service.answers.held == 0
        and all(model.gate.held == 0 and model.preparing == 0 for model in service.models)
        and all(replica.outstanding_tokens == 0 for replica in replicas)
        and all(
            replica.progress and not replica.progress.running + replica.progress.waiting
            for replica in replicas
        )
    )


def test_an_embedder_and_a_reranker_share(gateway: RunningGateway) -> None:
    """Under mixed load nothing fails, each has a fair part, and nothing stays queued."""
    with gateway.client(timeout=60) as http:
        run(http, EMBED, RERANK, duration_s=2)  # first requests allocate
        alone = [run(http, requests, duration_s=CALIBRATION_S)[0] for requests in (EMBED, RERANK)]
        together = run(http, EMBED, RERANK, duration_s=DURATION_S)
        print(f"requests/s alone {alone}, together {together}")  # noqa: T201
        shares = [mixed / single for mixed, single in zip(together, alone, strict=True)]
        assert min(shares) >= SHARE, (
            f"embedder and reranker completed {shares} of what they complete alone"
        )
        until = time.monotonic() + 5
        while not is_idle(gateway) and time.monotonic() < until:
            time.sleep(0.1)
        assert is_idle(gateway)
        assert http.get("/readyz").status_code == 200
    assert [event for event in gateway.log if event["level"] == "error"] == []

"""Replicas seen from the gateway: how requests reach them. Crashes are in test_crash.py."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from embedding_service.engine import heartbeat
from embedding_service.engine.pool import SLICE_TEXTS, SLICE_TOKENS, _slices
from embedding_service.errors import ModelNotLoaded
from embedding_service.types import Batch, Output, Priority
from tests.calls import embed, unit_vectors, vectors_of
from tests.child import wait_until
from tests.conftest import FAKE

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedding_service.engine.replica import Replica
    from tests.conftest import RunningGateway


def batch(sizes: list[int], boundaries: list[int] | None = None) -> Batch:
    ids = [np.full(size, i, np.int32) for i, size in enumerate(sizes)]
    return Batch(ids, frozenset({Output.DENSE}), Priority.BULK, 0.0, boundaries)


@pytest.mark.parametrize(
    ("sizes", "slices"),
    [
        ([3], [1]),
        ([1] * SLICE_TEXTS, [SLICE_TEXTS]),
        ([1] * (SLICE_TEXTS + 1), [SLICE_TEXTS, 1]),
        ([SLICE_TOKENS], [1]),
        ([SLICE_TOKENS, 1], [1, 1]),
        ([SLICE_TOKENS + 1, 1, SLICE_TOKENS, 5], [1, 1, 1, 1]),
        ([SLICE_TOKENS // 2] * 5, [2, 2, 1]),
    ],
)
def test_no_message_holds_an_engine_for_long(sizes: list[int], slices: list[int]) -> None:
    """A request is cut into messages of bounded size, in order; only a lone text may be longer."""
    boundaries = list(range(len(sizes)))
    parts = list(_slices(batch(sizes, boundaries)))
    assert [len(part.ids) for part in parts] == slices
    assert [len(ids) for part in parts for ids in part.ids] == sizes
    assert [b for part in parts for b in part.boundaries or []] == boundaries


def engines(gateway: RunningGateway) -> list[Replica]:
    """Return the replicas of a gateway's first model."""
    return list(next(iter(gateway.gateway.service.models)).engine.replicas)


def test_replicas_share_the_load(
    start_gateway: Callable[..., RunningGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One large request is spread over all replicas, and its vectors come back in order."""
    monkeypatch.setattr(heartbeat, "PING_EVERY_S", 0.05)
    gateway = start_gateway(**FAKE, replicas=2, gpu_memory_utilization=0.2)
    texts = [f"w{i}" for i in range(4 * SLICE_TEXTS)]
    with gateway.client() as client:
        np.testing.assert_allclose(
            vectors_of(embed(client, input=texts)), unit_vectors(*texts), rtol=1e-5
        )
        assert client.get("/readyz").json()["models"] == {"fake": ["ready", "ready"]}
    until = time.monotonic() + 30
    shares: list[int] = []
    while sum(shares) < len(texts):
        assert time.monotonic() < until, shares
        time.sleep(0.05)
        shares = [replica.progress.texts if replica.progress else 0 for replica in engines(gateway)]
    assert shares == [2 * SLICE_TEXTS, 2 * SLICE_TEXTS]
    assert len(gateway.workers) == 2
    assert gateway.stop() == 0


def test_single_requests_go_to_the_least_loaded_replica(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """While one replica is busy, the next request goes to the other and does not wait."""
    gateway = start_gateway(**FAKE, replicas=2, gpu_memory_utilization=0.2)
    loads = []
    with ThreadPoolExecutor(2) as threads, gateway.client() as client:
        slow = threads.submit(embed, client, input="fault-hang w1 w2 w3")
        wait_until(lambda: any(replica.outstanding_tokens for replica in engines(gateway)))
        assert embed(client, input="w1").status_code == 200
        loads = [replica.outstanding_tokens for replica in engines(gateway)]
        for worker in gateway.workers.values():
            worker.wake()
        assert slow.result().status_code == 200
    assert sorted(loads) == [0, 6], "the second request waited for the first one"
    assert [replica.outstanding_tokens for replica in engines(gateway)] == [0, 0]
    assert gateway.stop() == 0


def test_models_do_not_mix_whatever_their_names(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """Models whose names begin or end alike, or are not ASCII, each have an engine of their own."""
    names = [
        "a/the-same-long-name-1",
        "a/the-same-long-name-2",
        "b/the-same-long-name-2",
        "имя 😀" * 9,
    ]
    models = [
        {
            "model_name": name,
            "required": True,
            "max_model_len": 10 + i,
            "gpu_memory_utilization": 0.1,
        }
        for i, name in enumerate(names)
    ]
    gateway = start_gateway(port=0, engine="fake", models=models)
    assert len({worker.launch.step_path for worker in gateway.workers.values()}) == len(names)
    with gateway.client() as client:
        for i, name in enumerate(names):
            assert embed(client, model=name, input="w1").json()["model"] == name
            assert client.get(f"/v1/models/{name}").json()["max_model_len"] == 10 + i
    assert gateway.stop() == 0


def test_a_refused_model_ends_start_up_with_its_reason(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """A model that the engine refuses is `ModelNotLoaded`: one line with its name and the cause."""
    gateway = start_gateway(**FAKE, wait=False, engine_args={"refuse": "its files are damaged"})
    gateway.wait_ended()
    assert isinstance(gateway.error, ModelNotLoaded)
    assert str(gateway.error).startswith("fake: ")
    assert str(gateway.error).endswith("its files are damaged")
    assert "\n" not in str(gateway.error)
    assert not gateway.gateway.folder.exists()


def test_a_model_that_takes_too_long_ends_start_up(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """A model that is not there after `startup_timeout_s` is given up, and its process ended."""
    gateway = start_gateway(**FAKE, wait=False, engine_args={"load_s": 3600}, startup_timeout_s=0.5)
    gateway.wait_ended()
    assert isinstance(gateway.error, ModelNotLoaded)
    assert "startup_timeout_s = 0.5" in str(gateway.error)


@pytest.mark.process
def test_a_worker_that_dies_while_loading_ends_start_up(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """A worker that is killed before its hello is reported with its signal, not waited for."""
    gateway = start_gateway(**FAKE, wait=False, processes=True, engine_args={"load_s": 3600})
    wait_until(lambda: gateway.workers)
    os.kill(gateway.workers["fake", 0].pid, signal.SIGKILL)
    gateway.wait_ended()
    assert isinstance(gateway.error, ModelNotLoaded)
    assert "status -9" in str(gateway.error)


@pytest.mark.process
def test_workers_ignore_the_terminals_signals(start_gateway: Callable[..., RunningGateway]) -> None:
    """Ctrl-C and SIGTERM are the gateway's business: a worker that gets them goes on."""
    gateway = start_gateway(**FAKE, processes=True)
    pid = gateway.workers["fake", 0].pid
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    with gateway.client() as client:
        assert embed(client, input="w1").status_code == 200
    assert gateway.workers["fake", 0].pid == pid
    assert os.getpgid(pid) == pid != os.getpgid(0)
    assert gateway.stop() == 0

"""A crash costs nobody but the one whose input causes it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests import conftest
from tests.calls import ids_of
from tests.child import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.conftest import RunningGateway

pytestmark = pytest.mark.process
FAKE = {**conftest.FAKE, "processes": True}
SLOW = {**FAKE, "engine_args": {"step_s": 0.3}}


def embed(gateway: RunningGateway, text: str | list[str]) -> httpx.Response:
    """Post one request."""
    with gateway.client() as http:
        return http.post("/v1/embeddings", json={"model": "fake", "input": text})


def worker_pid(gateway: RunningGateway) -> int:
    """Return the process id of the first replica's worker."""
    return int(gateway.workers["fake", 0].pid)


def wait_until_ready(gateway: RunningGateway) -> None:
    """Return once `/readyz` says 200."""
    with gateway.client() as http:
        wait_until(lambda: http.get("/readyz").status_code == 200)


def outstanding(gateway: RunningGateway) -> int:
    """Return the tokens that the worker has yet to compute."""
    (model,) = gateway.gateway.service.models
    (replica,) = model.engine.replicas
    return replica.outstanding_tokens


def embed_together(gateway: RunningGateway, inputs: list[Any]) -> list[httpx.Response]:
    """Post requests that have all been sent to the worker before it reads the first one."""
    texts = [text for each in inputs for text in ([each] if isinstance(each, str) else each)]
    with ThreadPoolExecutor(len(inputs)) as threads:
        os.kill(worker_pid(gateway), signal.SIGSTOP)
        answers = [threads.submit(embed, gateway, each) for each in inputs]
        wait_until(lambda: outstanding(gateway) == sum(len(ids_of(text)) for text in texts))
        os.kill(worker_pid(gateway), signal.SIGCONT)
        return [answer.result() for answer in answers]


@pytest.mark.parametrize("fault", ["fault-die", "fault-raise"])
def test_only_the_poison_fails(start_gateway: Callable[..., RunningGateway], fault: str) -> None:
    """Neighbours of the input that killed the engine are answered; it gets a final 500."""
    gateway = start_gateway(**SLOW)
    inputs: list[Any] = ["w0", "w1", f"w2 {fault}", "w3", ["w4", "w5"]]
    answers = embed_together(gateway, inputs)
    assert [answer.status_code for answer in answers] == [200, 200, 500, 200, 200]
    assert answers[2].headers["x-should-retry"] == "false"
    assert answers[2].json()["error"]["code"] == "engine_failed"
    again = embed(gateway, f"w2 {fault}")
    assert again.status_code == 500
    assert "short while ago" in again.json()["error"]["message"]
    wait_until_ready(
        gateway
    )  # the poison may have been the last suspect, and its death the last event
    generation = next(iter(gateway.gateway.service.models)).engine.replicas[0].generation
    assert embed(gateway, "w2").status_code == 200
    assert next(iter(gateway.gateway.service.models)).engine.replicas[0].generation == generation, (
        "it died again"
    )


def test_killed_worker_is_replaced_and_nothing_is_lost(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """After a SIGKILL the next worker answers the running request; the gateway is not restarted."""
    gateway = start_gateway(**SLOW)
    pid = worker_pid(gateway)
    with ThreadPoolExecutor(1) as threads:
        pending = threads.submit(embed, gateway, ["w1"] * 100)
        wait_until(lambda: outstanding(gateway))
        time.sleep(0.1)  # as a rule, a step has begun by then
        os.kill(pid, signal.SIGKILL)
        assert pending.result().status_code == 200
    wait_until(lambda: worker_pid(gateway) != pid)
    wait_until_ready(gateway)


def test_a_step_that_stands_still_is_ended(
    start_gateway: Callable[..., RunningGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that answers pings but hangs in a step is replaced; who was next is answered."""
    monkeypatch.setattr("embedding_service.engine.heartbeat.STEP_AT_LEAST_S", 2.0)
    gateway = start_gateway(**FAKE)
    answers = embed_together(gateway, ["w1", "w2 fault-hang", "w3"])
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    assert answers[1].headers["x-should-retry"] == "false"
    assert any("no progress in a step" in str(event.get("reason")) for event in gateway.log)


def test_a_worker_that_cannot_be_started_is_tried_again(
    start_gateway: Callable[..., RunningGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a process, memory or descriptor left, that is one more death, not the last word."""
    gateway = start_gateway(**FAKE)
    exec_ = asyncio.create_subprocess_exec
    errors = [BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")]

    async def failing(*args: Any, **options: Any) -> asyncio.subprocess.Process:
        if errors:
            raise errors.pop()
        return await exec_(*args, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", failing)
    os.kill(worker_pid(gateway), signal.SIGKILL)
    wait_until(lambda: not errors)
    wait_until_ready(gateway)
    assert embed(gateway, "w1").status_code == 200
    deaths = [line["reason"] for line in gateway.log if line["event"] == "engine_died"]
    assert "Resource temporarily unavailable" in deaths[-1]


def test_another_replica_takes_over_at_once(start_gateway: Callable[..., RunningGateway]) -> None:
    """With two replicas one death is not even a pause: the other one answers and readiness stays."""
    gateway = start_gateway(**{**SLOW, "replicas": 2, "engine_args": {"step_s": 0.3, "load_s": 2}})
    os.kill(worker_pid(gateway), signal.SIGKILL)
    with gateway.client() as http:
        for _ in range(5):
            assert (
                http.post("/v1/embeddings", json={"model": "fake", "input": "w1"}).status_code
                == 200
            )
            assert http.get("/readyz").status_code == 200


def test_without_a_replica_requests_are_told_when_to_come_back(
    start_gateway: Callable[..., RunningGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the only worker restarts, readiness and new requests are a 503 with Retry-After."""
    gateway = start_gateway(**FAKE)

    async def starting(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "create_subprocess_exec", starting)
    os.kill(worker_pid(gateway), signal.SIGKILL)
    with gateway.client() as http:
        wait_until(lambda: http.get("/readyz").status_code != 200)
        answer = http.post("/v1/embeddings", json={"model": "fake", "input": "w1"})
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "unavailable"
        assert http.get("/livez").status_code == 200
    assert gateway.stop() == 0


def test_dying_as_a_habit_marks_the_model_dead(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """The fourth death within five minutes ends the restarts of that model; the other goes on."""
    models = [{"model_name": "mortal"}, {"model_name": "other"}]
    gateway = start_gateway(
        engine="fake", port=0, processes=True, gpu_memory_utilization=0.2, models=models
    )
    mortal, other = gateway.gateway.service.models
    until = time.monotonic() + 120
    while not mortal.engine.dead:
        assert time.monotonic() < until, "it was started again and again"
        if mortal.engine.ready:
            with contextlib.suppress(ProcessLookupError):  # the last blow has not been noticed yet
                os.kill(gateway.workers["mortal", 0].pid, signal.SIGKILL)
        time.sleep(0.05)
    with gateway.client() as http:
        assert (
            http.post("/v1/embeddings", json={"model": "mortal", "input": "w1"}).status_code == 503
        )
        assert (
            http.post("/v1/embeddings", json={"model": other.name, "input": "w1"}).status_code
            == 200
        )


def test_a_stopped_worker_is_found_and_replaced(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """A worker without a sign of life is replaced, and the next one answers its request."""
    gateway = start_gateway(**FAKE)
    pid = worker_pid(gateway)
    os.kill(pid, signal.SIGSTOP)
    assert embed(gateway, "w1").status_code == 200
    assert worker_pid(gateway) != pid
    assert any("no sign of life" in str(event.get("reason")) for event in gateway.log)

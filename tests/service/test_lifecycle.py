"""From the first signal to the exit status: drain, systemd's protocol, no model left."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from embedding_service import systemd
from embedding_service.engine.replica import DEATHS_ALLOWED
from embedding_service.errors import NoModelLeft
from tests.child import wait_until
from tests.conftest import FAKE
from tests.test_cli import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningGateway

EMBED = {"model": "fake", "input": "w1"}


class Systemd:
    """The other end of `$NOTIFY_SOCKET`: a real datagram socket, and what was sent to it."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(30)
        self.path = path
        self.heard: list[str] = []

    def wait_for(self, word: str) -> str:
        """Return the next message that begins with `word`."""
        while True:
            message = self.socket.recv(4096).decode()
            self.heard.append(message)
            if message.startswith(word):
                return message


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Systemd]:
    """Return what plays systemd."""
    listening = Systemd(tmp_path / "notify")
    yield listening
    listening.socket.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Return a function that starts a gateway by its command."""
    servers: list[Server] = []

    def start(*arguments: str, **environment: str) -> Server:
        servers.append(Server(*arguments, **environment))
        return servers[-1]

    yield start
    for server in servers:
        server.end(signal.SIGKILL)


@pytest.mark.process
def test_systemd_hears_of_every_turn(start: Callable[..., Server], manager: Systemd) -> None:
    """READY once it serves, RELOADING on SIGHUP, STOPPING on SIGTERM; the watchdog is fed."""
    server = start(NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC="600000")
    assert manager.wait_for("STATUS=") == "STATUS=starting; fake: starting"
    manager.wait_for("READY=1")
    assert httpx.get(server.url + "/readyz").status_code == 200
    manager.wait_for("WATCHDOG=1")
    manager.wait_for("WATCHDOG=1")
    server.process.send_signal(signal.SIGHUP)
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    reloading = manager.wait_for("RELOADING=1").split("\n")[1]
    assert abs(int(reloading.removeprefix("MONOTONIC_USEC=")) - before) < 30_000_000
    manager.wait_for("READY=1")
    server.process.send_signal(signal.SIGTERM)
    manager.wait_for("STOPPING=1")
    assert server.process.wait(30) == 0


@pytest.mark.process
def test_systemd_hears_of_a_worker_that_is_away(
    start: Callable[..., Server], manager: Systemd
) -> None:
    """`systemctl status` shows a model whose worker is being replaced, until it is back."""
    server = start(NOTIFY_SOCKET=str(manager.path))
    manager.wait_for("STATUS=serving")
    (worker,) = server.children()
    os.kill(worker, signal.SIGKILL)
    assert manager.wait_for("STATUS=serving; fake: ") in {
        "STATUS=serving; fake: backoff",
        "STATUS=serving; fake: starting",
    }
    while manager.wait_for("STATUS=") != "STATUS=serving":
        pass


@pytest.mark.process
def test_systemd_hears_of_a_reload_that_failed(
    start: Callable[..., Server], manager: Systemd, tmp_path: Path
) -> None:
    """`systemctl reload` cannot fail, so `systemctl status` has the reason until one goes well."""
    keys = tmp_path / "keys"
    keys.write_text("- key-of-somebody")
    server = start("--api-keys-file", str(keys), NOTIFY_SOCKET=str(manager.path))
    manager.wait_for("STATUS=serving")
    keys.write_text("- [")
    server.process.send_signal(signal.SIGHUP)
    failed = manager.wait_for("STATUS=serving; reload failed: api_keys_file: ")
    assert f"{keys}: line " in failed
    keys.write_text("- key-of-somebody")
    server.process.send_signal(signal.SIGHUP)
    assert manager.wait_for("STATUS=") == "STATUS=serving"


@pytest.mark.process
def test_a_worker_knows_nothing_of_systemd_or_keys(
    start: Callable[..., Server], manager: Systemd
) -> None:
    """Variables for the gateway alone are not handed down to the process that runs models."""
    server = start(NOTIFY_SOCKET=str(manager.path), API_KEY="planted-key", WATCHDOG_USEC="60000000")
    manager.wait_for("READY=1")
    (worker,) = server.children()
    environment = Path(f"/proc/{worker}/environ").read_text(encoding="utf-8", errors="replace")
    assert "PATH=" in environment
    for secret in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "planted-key"):
        assert secret not in environment


def test_an_abstract_socket_and_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that begins with @ is an abstract socket; a dead socket or none costs nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0embedding-test-" + str(time.monotonic_ns()))
        manager.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + manager.getsockname()[1:].decode())
        systemd.notify("READY=1", "STATUS=fine")
        assert manager.recv(100) == b"READY=1\nSTATUS=fine"
    systemd.notify("READY=1")  # nobody listens any more
    monkeypatch.setenv("NOTIFY_SOCKET", "vsock:2:1234")
    systemd.notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    systemd.notify("READY=1")


@pytest.mark.parametrize(
    ("limit", "pid", "expected"),
    [
        ("", "", None),
        ("3000000", "", 1.0),
        ("3000000", "self", 1.0),
        ("3000000", "1", None),
        ("soon", "", None),
    ],
)
def test_the_watchdog_is_for_whom_it_names(
    monkeypatch: pytest.MonkeyPatch, limit: str, pid: str, expected: float | None
) -> None:
    """The limit counts for us only if it names us or nobody; it is met three times over."""
    monkeypatch.setenv("WATCHDOG_USEC", limit)
    monkeypatch.setenv("WATCHDOG_PID", str(systemd.os.getpid()) if pid == "self" else pid)
    assert systemd.watchdog_every_s() == expected


def test_a_gateway_whose_watch_has_died_is_not_fed(
    start_gateway: Callable[..., RunningGateway], manager: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a worker's keeper ends by a defect, the watchdog goes hungry and systemd restarts us."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    gateway = start_gateway(**FAKE)
    manager.wait_for("WATCHDOG=1")
    replica = next(iter(gateway.gateway.service.models)).engine.replicas[0]
    watcher: Any = replica._watcher
    gateway.loop.call_soon_threadsafe(watcher.cancel)
    while not watcher.done():
        time.sleep(0.01)
    time.sleep(0.3)  # what was on its way
    manager.socket.settimeout(0.01)
    with contextlib.suppress(TimeoutError):
        while True:
            manager.socket.recv(4096)
    manager.socket.settimeout(0.8)  # four times as long as between two messages

    with pytest.raises(TimeoutError):
        manager.socket.recv(4096)
    gateway.stop()


def test_the_port_stays_open_for_the_grace(start_gateway: Callable[..., RunningGateway]) -> None:
    """An idle gateway refuses for `drain_grace_s`, also new connections, and ends with 0."""
    gateway = start_gateway(**FAKE, drain_grace_s=5)
    gateway.loop.call_soon_threadsafe(gateway.gateway.stop)
    while gateway.gateway.lifecycle.phase != "draining":
        time.sleep(0.01)
    with gateway.client() as http:  # connects anew
        answer = http.post("/v1/embeddings", json=EMBED)
        assert (answer.status_code, answer.headers["connection"]) == (503, "close")
        assert http.get("/readyz").status_code == 503
        assert http.get("/livez").status_code == 200
    assert gateway.stop() == 0
    with pytest.raises(httpx.ConnectError), gateway.client() as http:
        http.get("/livez")


@pytest.mark.process
def test_a_second_signal_ends_it_now(start: Callable[..., Server]) -> None:
    """After a second SIGTERM, nobody waits for the requests that are still running."""
    server = start("--request-timeout-s", "3600", "--drain-timeout-s", "3600")
    server.wait_for("ready")
    with socket.create_connection(
        tuple(server.url.removeprefix("http://").split(":")), timeout=60
    ) as hanging:  # type: ignore[arg-type]
        body = b'{"model":"fake","input":"fault-hang"}'
        hanging.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
            + body
        )
        until = time.monotonic() + 30
        while httpx.get(server.url + "/stats").json()["models"]["fake"]["queued_tokens"] == 0:
            assert time.monotonic() < until
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("draining")
        time.sleep(1.5)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0


@pytest.mark.process
def test_sigterm_while_loading_ends_it(start: Callable[..., Server]) -> None:
    """A model that takes for ever to load does not keep the gateway from stopping."""
    server = start(
        "--engine-args", "{load_s: 3600}", "--drain-grace-s", "600", "--drain-timeout-s", "600"
    )
    server.wait_for("loading")
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0


def kill_for_good(gateway: RunningGateway, model: str) -> None:
    """Kill every worker of a model as soon as it is loaded, until no more are started."""
    killed: list[Any] = []
    while len(killed) <= DEATHS_ALLOWED:
        wait_until(lambda: gateway.workers[model, 0] not in killed)
        killed.append(gateway.workers[model, 0])
        killed[-1].kill()


def test_without_a_model_the_gateway_ends(
    start_gateway: Callable[..., RunningGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the last model has died too often the gateway ends, so that systemd hears of it."""
    monkeypatch.setattr("embedding_service.engine.replica.BACKOFF_S", (0.0, 0.0, 0.0))
    gateway = start_gateway(**FAKE)
    kill_for_good(gateway, "fake")
    gateway.wait_ended()
    assert isinstance(gateway.error, NoModelLeft)
    assert gateway.error.exit_code == 5
    assert "no model is left" in str(gateway.error)


def test_one_dead_model_leaves_the_others(
    start_gateway: Callable[..., RunningGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that keeps dying is a 503 for itself alone; the gateway stays ready."""
    monkeypatch.setattr("embedding_service.engine.replica.BACKOFF_S", (0.0, 0.0, 0.0))
    sound = {"model_name": "sound", "gpu_memory_utilization": 0.2}
    dying = {**sound, "model_name": "dying"}
    gateway = start_gateway(engine="fake", port=0, models=[sound, dying])
    model = gateway.gateway.service.models.get("dying")
    assert model is not None
    gateway.wait_loaded()
    kill_for_good(gateway, "dying")
    wait_until(lambda: model.engine.dead)
    with gateway.client() as http:
        answer = http.post("/v1/embeddings", json={"model": "dying", "input": "w1"})
        assert answer.status_code == 503
        assert (
            http.post("/v1/embeddings", json={"model": "sound", "input": "w1"}).status_code == 200
        )
        assert http.get("/readyz").status_code == 200
        assert http.get("/readyz?model=dying").status_code == 503
    assert gateway.stop() == 0


@pytest.mark.process
def test_a_reload_while_loading_is_not_ready(
    start: Callable[..., Server], manager: Systemd
) -> None:
    """SIGHUP before the models are loaded does not make systemd believe that they are."""
    server = start("--engine-args", "{load_s: 3}", NOTIFY_SOCKET=str(manager.path))
    server.wait_for("loading")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("reloaded")
    manager.wait_for("READY=1")
    assert httpx.get(server.url + "/readyz").status_code == 200
    assert [each for each in manager.heard if each.startswith("READY")] == [
        "READY=1\nSTATUS=serving"
    ]


def test_an_optional_model_that_cannot_be_loaded_is_let_go(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """It is told to be missing and not to be loading, holds no process, and the others are served."""
    sound = {"model_name": "sound", "gpu_memory_utilization": 0.2}
    wrong = {**sound, "model_name": "wrong", "expected_dimension": 7, "replicas": 2}
    gateway = start_gateway(engine="fake", port=0, models=[sound, wrong])
    model = gateway.gateway.service.models.get("wrong")
    assert model is not None
    wait_until(lambda: model.engine.dead)
    with gateway.client() as http:
        answer = http.post("/v1/embeddings", json={"model": "wrong", "input": "w1"})
        assert answer.status_code == 503
        assert "could not be loaded" in answer.json()["error"]["message"]
        assert (
            http.post("/v1/embeddings", json={"model": "sound", "input": "w1"}).status_code == 200
        )
    left = [worker for (name, _), worker in gateway.workers.items() if name == "wrong"]
    assert left
    wait_until(lambda: not any(worker.thread.is_alive() for worker in left))
    assert gateway.stop() == 0

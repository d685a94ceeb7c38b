"""Real gateways with the fake engine behind a real nginx as shipped, and load for them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import httpx

from tests.deploy.tools import DEPLOY, ROOT, free_ports, program, replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

SHIPPED = DEPLOY / "nginx" / "embedding-service.conf"
SERVERS = "    server 127.0.0.1:8890 max_fails=0;\n    server 127.0.0.1:8891 max_fails=0;\n"
STATE = "    server 127.0.0.1:8890 max_fails=0; # keeps the state\n"
START_S = 120  # a generous limit on waits; nothing here is judged by its speed


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Return once `condition` holds."""
    until = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < until, f"waited in vain: {what}"
        time.sleep(0.02)


class Instance:
    """One gateway process on a port that it keeps over restarts."""

    def __init__(self, port: int, log: Path, flags: Sequence[str]) -> None:
        self.port = port
        self._log = log
        self._flags = ["--model-name", "fake", "--engine", "fake", "--cache-max-bytes", "0", *flags]
        self.start()

    def start(self) -> None:
        """Start the process; `wait_ready` waits for it."""
        command = [
            sys.executable,
            "-m",
            "embedding_service",
            "serve",
            "--port",
            str(self.port),
            *self._flags,
        ]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        """Return once the gateway answers 200 to `/readyz`."""

        def ready() -> bool:
            assert self.process.poll() is None, self._log.read_text()[-2000:]
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"http://127.0.0.1:{self.port}/readyz").status_code == 200
            return False

        wait_until(ready, f"the gateway on port {self.port}")

    def end(self, number: signal.Signals) -> int:
        """Send a signal; return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(START_S)


def run_instances(folder: Path, *flags: str) -> list[Instance]:
    """Run three gateways with the given flags, and wait until they are ready."""
    instances = [Instance(port, folder / f"{port}.log", flags) for port in free_ports(3)]
    for instance in instances:
        instance.wait_ready()
    return instances


@dataclass
class Proxy:
    """A running nginx with the shipped configuration."""

    port: int
    log: Path
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(START_S)

    def client(self, **options: Any) -> httpx.Client:
        """Return an HTTP client for it."""
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=START_S, **options)

    def raw(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send bytes that no HTTP client would; return status, headers and body of the answer."""
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=START_S) as connection,
            connection.makefile("rb") as answer,
        ):
            connection.sendall(data)
            first, *lines = [line.decode().strip() for line in iter(answer.readline, b"\r\n")]
            headers = dict(line.lower().split(": ", 1) for line in lines)
            return int(first.split()[1]), headers, answer.read(int(headers["content-length"]))

    def logged(self, request_id: str) -> str:
        """Return the access log's line of a request."""

        def lines() -> list[str]:
            return [
                line
                for line in self.log.read_text().splitlines()
                if line.endswith(f"id={request_id}")
            ]

        wait_until(lambda: bool(lines()), f"a log line of {request_id}")
        return lines()[0]


def run_nginx(folder: Path, ports: Sequence[int], changes: dict[str, str] | None = None) -> Proxy:
    """Run the shipped configuration over the given ports, changed where a test says so."""
    (port,) = free_ports(1)
    ours = {
        SERVERS: "".join(f"    server 127.0.0.1:{each} max_fails=0;\n" for each in ports),
        STATE: "".join(f"    server 127.0.0.1:{each} max_fails=0;\n" for each in ports),
        "listen 80;": f"listen 127.0.0.1:{port};",
        "listen [::]:80;": "",
        "/var/log/nginx/embedding-service.log": str(folder / "access.log"),
    }
    (folder / "site.conf").write_text(replaced(SHIPPED.read_text(), {**ours, **(changes or {})}))
    temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    (folder / "nginx.conf").write_text(
        f"{'user root;' if os.geteuid() == 0 else ''} daemon off; pid {folder}/pid; error_log {folder}/error.log;\n"
        "worker_processes 2; events { worker_connections 1024; }\n"
        f"http {{ {' '.join(f'{name}_temp_path {folder}/{name};' for name in temporary)} include site.conf; }}\n"
    )
    command = [
        program("nginx", "nginx"),
        "-e",
        str(folder / "error.log"),
        "-c",
        str(folder / "nginx.conf"),
    ]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "[warn]" not in checked.stderr, checked.stderr
    proxy = Proxy(port, folder / "access.log", subprocess.Popen(command))

    def listening() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        return False

    wait_until(listening, "nginx")
    return proxy


@dataclass
class Load:
    """Six clients that ask again `pause_s` after each answer, and what became of their requests."""

    proxy: Proxy
    pause_s: float = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(6)]
        for thread in self._threads:
            thread.start()
        self.go_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(START_S)
            assert not thread.is_alive()

    def go_on(self, requests: int = 60) -> None:
        """Return after this many more requests."""
        enough = self.outcomes.total() + requests
        wait_until(lambda: self.outcomes.total() >= enough, "the load to go on")

    def _ask(self, number: int) -> None:
        with self.proxy.client() as client:
            for turn in range(1_000_000):
                if self._stop.wait(self.pause_s):
                    return
                texts = [f"w{number} w{turn % 4900} w{i}" for i in range(4)]
                outcome = self._outcome(client, texts)
                self.outcomes[outcome.partition(":")[0]] += 1
                if not outcome.startswith(("answered", "cut")):
                    self.failures.append(outcome)

    @staticmethod
    def _outcome(client: httpx.Client, texts: list[str]) -> str:
        started = False
        try:
            with client.stream(
                "POST", "/v1/embeddings", json={"model": "fake", "input": texts}
            ) as answer:
                started = answer.status_code == 200
                body = answer.read()
        except httpx.TransportError as error:
            return "cut" if started else f"failed: {error!r}"
        if not started:
            return f"failed: {answer.status_code} {body[:300]!r}"
        return (
            "answered"
            if len(json.loads(body)["data"]) == len(texts)
            else "failed: an incomplete answer"
        )

    def kill(self, instance: Instance) -> None:
        """Kill one, and start it again under load."""
        instance.end(signal.SIGKILL)
        self.go_on()
        instance.start()
        instance.wait_ready()
        self.go_on()

    def roll(self, *instances: Instance) -> None:
        """Drain and restart one after another under load."""
        for instance in instances:
            assert instance.end(signal.SIGTERM) == 0
            instance.start()
            instance.wait_ready()
            self.go_on()

"""A real redis-server of a test's own, which can be frozen, killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest
import redis

from tests.child import wait_until

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = shutil.which("redis-server")


def require(program: str) -> None:
    """Skip the test where a program is missing; fail where it has to be there."""
    if shutil.which(program) is None:
        say = pytest.fail if os.environ.get("REQUIRE_SERVERS") == "1" else pytest.skip
        say(f"{program} is not installed (Debian: apt-get install {program.removesuffix('-server')})")


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class RedisServer:
    """One redis-server on a free port, or with TLS there; nothing is written to disk."""

    def __init__(self, folder: Path, *, password: str = "", certificate: Path | None = None) -> None:
        require("redis-server")
        self.folder, self.password, self.port = folder, password, free_port()
        self.tls = certificate is not None
        where = ["--port", str(self.port)]
        if certificate is not None:
            files = ["--tls-cert-file", certificate, "--tls-key-file", certificate, "--tls-ca-cert-file", certificate]
            where = ["--port", "0", "--tls-port", str(self.port), *map(str, files), "--tls-auth-clients", "no"]
        self.command = ["redis-server", *where, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.command += ["--dir", str(folder), *(["--requirepass", password] if password else [])]
        options = {"ssl": True, "ssl_cert_reqs": "none"} if self.tls else {}
        self.client = redis.Redis(port=self.port, password=password or None, **options)
        self.start()

    @property
    def url(self) -> str:
        """What `redis_url` is set to."""
        secret = f":{self.password}@" if self.password else ""
        return f"redis{'s' if self.tls else ''}://{secret}127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it (again) and wait until it answers."""
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, "redis-server has ended"
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def send(self, number: int) -> None:
        """Send a signal; after SIGKILL, wait for the end."""
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait(30)

    def stop(self) -> None:
        """End it, whatever state it is in."""
        self.client.close()
        self.client.connection_pool.disconnect()
        if self.process.poll() is None:
            self.send(signal.SIGKILL)

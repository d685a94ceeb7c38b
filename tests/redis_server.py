"""A real redis-server of a test's own, which can be frozen, killed and started again."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

import redis

from tests.child import wait_until
from tests.deploy.tools import free_ports, program

if TYPE_CHECKING:
    from pathlib import Path


class RedisServer:
    """One redis-server on a free port, or with TLS there; nothing is written to disk."""

    def __init__(
        self, folder: Path, *, password: str = "", certificate: Path | None = None
    ) -> None:
        binary = program("redis-server", "redis-server")
        (self.port,) = free_ports(1)
        self.password = password
        self.tls = certificate is not None
        where = ["--port", str(self.port)]
        if certificate is not None:
            files = [
                "--tls-cert-file",
                certificate,
                "--tls-key-file",
                certificate,
                "--tls-ca-cert-file",
                certificate,
            ]
            where = [
                "--port",
                "0",
                "--tls-port",
                str(self.port),
                *map(str, files),
                "--tls-auth-clients",
                "no",
            ]
        self.command = [binary, *where, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
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
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
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

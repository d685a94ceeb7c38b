"""A gateway with real vLLM as processes, load for it, and the page with its figures."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx
import pytest

from tests.child import memory_bytes
from tests.conftest import MINILM
from tests.test_cli import ENVIRONMENT, ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aiohttp import ClientSession

REPORT = Path(os.environ.get("SOAK_REPORT", os.devnull))
BEGIN, END = "<!-- soak: begin -->", "<!-- soak: end -->"
MODEL = MINILM["model_name"]
WORDS = Path(ROOT, "LICENSE").read_text(encoding="utf-8").split()


class Server:
    """A gateway started by its command, its log in a file."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        options = {
            **{k: v for k, v in MINILM.items() if k != "port"},
            "cache_max_bytes": 0,
            "log_format": "json",
        }
        config = folder / f"config-{time.monotonic_ns()}.json"  # JSON is YAML
        config.write_text(json.dumps({**options, "port": 0, **settings}), encoding="utf-8")
        self.log_path = config.with_suffix(".log")
        with self.log_path.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "embedding_service", "serve", "--config", str(config)],
                cwd=ROOT,
                env=ENVIRONMENT,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        self.url = "http://" + self.wait_for("listening")["address"]

    def events(self) -> list[dict[str, Any]]:
        """Return the log so far."""
        lines = self.log_path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def wait_for(self, event: str, seconds: float = 240) -> dict[str, Any]:
        """Return the first log line about `event`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for entry in self.events():
                if entry["event"] == event:
                    return entry
            assert self.process.poll() is None, self.log_path.read_text(encoding="utf-8")[-2000:]
            time.sleep(0.02)
        raise AssertionError(f"nothing was logged about {event!r}")

    def ready(self) -> bool:
        """Ask `/readyz`."""
        return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200

    def until_ready(self, *, ready: bool = True, seconds: float = 120) -> float:
        """Return after how many seconds `/readyz` says so."""
        began = time.monotonic()
        while self.ready() is not ready:
            assert time.monotonic() - began < seconds
            time.sleep(0.01)
        return time.monotonic() - began

    def children(self) -> list[int]:
        """Return the process ids of the workers."""
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(
            encoding="ascii"
        )
        return [int(pid) for pid in text.split()]

    def memory(self) -> int:
        """Return what the gateway has allocated in bytes, its workers not included."""
        return memory_bytes(self.process.pid)

    def descriptors(self) -> int:
        """Return how many files and sockets the gateway has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def tasks(self) -> int:
        """Return how many tasks the gateway's event loop has, one of them for this question."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        return int(float(re.search(r"^embedding_asyncio_tasks (.+)$", text, re.MULTILINE)[1]))  # type: ignore[index]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Return a function that starts a gateway and waits until it is ready."""
    started: list[Server] = []
    folder = tmp_path_factory.mktemp("soak")

    def start(*, wait: bool = True, **settings: Any) -> Server:
        started.append(Server(folder, **settings))
        if wait:
            started[-1].until_ready(seconds=300)
        return started[-1]

    yield start
    for server in started:
        server.stop(signal.SIGKILL)


@dataclass
class Load:
    """A closed loop of clients, and what came of it."""

    server: Server
    seconds_of: dict[int, list[float]] = field(default_factory=dict)
    texts: int = 0
    failed: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    _numbers: itertools.count[int] = field(
        default_factory=lambda: itertools.count(time.monotonic_ns())
    )

    def body(self, texts: int, words: int) -> bytes:
        """Return a request of texts that nobody has sent before."""
        inputs = []
        for number in itertools.islice(self._numbers, texts):
            first = number % (len(WORDS) - words)
            inputs.append(f"{number} {' '.join(WORDS[first : first + words])}")
        return json.dumps({"model": MODEL, "input": inputs, "encoding_format": "base64"}).encode()

    async def client(
        self,
        session: ClientSession,
        until: float,
        *,
        texts: int,
        words: int,
        bodies: list[bytes] | None = None,
    ) -> None:
        """Send one request after another."""
        prepared = itertools.cycle(bodies) if bodies else None
        while time.monotonic() < until:
            body = next(prepared) if prepared else self.body(texts, words)
            began = time.monotonic()
            try:
                status = await post(session, self.server.url, body)
            except aiohttp.ClientError as error:
                self.failed.append(repr(error))
                continue
            self.count(status, began, texts)

    def count(self, status: int, began: float, texts: int) -> None:
        """Count one answer."""
        self.ended = time.monotonic()
        self.seconds_of.setdefault(status, []).append(self.ended - began)
        if status == 200:
            self.texts += texts

    @property
    def texts_per_s(self) -> float:
        """Return what was computed in a second, up to the last answer."""
        return self.texts / (self.ended - self.began)

    async def run(
        self, seconds: float, *, clients: int, texts: int, words: int = 40, **options: Any
    ) -> Load:
        """Run the loop."""
        until = time.monotonic() + seconds
        async with session() as http, asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self.client(http, until, texts=texts, words=words, **options))
        return self

    def median_ms(self, status: int = 200) -> float:
        """Return the median time of answers with this status."""
        return 1000 * statistics.median(self.seconds_of[status])


def session() -> ClientSession:
    """Return a client whose connections are not counted."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=300),
        raise_for_status=False,
    )


async def post(http: ClientSession, url: str, body: bytes) -> int:
    """Send one request; return its status once the answer is complete."""
    headers = {"content-type": "application/json"}
    async with http.post(f"{url}/v1/embeddings", data=body, headers=headers) as answer:
        await answer.read()
        return answer.status


_ROWS: list[tuple[str, str, str, str]] = []


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[str, str, str], None]:
    """Return a function that notes a promise, its bar and what was reached."""

    def note(promise: str, bar: str, reached: str) -> None:
        print(f"\n{promise}: {reached} (bar: {bar})")  # noqa: T201
        _ROWS.append((promise, bar, reached, request.node.nodeid.removeprefix("tests/soak/")))

    return note


def pytest_sessionfinish() -> None:
    """Write the figures between the page's marks, in place of those of an earlier run."""
    if not _ROWS or not REPORT.is_file():
        return
    before, _, rest = REPORT.read_text(encoding="utf-8").partition(BEGIN)
    table, _, after = rest.partition(END)
    ran = {f"`{test}`" for _, _, _, test in _ROWS}
    kept = [
        line
        for line in table.splitlines()
        if line.startswith("| ") and line.split(" | ")[-1].rstrip(" |") not in ran
    ]
    lines = [
        f"| {promise} | {bar} | {reached} | `{test}` |" for promise, bar, reached, test in _ROWS
    ]
    where = f"{os.cpu_count()} cores of {_processor()}, no GPU, MiniLM in vLLM; last run on {time.strftime('%Y-%m-%d')}."
    head = ["| promise | bar | reached | shown by (under `tests/soak/`) |", "|---|---|---|---|"]
    body = sorted(dict.fromkeys([*kept[1:], *lines]), key=lambda line: line.split(" | ")[-1])
    page = [before + BEGIN, where, "", *head, *body, END + after]
    REPORT.write_text("\n".join(page), encoding="utf-8")


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return f"a shared {found[1] if found else platform.machine()}"

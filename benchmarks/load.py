"""The load: a closed loop of clients on kept connections, each sending a request after another."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import itertools
import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

HEADERS = {"content-type": "application/json"}


@dataclass(frozen=True)
class Cell:
    """One kind of work."""

    clients: int
    size: int  # texts of a request
    tokens: int = 50
    encoding: str = "base64"

    @classmethod
    def parse(cls, text: str) -> Cell:
        """Read CLIENTSxTEXTS[xTOKENS][:float]."""
        numbers, _, encoding = text.partition(":")
        return cls(*map(int, numbers.split("x")), encoding=encoding or "base64")

    def __str__(self) -> str:
        extra = ", floats" if self.encoding == "float" else ""
        return f"{self.clients} x {self.size}, {self.tokens} tokens{extra}"

    def bodies(self, texts: list[str], model: str) -> list[bytes]:
        """Return the requests that carry these texts."""
        fixed = {"model": model, "encoding_format": self.encoding}
        groups = (texts[i : i + self.size] for i in range(0, len(texts), self.size))
        return [orjson.dumps(fixed | {"input": group}) for group in groups]


@dataclass(frozen=True)
class Sample:
    """The figures of one run of a cell."""

    texts_per_s: float
    p50_ms: float
    load_share: float  # of a core, taken by this program


class Window:
    """The part of a load that counts, without beginning and end: from one answer to another, `seconds` or a
    little more later.

    The first is the next one after every client could have had an answer, and a second more.
    Servers answer a step's texts at once, so both are, but for chance, the first of their step: the
    steps between them are counted whole.
    """

    SETTLING_S = 1.0

    def __init__(self, clients: int, seconds: float) -> None:
        self._clients = clients
        self._seconds = seconds
        self._opens = math.inf
        self._answers = 0
        self._first: float | None = None
        self._last = math.inf
        self._took: list[float] = []

    @property
    def over(self) -> bool:
        return self._last < math.inf

    def answered(self, now: float, took: float) -> None:
        """An answer came at `now`, `took` seconds after its request."""
        self._answers += 1
        if self._answers == self._clients:
            self._opens = now + self.SETTLING_S
        if self.over or now < self._opens:
            return
        if self._first is None:
            self._first = now
            return
        self._took.append(took)
        if now >= self._first + self._seconds:
            self._last = now

    @property
    def requests_per_s(self) -> float:
        assert self._first is not None
        return len(self._took) / (self._last - self._first)

    @property
    def p50_s(self) -> float:
        return statistics.median(self._took)


async def run(url: str, bodies: list[bytes], cell: Cell, seconds: float) -> Sample:
    """Send the bodies in turn, again and again, until `seconds` were counted."""
    window = Window(cell.clients, seconds)
    began, cpu = time.perf_counter(), time.process_time()
    await send(
        url,
        itertools.takewhile(lambda _: not window.over, itertools.cycle(bodies)),
        cell,
        window.answered,
    )
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    return Sample(window.requests_per_s * cell.size, window.p50_s * 1000, cpu / took)


async def send(
    url: str,
    bodies: Iterable[bytes],
    cell: Cell,
    answered: Callable[[float, float], None] = lambda *_: None,
) -> None:
    """Send each body once, or fail; `answered` gets each answer's time and duration."""
    if cell.clients == 1:
        await asyncio.to_thread(_send_alone, url, bodies, answered)
        return
    waiting = iter(bodies)

    async def client(session: aiohttp.ClientSession) -> None:
        for body in waiting:
            began = time.perf_counter()
            async with session.post(url, data=body, headers=HEADERS) as response:
                answer = await response.read()
                assert response.status == 200, answer[:300]
            answered(now := time.perf_counter(), now - began)

    timeout = aiohttp.ClientTimeout(total=3600)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=timeout
    ) as session:
        await asyncio.gather(*(client(session) for _ in range(cell.clients)))


def _send_alone(
    url: str, bodies: Iterable[bytes], answered: Callable[[float, float], None]
) -> None:
    """One client needs no event loop, which adds a millisecond to what it measures."""
    parts = urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(parts.netloc, timeout=3600)) as connection:
        for body in bodies:
            began = time.perf_counter()
            connection.request("POST", parts.path, body, HEADERS)
            response = connection.getresponse()
            answer = response.read()
            assert response.status == 200, answer[:300]
            answered(now := time.perf_counter(), now - began)


async def vectors(url: str, texts: list[str], model: str, encoding: str) -> np.ndarray:
    """Return the texts' vectors (texts, dimension), normalised."""
    async with aiohttp.ClientSession() as session:
        (body,) = Cell(1, len(texts), encoding=encoding).bodies(texts, model)
        async with session.post(url, data=body, headers=HEADERS) as response:
            answer = orjson.loads(await response.read())
            assert response.status == 200, answer
    found = [item["embedding"] for item in answer["data"]]
    rows = [
        np.frombuffer(base64.b64decode(v), "<f4") if isinstance(v, str) else np.asarray(v)
        for v in found
    ]
    stacked = np.stack(rows).astype(np.float64)
    return stacked / np.linalg.norm(stacked, axis=1, keepdims=True)

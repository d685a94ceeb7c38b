"""The load: a closed loop of clients that keep their connections, each sending one request after another."""

from __future__ import annotations

import asyncio
import base64
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
import numpy as np
import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    """What one run of a cell gave."""

    texts_per_s: float
    p50_ms: float
    load_share: float  # of a core, taken by this program


async def run(url: str, bodies: list[bytes], cell: Cell) -> Sample:
    """Send each body once; fails on any answer but 200."""
    times: list[float] = []
    waiting = iter(bodies)

    async def client(session: aiohttp.ClientSession, bodies: Iterator[bytes]) -> None:
        for body in bodies:
            began = time.perf_counter()
            async with session.post(url, data=body, headers=HEADERS) as response:
                answer = await response.read()
                assert response.status == 200, answer[:300]
            times.append(time.perf_counter() - began)

    timeout = aiohttp.ClientTimeout(total=3600)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(client(session, waiting) for _ in range(cell.clients)))
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
    return Sample(len(bodies) * cell.size / took, statistics.median(times) * 1000, cpu / took)


async def vectors(url: str, texts: list[str], model: str, encoding: str) -> np.ndarray:
    """Return the texts' vectors (texts, dimension), normalised."""
    async with aiohttp.ClientSession() as session:
        (body,) = Cell(1, len(texts), encoding=encoding).bodies(texts, model)
        async with session.post(url, data=body, headers=HEADERS) as response:
            answer = orjson.loads(await response.read())
            assert response.status == 200, answer
    found = [item["embedding"] for item in answer["data"]]
    rows = [np.frombuffer(base64.b64decode(v), "<f4") if isinstance(v, str) else np.asarray(v) for v in found]
    stacked = np.stack(rows).astype(np.float64)
    return stacked / np.linalg.norm(stacked, axis=1, keepdims=True)

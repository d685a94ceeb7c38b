"""A worker's memory over requests of all lengths."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests.child import memory_bytes
from tests.soak.conftest import MODEL, WORDS, post, session

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.soak.conftest import Server

pytestmark = [pytest.mark.engine, pytest.mark.soak]

REQUESTS = 10_000
PARTS = 5


async def test_a_worker_does_not_grow_with_the_variety_of_lengths(
    serve: Callable[..., Server], record: Callable[[str, str, str], None]
) -> None:
    """oneDNN keeps what it compiled for a number of tokens; that is bounded, whatever comes."""
    server, choose = serve(), random.Random(7)
    (worker,) = server.children()
    sizes = [memory_bytes(worker)]
    async with session() as http:
        for number in range(1, REQUESTS + 1):
            texts = [
                " ".join(choose.choices(WORDS, k=choose.randint(1, 200)))
                for _ in range(choose.choice([1, 1, 1, 2, 3]))
            ]
            body = json.dumps({"model": MODEL, "input": texts, "truncate": "right"}).encode()
            assert await post(http, server.url, body) == 200
            if number % (REQUESTS // PARTS) == 0:
                sizes.append(memory_bytes(worker))
    server.stop()
    megabytes = [size >> 20 for size in sizes]
    record(
        f"A worker's memory over {REQUESTS:,} requests of random lengths, in MB after every "
        f"{REQUESTS // PARTS:,}",
        "< 2 % more in each part of the second half",
        f"{megabytes[0]} at first, then {', '.join(map(str, megabytes[1:]))}",
    )
    grown = [later / earlier - 1 for earlier, later in pairwise(sizes)]
    assert max(grown[2:]) < 0.02, megabytes

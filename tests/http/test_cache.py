"""The cache seen from outside: the same numbers, sooner, and told in a header."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.conftest import FAKE, RunningGateway

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_second_request_is_answered_from_the_cache(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """Cached vectors come back equal, also cut shorter, and `x-cache` counts the hits."""
    gateway = start_gateway(**FAKE, cache_max_bytes=1 << 20, matryoshka=True)
    replica = next(iter(gateway.gateway.service.models)).engine.replicas[0]
    with gateway.client() as http:
        request = {"model": "fake", "input": ["w1", "w2 w3", "w1"]}
        first = http.post("/v1/embeddings", json=request)
        assert "x-cache" not in first.headers
        second = http.post("/v1/embeddings", json={**request, "input": ["w2 w3", "w9"]})
        assert second.headers["x-cache"] == "1/2"
        assert second.json()["data"][0]["embedding"] == first.json()["data"][1]["embedding"]
        short = http.post("/v1/embeddings", json={**request, "dimensions": 8})
        assert short.headers["x-cache"] == "3/3"
        assert len(short.json()["data"][0]["embedding"]) == 8
        assert short.json()["usage"] == first.json()["usage"]
    assert replica.outstanding_tokens == 0


def test_stats_and_clear(
    start_gateway: Callable[..., RunningGateway], fake: RunningGateway
) -> None:
    """The cache tells what it holds and can be emptied; where it is off, it says so."""
    gateway = start_gateway(**FAKE, cache_max_bytes=1 << 20)
    with gateway.client() as http:
        http.post("/v1/embeddings", json={"model": "fake", "input": ["w1", "w2"]})
        http.post("/v1/embeddings", json={"model": "fake", "input": "w1"})
        stats = http.get("/cache/stats").json()
        assert (stats["enabled"], stats["current_size"], stats["hits"], stats["misses"]) == (
            True,
            2,
            1,
            2,
        )
        assert 0 < stats["bytes"] <= stats["max_bytes"]
        assert http.post("/cache/clear").json()["cleared"] == 2
        assert http.get("/cache/stats").json()["current_size"] == 0
        assert (
            "x-cache"
            not in http.post("/v1/embeddings", json={"model": "fake", "input": "w1"}).headers
        )
    with fake.client() as http:
        assert http.get("/cache/stats").json()["enabled"] is False
        assert http.post("/cache/clear").json()["cleared"] == 0


def test_broken_numbers_are_computed_again(start_gateway: Callable[..., RunningGateway]) -> None:
    """A result that is not finite is refused each time, never served from the cache."""
    gateway = start_gateway(**FAKE, cache_max_bytes=1 << 20)
    with gateway.client() as http:
        for _ in range(2):
            answer = http.post("/v1/embeddings", json={"model": "fake", "input": "w1 fault-nan"})
            assert answer.status_code == 500
            assert "not finite" in answer.json()["error"]["message"]

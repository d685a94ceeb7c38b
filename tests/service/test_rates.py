"""Rates: taken whole or not at all, given back for failed work, counted for each apart."""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from typing import Any

import pytest

from embedding_service.errors import RateLimited
from embedding_service.service.rates import BoundedMemory, Rates, TokenBudget, over_limit
from embedding_service.settings.gateway import Settings
from embedding_service.telemetry import Metrics
from embedding_service.types import ANYONE, Tenant

NOON = 1_800_014_400.0  # a whole number of hours


class Clock:
    """The time of day, which passes when told to."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the time that all counters go by."""
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


def rates(memory: BoundedMemory | None = None, **settings: Any) -> Rates:
    return Rates(Settings(engine="fake", **settings), Metrics(), memory=memory)


async def test_a_rate_is_used_up(clock: Clock) -> None:
    """So much is allowed and no more, and each window tells limit, rest and when it turns."""
    metrics = Metrics()
    kept = Rates(Settings(engine="fake"), metrics)
    clock.now += 15
    windows = [await kept.take("requests", "a", "3/minute", 1) for _ in range(4)]
    assert [window.allowed for window in windows] == [True, True, True, False]
    assert [window.remaining for window in windows] == [2, 1, 0, 0]
    assert {window.limit for window in windows} == {3}
    assert [window.reset_s for window in windows] == pytest.approx([45] * 4)
    name, labels = "embedding_rate_limited_total", {"limit": "requests"}
    assert metrics.registry.get_sample_value(name, labels) == 1


async def test_all_or_nothing(clock: Clock) -> None:
    """A request that does not fit takes nothing away from those that would."""
    kept = rates()
    assert not (await kept.take("tokens", "a", "10/minute", 11)).allowed
    assert (await kept.take("tokens", "a", "10/minute", 4)).remaining == 6
    assert not (await kept.take("tokens", "a", "10/minute", 7)).allowed
    assert (await kept.take("tokens", "a", "10/minute", 6)).remaining == 0


@pytest.mark.parametrize(
    ("rate", "seconds"),
    [
        ("4/second", 1),
        ("4/minute", 60),
        ("4 / 2 minutes", 120),
        ("4 per minute", 60),
        ("4/hour", 3600),
        ("4/day", 86400),
    ],
)
async def test_it_comes_back(clock: Clock, rate: str, seconds: int) -> None:
    """A used rate slides back: none before the window turns, half half a window later."""
    kept = rates()
    begin = clock.now - clock.now % seconds
    clock.now = begin
    assert (await kept.take("requests", "a", rate, 4)).allowed
    clock.now = begin + 0.99 * seconds
    assert not (await kept.take("requests", "a", rate, 1)).allowed
    clock.now = begin + 1.5 * seconds
    assert (await kept.take("requests", "a", rate, 2)).allowed
    assert not (await kept.take("requests", "a", rate, 1)).allowed
    clock.now = begin + 4 * seconds
    assert (await kept.take("requests", "a", rate, 4)).allowed


async def test_everybody_has_his_own(clock: Clock) -> None:
    """Callers, kinds and rates are counted apart."""
    kept = rates()
    for kind, who, rate in (
        ("requests", "key:a", "1/minute"),
        ("requests", "key:b", "1/minute"),
        ("tokens", "key:a", "1/minute"),
        ("requests", "key:a", "1/hour"),
        ("requests", "key:a/v1/rerank", "1/minute"),
    ):
        assert (await kept.take(kind, who, rate, 1)).allowed
        assert not (await kept.take(kind, who, rate, 1)).allowed


async def test_what_is_given_back_can_be_taken_again(clock: Clock) -> None:
    """Giving back restores exactly what was taken, while the window lasts."""
    kept = rates()
    taken = await kept.take("tokens", "a", "10/minute", 10)
    clock.now += 59
    await kept.give_back(taken, 7)
    assert not (await kept.take("tokens", "a", "10/minute", 8)).allowed
    assert (await kept.take("tokens", "a", "10/minute", 7)).remaining == 0


async def test_nothing_is_given_back_to_another_window(clock: Clock) -> None:
    """Work that fails after its window has turned opens no more than the rate in the next."""
    kept = rates()
    taken = await kept.take("tokens", "a", "10/minute", 10)
    clock.now += 119
    await kept.give_back(taken, 10)
    assert not (await kept.take("tokens", "a", "10/minute", 11)).allowed
    assert (await kept.take("tokens", "a", "10/minute", 10)).remaining == 0


@pytest.mark.parametrize("limit", [1, 3, 10, 1000])
async def test_when_it_fits_is_said_exactly(clock: Clock, limit: int) -> None:
    """A refused cost fits at the moment that was told, and not a hundredth of a second before."""
    choose, told, kept = random.Random(limit), 0, rates()
    for number in range(200):
        rate, cost = f"{limit}/minute", choose.randint(1, limit)
        clock.now = NOON + 3600 * number
        for _ in range(4):
            await kept.take("tokens", "a", rate, choose.randint(1, limit))
            clock.now += choose.uniform(0, 40)
        if not (window := await kept.take("tokens", "a", rate, cost)).allowed:
            told += 1
            clock.now += window.retry_after_s - 0.01
            assert not (await kept.take("tokens", "a", rate, cost)).allowed
            clock.now += 0.02
            assert (await kept.take("tokens", "a", rate, cost)).allowed
    assert told > 20


class Counting(OrderedDict[str, float]):
    """Counts how often it is looked into."""

    looks = 0

    def __getitem__(self, key: str) -> float:
        Counting.looks += 1
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        Counting.looks += 1
        return super().get(key, default)


async def test_a_hit_costs_the_same_however_many_there_are(clock: Clock) -> None:
    """A hit's work does not grow with the addresses, and expired ones are forgotten."""
    memory = BoundedMemory()
    memory.expirations = Counting()
    kept = rates(memory)

    async def looks_of_a_hit() -> int:
        Counting.looks = 0
        await kept.take("requests", "a", "5/minute", 1)
        for _ in range(3):
            await asyncio.sleep(0)  # for a task that would look through them beside the request
        return Counting.looks

    few = await looks_of_a_hit()
    for number in range(2000):
        await kept.take("requests", f"address:{number}", "5/minute", 1)
    assert 0 < few <= await looks_of_a_hit() <= few + 10
    clock.now += 120
    for number in range(2000):
        await kept.take("requests", f"later:{number}", "5/minute", 1)
    assert not [key for key in memory.storage if "address" in key]


async def test_counters_are_bounded(clock: Clock) -> None:
    """However many addresses ask, counters are bounded, and a forgotten one opens no debt."""
    memory = BoundedMemory(most=50)
    kept = rates(memory)
    taken = await kept.take("tokens", "a", "10/minute", 8)
    for number in range(500):
        window = await kept.take("tokens", f"address:{number}", "10/minute", 10)
        assert (window.allowed, window.remaining) == (True, 0)
        assert not (await kept.take("tokens", f"address:{number}", "10/minute", 1)).allowed
        assert len(memory.storage) == len(memory.expirations) == min(number + 2, 50)
    await kept.give_back(taken, 8)
    assert not (await kept.take("tokens", "a", "10/minute", 11)).allowed
    assert (await kept.take("tokens", "a", "10/minute", 10)).remaining == 0


def test_whose_rate_applies() -> None:
    """A key's own rate goes first, then the path's, then everybody's; without any there is none."""
    kept = rates(rate_limit_requests="5/minute", rate_limit_paths={"/v1/rerank": "1/minute"})
    own = Tenant("own", None, "9/minute", "90/minute")
    assert kept.requests(ANYONE, "/v1/embeddings") == "5/minute"
    assert kept.requests(own, "/v1/embeddings") == "9/minute"
    assert kept.requests(own, "/v1/rerank") == "9/minute"
    assert kept.requests(ANYONE, "/v1/rerank") == "1/minute"
    assert (kept.tokens(own), kept.tokens(ANYONE)) == ("90/minute", None)
    assert rates(rate_limit_tokens="7/hour").tokens(ANYONE) == "7/hour"
    assert rates().requests(ANYONE, "/v1/embeddings") is None


async def test_work_that_succeeds_is_paid(clock: Clock) -> None:
    """Tokens are gone once the block has ended well, and `last` tells what is left."""
    budget = TokenBudget(rates(), "a", "10/minute")
    assert budget.last is None
    async with budget.spend(6):
        pass
    assert budget.last is not None
    assert budget.last.remaining == 4
    with pytest.raises(RateLimited, match="4 are left"):
        async with budget.spend(5):
            pytest.fail("it was not to begin")
    async with budget.spend(4):
        pass


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, KeyboardInterrupt])
async def test_work_that_fails_is_not_paid(clock: Clock, error: type[BaseException]) -> None:
    """Whatever ends the work, an error or a client that goes away, its tokens are given back."""
    budget = TokenBudget(rates(), "a", "10/minute")
    with pytest.raises(error):
        async with budget.spend(6):
            raise error
    async with budget.spend(10):
        pass


async def test_cancelled_work_is_not_paid(clock: Clock) -> None:
    """A request that is cancelled in the middle gives its tokens back."""
    budget = TokenBudget(rates(), "a", "10/minute")

    began = asyncio.Event()

    async def work() -> None:
        async with budget.spend(10):
            began.set()
            await asyncio.sleep(3600)

    task = asyncio.create_task(work())
    await began.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with budget.spend(10):
        pass


async def test_the_error_says_when_to_come_back(clock: Clock) -> None:
    """A refused caller hears when to come back, if ever; at least a second later."""
    kept = rates()
    clock.now += 59.5
    await kept.take("tokens", "a", "10/minute", 8)
    window = await kept.take("tokens", "a", "10/minute", 5)
    error = over_limit(window, "10/minute", "tokens", 5)
    assert (error.status, error.code, error.should_retry) == (429, "rate_limit_exceeded", None)
    assert error.retry_after_s == pytest.approx(
        0.5 + 60 - 6 / 8 * 60
    )  # then 5 of the 8 still count
    assert (
        error.message
        == "rate limit of 10/minute tokens exceeded: 2 are left for now; try again later"
    )
    error = over_limit(window, "10/minute", "tokens", 11)
    assert (error.should_retry, error.retry_after_s) == (False, None)
    assert "11, which never fits" in error.message
    assert (await kept.take("tokens", "b", "1/second", 1)).allowed
    window = await kept.take("tokens", "b", "1/second", 1)
    assert window.retry_after_s == pytest.approx(0.5)
    assert over_limit(window, "1/second", "tokens", 1).retry_after_s == 1

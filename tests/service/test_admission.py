"""The gates: all or nothing, nothing leaks, and who is turned away learns when to come back."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_service.errors import InvalidRequest, Overloaded
from embedding_service.service import admission
from embedding_service.service.admission import Gate, Lease

if TYPE_CHECKING:
    from collections.abc import Callable


def test_what_is_held_comes_back() -> None:
    """An amount is held for the length of the block, and free again however the block ends."""
    gate = Gate(10, "tokens")
    with gate.admit(4), gate.admit(6):
        assert gate.held == 10
    assert gate.held == 0
    with pytest.raises(KeyError), gate.admit(10):
        raise KeyError
    assert gate.held == 0


def test_a_full_gate_is_a_429_that_holds_nothing() -> None:
    """A request that does not fit now is refused whole, with a time to come back."""
    gate = Gate(10, "tokens")
    with gate.admit(7):
        with pytest.raises(Overloaded) as caught, gate.admit(4):
            pass
        assert gate.held == 7
        assert caught.value.retry_after_s is not None
        with gate.admit(3):
            assert gate.held == 10


def test_what_can_never_fit_is_a_400() -> None:
    """A request beyond the whole limit is told so: waiting would not help; the limit fits."""
    gate = Gate(10, "tokens")
    with pytest.raises(InvalidRequest) as caught, gate.admit(11, param="texts"):
        pass
    assert caught.value.param == "texts"
    with gate.admit(10):
        pass


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=60))
def test_the_limit_is_never_passed(moves: list[tuple[bool, int]]) -> None:
    """In any order of coming and going the sum let in is held, and never over the limit."""
    gate = Gate(10, "tokens")
    inside: list[tuple[ExitStack, int]] = []
    for comes, amount in moves:
        if not comes:
            if inside:
                inside.pop(amount % len(inside))[0].close()
        else:
            stack = ExitStack()
            fits = sum(held for _, held in inside) + amount <= 10
            try:
                stack.enter_context(gate.admit(amount))
            except (Overloaded, InvalidRequest):
                assert not fits
            else:
                assert fits
                inside.append((stack, amount))
        assert gate.held == sum(held for _, held in inside) <= 10
    for stack, _ in inside:
        stack.close()
    assert gate.held == 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Stop the clock; return a function that moves it."""
    now = [1000.0]
    monkeypatch.setattr(admission.time, "monotonic", lambda: now[0])

    def pass_s(seconds: float) -> None:
        now[0] += seconds

    return pass_s


def retry_after(gate: Gate) -> float:
    with pytest.raises(Overloaded) as caught, gate.admit(gate.limit):
        pass
    assert caught.value.retry_after_s is not None
    return caught.value.retry_after_s


def test_retry_after_follows_the_speed(clock: Callable[[float], None]) -> None:
    """A slower engine sends clients away for longer, always between a second and a minute."""
    waits = []
    for seconds_per_request in (0.001, 0.1, 1.0, 10.0):
        gate = Gate(1000, "tokens")
        for _ in range(100):
            with gate.admit(100):
                clock(seconds_per_request)
        with gate.admit(1000):
            waits.append(retry_after(gate))
    assert waits == sorted(waits)
    assert waits[0] < 2
    assert waits[-1] > 10
    assert all(1 <= wait <= 60 for wait in waits)


def test_a_gate_without_history_says_a_second(clock: Callable[[float], None]) -> None:
    """Before anything was served, and long after, there is no speed to go by."""
    gate = Gate(1000, "tokens")
    with gate.admit(1000):
        assert retry_after(gate) == 1.0
    clock(1e6)
    with gate.admit(1000):
        assert 1 <= retry_after(gate) <= 60


def test_a_lease_grows_while_others_leave_room() -> None:
    """A share grows piece by piece, is refused where others hold the rest, and comes back whole."""
    gate = Gate(10, "bytes")
    one, other = Lease(gate), Lease(gate)
    one.add(4)
    other.add(4)
    one.add(2)
    with pytest.raises(Overloaded):
        other.add(1)
    assert (gate.held, one.held, other.held) == (10, 6, 4)
    one.release()
    other.add(6)
    other.release()
    assert gate.held == 0


def test_a_lease_that_is_alone_may_have_more_than_the_limit() -> None:
    """One body may be as large as bodies may be, however little there is for all of them."""
    gate = Gate(10, "bytes")
    lease = Lease(gate)
    lease.add(8)
    lease.add(8)
    assert gate.held == 16
    lease.release()
    assert gate.held == 0


def test_an_owner_leaves_as_much_as_it_takes() -> None:
    """Several requests of one owner get half, and a third beside another that does the same."""
    gate = Gate(12_000, "bytes")

    def take_all(owner: str) -> int:
        """Have an owner take as much as it gets, in many requests; return how much that is."""
        held = 0
        for _ in range(200):
            lease = Lease(gate, owner)
            with suppress(Overloaded):
                for _ in range(100):
                    lease.add(10)
            held += lease.held
        return held

    assert take_all("one") == 6000
    assert take_all("two") == 3000
    assert take_all("three") == 1500
    alone = Lease(gate, "four")
    alone.add(1500)  # a single request gets what there is


def test_a_single_body_of_an_owner_gets_what_there_is() -> None:
    """One large body is no reason to refuse it, also where the owner's others are over."""
    gate = Gate(10, "bytes")
    small, large, other = Lease(gate, "one"), Lease(gate, "one"), Lease(gate, "other")
    small.add(1)
    small.release()
    other.add(1)
    large.add(8)
    with pytest.raises(Overloaded, match="the requests of this key hold 8 bytes"):
        small.add(1)
    large.release()
    other.release()
    assert (gate.held, gate.held_by.total()) == (0, 0)

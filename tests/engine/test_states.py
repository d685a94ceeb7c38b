"""The table of a replica's states."""

from __future__ import annotations

import itertools

import pytest

from embedding_service.engine.states import TRANSITIONS, Event, State

LEADS_TO = {
    Event.HELLO: State.READY,
    Event.FAILED: State.QUARANTINED,
    Event.SUSPECTED: State.BACKOFF,
    Event.PASSED: State.READY,
    Event.EXITED: State.BACKOFF,
    Event.RESTART: State.STARTING,
    Event.GAVE_UP: State.DEAD,
    Event.STOP: State.STOPPED,
}
HAPPENS_IN = {
    Event.HELLO: {State.STARTING},
    Event.FAILED: {State.STARTING},
    Event.SUSPECTED: {State.READY},
    Event.PASSED: {State.QUARANTINED},
    Event.EXITED: {State.STARTING, State.READY, State.QUARANTINED},
    Event.RESTART: {State.BACKOFF},
    Event.GAVE_UP: {State.STARTING, State.BACKOFF},
    Event.STOP: set(State),
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_pair_of_state_and_event_is_decided(state: State, event: Event) -> None:
    """An event leads to one state wherever it comes from, or cannot happen there."""
    expected = LEADS_TO[event] if state in HAPPENS_IN[event] else None
    assert TRANSITIONS.get((state, event)) == expected


def test_every_state_can_be_reached_and_left() -> None:
    """No state is unreachable, and from each one a stop leads out."""
    assert set(TRANSITIONS.values()) | {State.STARTING} == set(State)
    assert {state for state, event in TRANSITIONS if event is Event.STOP} == set(State)

"""The life of a replica as a table: where it can stand, and what moves it. `engine/replica.py` follows it."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a replica stands."""

    STARTING = "starting"
    READY = "ready"
    BACKOFF = "backoff"
    DEAD = "dead"
    STOPPED = "stopped"


class Event(StrEnum):
    """What moves it."""

    HELLO = "hello"
    EXITED = "exited"
    GAVE_UP = "gave_up"
    RESTART = "restart"
    STOP = "stop"


TRANSITIONS = {
    (State.STARTING, Event.HELLO): State.READY,
    (State.STARTING, Event.EXITED): State.BACKOFF,
    (State.STARTING, Event.GAVE_UP): State.DEAD,
    (State.READY, Event.EXITED): State.BACKOFF,
    (State.BACKOFF, Event.RESTART): State.STARTING,
    (State.BACKOFF, Event.GAVE_UP): State.DEAD,
} | {(state, Event.STOP): State.STOPPED for state in State}

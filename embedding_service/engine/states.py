"""The life of a replica as a table: its states, and the events that change them."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """The state of a replica. READY: its worker takes jobs. DEAD: it died too often."""

    STARTING = "starting"
    READY = "ready"
    BACKOFF = "backoff"
    DEAD = "dead"
    STOPPED = "stopped"


class Event(StrEnum):
    """An event in the life of a replica."""

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

"""The life of a replica as a table: its states, and the events that change them."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """The state of a replica. READY: its worker takes jobs. DEAD: it died too often.

    QUARANTINED: its worker runs, and gets no jobs, since it failed its examination.
    """

    STARTING = "starting"
    READY = "ready"
    QUARANTINED = "quarantined"
    BACKOFF = "backoff"
    DEAD = "dead"
    STOPPED = "stopped"


class Event(StrEnum):
    """An event in the life of a replica.

    HELLO: the worker has loaded its model and passed its examination; FAILED, SUSPECTED, PASSED:
    it has not, it fails a later one, it passes one after all.
    """

    HELLO = "hello"
    FAILED = "failed"
    SUSPECTED = "suspected"
    PASSED = "passed"
    EXITED = "exited"
    GAVE_UP = "gave_up"
    RESTART = "restart"
    STOP = "stop"


TRANSITIONS = {
    (State.STARTING, Event.HELLO): State.READY,
    (State.STARTING, Event.EXITED): State.BACKOFF,
    (State.STARTING, Event.GAVE_UP): State.DEAD,
    (State.STARTING, Event.FAILED): State.QUARANTINED,
    (State.READY, Event.EXITED): State.BACKOFF,
    (State.READY, Event.SUSPECTED): State.BACKOFF,
    (State.QUARANTINED, Event.PASSED): State.READY,
    (State.QUARANTINED, Event.EXITED): State.BACKOFF,
    (State.BACKOFF, Event.RESTART): State.STARTING,
    (State.BACKOFF, Event.GAVE_UP): State.DEAD,
} | {(state, Event.STOP): State.STOPPED for state in State}

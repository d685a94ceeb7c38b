"""The hang rules, one by one, on a clock that the test sets."""

from __future__ import annotations

from typing import Any

import pytest

from embedding_service.engine import heartbeat as heartbeat_module
from embedding_service.engine import protocol
from embedding_service.engine.heartbeat import (
    HANG_AFTER_S,
    PING_EVERY_S,
    STEP_AT_LEAST_S,
    STEP_SLACK,
    Heartbeat,
)


class Clock:
    """A clock and, by it, one worker's heartbeat."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def pong_every_second(
        self, heartbeat: Heartbeat, seconds: float, **progress: Any
    ) -> str | None:
        """Let time pass in which the worker answers every ping; return the verdict, if any."""
        numbers: dict[str, Any] = {"steps": 5, "texts": 50, "tokens": 0, "busy_s": 0.0}
        numbers |= {"running": 0, "running_tokens": 0, "waiting": 0, **progress}
        until = self.now + seconds
        while self.now < until:
            asked = self.now
            heartbeat.note(protocol.Pong(1, **numbers, batch_sizes=(0,) * protocol.SIZE_CLASSES))
            self.now += PING_EVERY_S
            if reason := heartbeat.judge(asked, self.now):
                return reason
        return None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock that the rules go by."""
    clock = Clock()
    monkeypatch.setattr(heartbeat_module, "time", clock)
    return clock


def test_silence_is_a_hang(clock: Clock) -> None:
    """Without a pong the worker is given up after ten seconds, and not before."""
    heartbeat = Heartbeat(1)
    early, late = clock.now + HANG_AFTER_S, clock.now + HANG_AFTER_S + 1
    assert heartbeat.judge(early, early + PING_EVERY_S) is None
    assert heartbeat.judge(late, late + PING_EVERY_S) == "no sign of life for 10 s"


def test_our_own_stop_is_not_the_workers(clock: Clock) -> None:
    """After a pause of the gateway pongs may lie unread, and nothing is concluded from silence."""
    heartbeat = Heartbeat(1)
    asked = clock.now + 2 * HANG_AFTER_S
    assert heartbeat.judge(asked, asked + 3600) is None
    assert heartbeat.judge(asked, asked + PING_EVERY_S) is not None


def test_an_idle_worker_is_not_stuck(clock: Clock) -> None:
    """No progress is no hang where nothing runs, nor is it held against the next step."""
    heartbeat = Heartbeat(1)
    assert clock.pong_every_second(heartbeat, 3600) is None
    assert clock.pong_every_second(heartbeat, STEP_AT_LEAST_S, running=1) is None


def test_a_step_without_end_is_a_hang(clock: Clock) -> None:
    """A worker that answers, and whose step does not end, is given up after 15 s."""
    heartbeat = Heartbeat(1)
    assert clock.pong_every_second(heartbeat, STEP_AT_LEAST_S, running=1, steps=6) is None
    reason = clock.pong_every_second(heartbeat, 5, running=1, steps=6)
    assert reason == "no progress in a step for 16 s"


def test_every_step_has_its_time(clock: Clock) -> None:
    """A worker that is always busy is not stuck while its steps go on."""
    heartbeat = Heartbeat(1)
    for step in range(100):
        assert clock.pong_every_second(heartbeat, STEP_AT_LEAST_S, running=1, steps=step) is None


def test_a_large_step_has_more_time(clock: Clock) -> None:
    """A step may take 5 times what its tokens should, going by what this worker has computed."""
    heartbeat = Heartbeat(1)
    past = {"tokens": 1000, "busy_s": 100.0}
    step = {**past, "running": 8, "running_tokens": 400}
    assert clock.pong_every_second(heartbeat, STEP_SLACK * 40, **step) is None
    assert "no progress" in str(clock.pong_every_second(heartbeat, 10, **step))

"""The hang rules: when a worker that has not exited is given up all the same."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from embedding_service.engine import protocol

if TYPE_CHECKING:
    from collections.abc import Callable

PING_EVERY_S = 1.0
HANG_AFTER_S = 10.0  # without a pong, which takes a thread of the worker microseconds
# A step may take 5 times what its tokens should, going by the worker's own past; the first ones
# compile kernels, and a machine may be shared, hence never less than 15 s.
STEP_AT_LEAST_S, STEP_SLACK = 15.0, 5


class Heartbeat:
    """Pings one worker and judges its pongs. `progress` is the latest of them."""

    def __init__(self, generation: int) -> None:
        sizes = (0,) * protocol.SIZE_CLASSES
        self.progress = protocol.Pong(generation, 0, 0, 0, 0.0, 0, 0, 0, sizes)
        self._last_pong = self._last_step = time.monotonic()

    def note(self, pong: protocol.Pong) -> None:
        """Take a pong of the worker."""
        self._last_pong = time.monotonic()
        if pong.steps != self.progress.steps or not pong.running:  # idle is not stuck
            self._last_step = self._last_pong
        self.progress = pong

    async def until_hang(self, ping: Callable[[], None]) -> str:
        """Call `ping` again and again, until a rule is broken; return which."""
        while True:
            asked = time.monotonic()
            ping()
            await asyncio.sleep(PING_EVERY_S)
            if reason := self.judge(asked, time.monotonic()):
                return reason

    def judge(self, asked: float, now: float) -> str | None:
        """Tell why the worker counts as hung, if it does, `now` that its pong should be here.

        `asked` is the time of the last ping, and the silence is counted up to there.
        """
        if now - asked > 2 * PING_EVERY_S:
            # We were stopped ourselves (SIGSTOP, a suspended machine, a blocked loop). Pongs may
            # lie unread in the socket: this silence is not the worker's.
            return None
        if asked - self._last_pong > HANG_AFTER_S:
            # Pings are answered by a thread of their own, however long a step takes.
            return f"no sign of life for {HANG_AFTER_S:g} s"
        if asked - self._last_step > self._longest_step_s():
            # It answers pings, and its engine makes no progress.
            return f"no progress in a step for {asked - self._last_step:.0f} s"
        return None

    def _longest_step_s(self) -> float:
        seconds_a_token = self.progress.busy_s / max(self.progress.tokens, 1)
        return max(STEP_AT_LEAST_S, STEP_SLACK * self.progress.running_tokens * seconds_a_token)

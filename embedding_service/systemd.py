"""What systemd is told through `$NOTIFY_SOCKET`, see sd_notify(3). Without that variable nothing happens."""

from __future__ import annotations

import os
import socket
import time


def notify(*assignments: str) -> None:
    """Send assignments such as `READY=1`. A socket that cannot take them costs a message, never the service."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as datagram:
        try:
            datagram.connect("\0" + address[1:] if address[0] == "@" else address)
            datagram.send("\n".join(assignments).encode())
        except OSError:
            pass


def reloading() -> None:
    """Tell that a reload has begun; `READY=1` ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def watchdog_every_s() -> float | None:
    """Return how often `WATCHDOG=1` is due (a third of the limit), or None if nobody waits for it."""
    limit_us, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not limit_us.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(limit_us) / 3e6

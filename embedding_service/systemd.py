"""Messages to systemd through `$NOTIFY_SOCKET`, see sd_notify(3); none without that variable."""

from __future__ import annotations

import contextlib
import os
import socket
import time


def notify(*assignments: str) -> None:
    """Send assignments such as `READY=1`.

    A socket that cannot take them loses a message; it never holds up the service.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address[0] == "@":
        address = "\0" + address[1:]  # an abstract socket
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_UNIX, kind) as datagram, contextlib.suppress(OSError):
        datagram.connect(address)
        datagram.send("\n".join(assignments).encode())


def reloading() -> None:
    """Announce a reload; `READY=1` ends it."""
    now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notify("RELOADING=1", f"MONOTONIC_USEC={now_us}")


def watchdog_every_s() -> float | None:
    """Return how often `WATCHDOG=1` is due: a third of the limit; None without a watchdog."""
    limit_us, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not limit_us.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(limit_us) / 1e6 / 3

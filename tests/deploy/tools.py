"""Shared by the tests of `deploy/`: the files as shipped, and the programs that read them."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def program(name: str, package: str) -> str:
    """Return a program's path; else skip, or fail where REQUIRE_SERVERS is set (`.ci/run`)."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if path is None:
        message = f"{name} is not installed (Debian: apt-get install {package})"
        if os.environ.get("REQUIRE_SERVERS"):
            pytest.fail(message)
        pytest.skip(message)
    return path


def replaced(text: str, changes: dict[str, str]) -> str:
    """Return `text` with every key replaced by its value; a key that is not there is an error."""
    for old, new in changes.items():
        assert old in text, f"the shipped file no longer says {old!r}"
        text = text.replace(old, new)
    return text


# Bound until the tests are over: the system gives these ports to nobody else, such as a test beside
# this one, and lets a program that names one listen on it.
_reserved: list[socket.socket] = []


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, for programs that set SO_REUSEADDR as all servers do."""
    for _ in range(count):
        reserved = socket.socket()
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        _reserved.append(reserved)
    return [reserved.getsockname()[1] for reserved in _reserved[-count:]]

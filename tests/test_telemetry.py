"""The log: one JSON object a line, whatever is told."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "value", ["a\udc80b", "😀", 1 << 70, {"a": (1, 2.5)}, b"raw", None], ids=repr
)
@pytest.mark.process
def test_every_value_is_written(value: object) -> None:
    """Also what strict JSON does not have: half a surrogate pair, a large number, an object."""
    script = f"""
from embedding_service import telemetry
telemetry.configure("info", "json")
telemetry.get_logger().info("told", value={value!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    line = json.loads(done.stderr)
    assert (line["event"], line["level"]) == ("told", "info")
    written = {bytes: repr(value), dict: {"a": [1, 2.5]}}.get(type(value), value)
    assert line["value"] == written

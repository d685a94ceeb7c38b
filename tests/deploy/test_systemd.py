"""The shipped unit, read by systemd's own checkers."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from embedding_service.settings.gateway import Settings
from tests.deploy.tools import DEPLOY, program, replaced

if TYPE_CHECKING:
    from pathlib import Path

UNIT = DEPLOY / "systemd" / "embedding-service@.service"
EXECUTABLE = "/opt/embedding-service/.venv/bin/embedding-service"


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """Return the shipped unit with a program that exists here; nothing else is changed."""
    path = tmp_path / UNIT.name
    path.write_text(replaced(UNIT.read_text(), {EXECUTABLE: sys.executable}))
    return path


def analyze(*arguments: str) -> str:
    """Return what systemd-analyze says, both streams."""
    command = [program("systemd-analyze", "systemd"), "--no-pager", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout + result.stderr


@pytest.mark.server
def test_the_unit_is_correct(unit: Path) -> None:
    """`systemd-analyze verify` has nothing to say about it: no unknown setting, no wrong value."""
    assert [
        line for line in analyze("verify", str(unit)).splitlines() if "embedding-service" in line
    ] == []


@pytest.mark.server
def test_verify_would_find_a_mistake(unit: Path) -> None:
    """The check above is one: a misspelt setting is told."""
    unit.write_text(replaced(unit.read_text(), {"WatchdogSec=": "WatchDogSec="}))
    assert "WatchDogSec" in analyze("verify", str(unit))


@pytest.mark.server
def test_the_unit_is_hardened(unit: Path) -> None:
    """`systemd-analyze security` finds an exposure of 3.0 at most."""
    output = analyze("security", "--offline=true", str(unit))
    score = re.search(r"Overall exposure level for \S+: ([\d.]+)", output)
    assert score, output
    assert float(score[1]) <= 3.0


def test_a_drain_is_never_cut_short() -> None:
    """systemd waits longer than the longest drain and the end of the engines after it."""
    seconds = re.search(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.MULTILINE)
    assert seconds
    defaults = Settings()
    assert int(seconds[1]) >= defaults.drain_grace_s + defaults.drain_timeout_s + 30

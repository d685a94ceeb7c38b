"""Many kills and rolls behind nginx, with the fake engine: the handing over is tested."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest

from tests.deploy.cluster import Load, run_instances, run_nginx

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.soak

TURNS = 12


def test_rolling_behind_nginx(tmp_path: Path, record: Callable[[str, str, str], None]) -> None:
    """One instance killed and all three rolled under steady load: no request fails."""
    instances = run_instances(tmp_path, "--engine-args", json.dumps({"step_s": 0.02}))
    proxy = run_nginx(tmp_path, [instance.port for instance in instances])
    try:
        with Load(proxy) as load:
            for turn in range(TURNS):
                load.kill(instances[turn % 3])
                load.roll(*instances)
    finally:
        proxy.stop()
        for instance in instances:
            instance.end(signal.SIGKILL)
    record(
        f"Requests failed behind nginx, three instances, {TURNS} killed and {3 * TURNS} rolled under load",
        "0",
        f"{len(load.failures)} of {load.outcomes.total():,}, {load.outcomes['cut']} cut while a killed one sent them",
    )
    assert load.failures == []

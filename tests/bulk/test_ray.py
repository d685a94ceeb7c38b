"""A job on a Ray cluster: the rows of one process, also if a node dies in the middle."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from embedding_service.bulk.on_ray import _resources
from embedding_service.errors import BadConfiguration, RowsFailed
from embedding_service.settings.gateway import Settings
from tests.bulk.jobs import embed, errors_of, files_of, rows_of, texts_of, write_jsonl
from tests.test_cli import ENVIRONMENT, ROOT

if TYPE_CHECKING:
    from pathlib import Path


def nodes(*resources: dict[str, float]) -> list[dict[str, object]]:
    """Return what Ray says of its nodes; the last of these is gone."""
    alive = [{"Alive": True, "Resources": found} for found in resources]
    return [*alive, {"Alive": False, "Resources": {"CPU": 1.0, "GPU": 9.0}}]


def test_actors_leave_room_for_readers() -> None:
    """One for each device that a replica takes, else one for each node, less a CPU."""
    one, two = Settings(), Settings(tensor_parallel_size=2)
    assert _resources(nodes({"CPU": 2.0}, {"CPU": 8.0}), one) == {"actors": 2, "num_cpus": 1}
    machines = nodes({"CPU": 32.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 3.0})
    assert _resources(machines, one) == {"actors": 7, "num_gpus": 1, "num_cpus": 1}
    assert _resources(machines, two) == {"actors": 3, "num_gpus": 2, "num_cpus": 1}
    with pytest.raises(BadConfiguration, match="each node needs two logical CPUs"):
        _resources(nodes({"CPU": 4.0}, {"CPU": 1.0}), one)


def test_a_pipe_is_on_no_other_node(tmp_path: Path) -> None:
    """Standard input and servers are refused before a cluster is looked for."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "w1"}])
    with pytest.raises(BadConfiguration, match="--ray: needs files that all nodes see"):
        embed(path, out=tmp_path / "out", servers=["http://x"], ray="local", model="x")


@pytest.mark.soak
@pytest.mark.skipif(find_spec("ray") is None, reason="requirements-ray.txt is not installed")
def test_a_node_may_die(tmp_path: Path) -> None:
    """Two nodes, one killed after the third part: nothing lost, nothing there twice."""
    paths = []
    for number in range(2):
        records = [{"text": text} for text in texts_of(2500, 2500 * number)]
        records[700 * number + 9]["text"] = ""
        paths.append(write_jsonl(tmp_path / f"{number}.jsonl", records))
    out, alone = tmp_path / "out", tmp_path / "alone"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.bulk.ray_cluster"),
            *(str(tmp_path / "*.jsonl"), str(out), "200", "kill"),
        ],
        cwd=ROOT,
        env=ENVIRONMENT | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert "killed" in done.stdout, done.stderr
    assert "2 rows have no vectors" in done.stderr
    with pytest.raises(RowsFailed):
        embed(*paths, out=alone, rows_per_part=200, settings={"engine_args": {"dimension": 384}})
    assert rows_of(out) == rows_of(alone)
    assert len(rows_of(out)) == 4998
    assert errors_of(out) == errors_of(alone)
    names = set(files_of(alone))
    assert set(files_of(out)) == names

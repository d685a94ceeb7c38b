"""A job on a Ray cluster: the rows of one process, also if a node dies in the middle."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from embedding_service.bulk.on_ray import _resources
from embedding_service.errors import BadConfiguration, RowsFailed
from embedding_service.settings.gateway import Settings
from tests.bulk.jobs import corpus, embed, errors_of, files_of, rows_of, texts_of, write_jsonl
from tests.bulk.test_kill import Command, parts_in, small_disk  # noqa: F401 - a fixture
from tests.test_cli import ENVIRONMENT, ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
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


def with_ray(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that starts a cluster, which takes a minute."""
    missing = find_spec("ray") is None
    skipped = pytest.mark.skipif(missing, reason="requirements-ray.txt is not installed")
    return pytest.mark.soak(skipped(test))


RAY_ENVIRONMENT = ENVIRONMENT | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
DIMENSION = 384
ALONE = {"engine_args": {"dimension": DIMENSION}}


@with_ray
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
        env=RAY_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert "killed" in done.stdout, done.stderr
    assert "2 rows have no vectors" in done.stderr
    with pytest.raises(RowsFailed):
        embed(*paths, out=alone, rows_per_part=200, settings=ALONE)
    assert rows_of(out) == rows_of(alone)
    assert len(rows_of(out)) == 4998
    assert errors_of(out) == errors_of(alone)
    names = set(files_of(alone))
    assert set(files_of(out)) == names


def on_this_machine(path: Path, out: Path) -> Command:
    """Start the command on a cluster of its own; a part takes half a second."""
    arguments = f"{{step_s: 0.1, dimension: {DIMENSION}}}"
    options = ("--rows-per-part", "200", "--ray", "local")
    return Command(path, "--out", out, *options, engine_args=arguments, env=RAY_ENVIRONMENT)


@with_ray
def test_ctrl_c_on_a_cluster_can_be_continued(tmp_path: Path) -> None:
    """It ends at once with a shell's status and a line; the same command does the rest."""
    path, out, alone = corpus(tmp_path / "a.jsonl", 5000), tmp_path / "out", tmp_path / "alone"
    command = on_this_machine(path, out)
    assert command.wait_for(lambda: parts_in(out) > 1), command.end()
    began = time.monotonic()
    status, words = command.end(signal.SIGINT)
    assert time.monotonic() - began < 10
    assert status == 128 + signal.SIGINT
    assert words[-1] == "embedding-service: stopped; the same command goes on from there"
    assert 1 < parts_in(out) < 25
    status, words = on_this_machine(path, out).end(timeout_s=240)
    assert status == 0, words
    embed(path, out=alone, rows_per_part=200, settings=ALONE)
    assert rows_of(out) == rows_of(alone)
    assert files_of(out).keys() == files_of(alone).keys()


@with_ray
def test_a_full_disk_on_a_cluster_can_be_continued(
    small_disk: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """One line and whole parts; once there is room, the same command does the rest."""
    path, out, alone = corpus(tmp_path / "a.jsonl", 2000), small_disk / "out", tmp_path / "alone"
    status, words = on_this_machine(path, out).end(timeout_s=240)
    assert status == 11, words
    assert words[-1].startswith(f"embedding-service: {out}: No space left on device; ")
    assert not list(out.glob(".*"))
    assert 0 < parts_in(out) < 10
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    status, words = on_this_machine(path, out).end(timeout_s=240)
    assert status == 0, words
    embed(path, out=alone, rows_per_part=200, settings=ALONE)
    assert rows_of(out) == rows_of(alone)

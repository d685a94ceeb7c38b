"""A worker's cores and environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_service.engine import cores as cores_module
from embedding_service.engine.cores import cpu_binding, quota
from embedding_service.engine.environment import environment, inherited
from embedding_service.settings.gateway import Settings
from embedding_service.settings.load import load
from embedding_service.settings.model import ModelOptions
from tests.conftest import FAKE, RunningGateway


@pytest.mark.parametrize(
    ("cores", "ranks", "replicas", "bindings"),
    [
        ([0, 1], 1, 1, ["0,1"]),
        ([0, 1], 2, 1, ["0|1"]),
        ([0, 1], 1, 2, ["0", "1"]),
        ([4, 5, 6, 7], 2, 1, ["4,5|6,7"]),
        ([0, 1, 2, 3], 2, 2, ["0|1", "2|3"]),
        ([0, 1, 2], 1, 2, ["0", "1,2"]),
        ([0], 1, 3, ["0", "0", "0"]),
        ([0, 1], 1, 3, ["0", "1", "0"]),
        ([0, 1], 3, 1, ["0|1|0"]),
    ],
)
def test_cores_are_split(cores: list[int], ranks: int, replicas: int, bindings: list[str]) -> None:
    """Replicas share the cores, and tensor-parallel ranks share a replica's."""
    assert [
        cpu_binding(cores, ranks=ranks, replica=i, replicas=replicas) for i in range(replicas)
    ] == bindings


@given(
    st.lists(st.integers(0, 500), min_size=1, max_size=64, unique=True),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_no_core_is_idle_and_none_is_shared_without_need(
    cores: list[int], ranks: int, replicas: int
) -> None:
    """Every rank has a core; with enough cores each core belongs to exactly one rank."""
    bound = [
        [int(core) for core in rank.split(",")]
        for replica in range(replicas)
        for rank in cpu_binding(cores, ranks=ranks, replica=replica, replicas=replicas).split("|")
    ]
    assert len(bound) == ranks * replicas
    assert all(part and set(part) <= set(cores) for part in bound)
    if len(cores) >= 2 * ranks * replicas:
        assert sorted(core for part in bound for core in part) == sorted(cores)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cores_module, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(cores_module, "_MOUNTS", tmp_path)
    for name in (
        "VLLM_CPU_OMP_THREADS_BIND",
        "OMP_NUM_THREADS",
        "OMP_WAIT_POLICY",
        "CUDA_VISIBLE_DEVICES",
        "VLLM_LOGGING_LEVEL",
        "LD_PRELOAD",
    ):
        monkeypatch.delenv(name, raising=False)


def variables(replica: int = 0, **options: Any) -> dict[str, str]:
    return environment(ModelOptions(**options), replica=replica)


V1 = {"cpu.cfs_quota_us": "150000\n", "cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("membership", "files", "cpus"),
    [
        ("0::/", {"cpu.max": "max 100000\n"}, None),
        ("0::/", {"cpu.max": "250000 100000\n"}, 2.5),
        ("0::/a/b", {"a/cpu.max": "100000 100000\n", "a/b/cpu.max": "max 100000\n"}, 1.0),
        ("0::/a/b", {"a/cpu.max": "900000 100000\n", "a/b/cpu.max": "400000 100000\n"}, 4.0),
        ("0::/../../the/hosts", {"cpu.max": "200000 100000\n"}, 2.0),
        ("2:cpu,cpuacct:/docker/1", {f"cpu/{name}": text for name, text in V1.items()}, 1.5),
        ("1:cpu:/a", {f"cpu/a/{name}": text for name, text in V1.items()}, 1.5),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("1:cpuset:/\n0::/", {f"cpuset/{name}": text for name, text in V1.items()}, None),
        ("0::/", {"cpu.max": ""}, None),
        ("0::/", {}, None),
    ],
)
def test_quotas_are_read(
    tmp_path: Path, membership: str, files: dict[str, str], cpus: float | None
) -> None:
    """The least bound of the process's control groups, of either version of them."""
    (tmp_path / "membership").write_text(membership)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert quota() == cpus


@pytest.mark.parametrize(
    ("cpus", "options", "threads"),
    [
        ("1.0", {}, "1"),
        ("0.5", {}, "1"),
        ("6.5", {}, "6"),
        ("6.5", {"replicas": 2}, "3"),
        ("4.0", {"replicas": 2, "tensor_parallel_size": 2}, "1"),
        ("2.0", {"replicas": 3}, "1"),
    ],
)
def test_a_quota_bounds_the_threads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cpus: str,
    options: dict[str, Any],
    threads: str,
) -> None:
    """Under a quota of fewer cores than there are, so many threads compute on whichever are free."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    (tmp_path / "membership").write_text("0::/")
    (tmp_path / "cpu.max").write_text(f"{float(cpus) * 100_000:.0f} 100000")
    wanted = variables(**options)
    assert wanted["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert wanted["OMP_NUM_THREADS"] == threads
    assert cores_module.waiting(Settings(**FAKE)) == {"OMP_WAIT_POLICY": "PASSIVE"}


def test_a_quota_of_all_cores_bounds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as much time as there are cores, each thread has one of its own."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    (tmp_path / "membership").write_text("0::/")
    (tmp_path / "cpu.max").write_text("200000 100000")
    wanted = variables()
    assert wanted["VLLM_CPU_OMP_THREADS_BIND"] == "0,1"
    assert "OMP_NUM_THREADS" not in wanted


def test_the_core_stays_in_the_worker() -> None:
    """vLLM is told to keep its core in the worker's process, and to report to nobody."""
    wanted = variables()
    assert wanted["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert wanted["VLLM_NO_USAGE_STATS"] == "1"


def test_cores_are_those_of_this_process() -> None:
    """The binding uses the cores that the gateway may run on, and all of them."""
    binding = variables()["VLLM_CPU_OMP_THREADS_BIND"]
    assert {int(core) for core in binding.split(",")} == os.sched_getaffinity(0)


def test_the_operators_variables_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of the gateway's own environment are left as they are."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0-7")
    monkeypatch.setenv("LD_PRELOAD", "/mine.so")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "")
    assert (
        not {"VLLM_CPU_OMP_THREADS_BIND", "LD_PRELOAD", "VLLM_LOGGING_LEVEL"} & variables().keys()
    )


@pytest.mark.parametrize(
    ("devices", "ranks", "visible"),
    [
        ([], 1, [None, None, None]),
        ([2], 1, ["2", "2", "2"]),
        ([0, 3], 1, ["0", "3", "0"]),
        ([0, 1, 2, 3], 2, ["0,1", "2,3", "0,1"]),
    ],
)
def test_replicas_take_devices_in_turn(
    monkeypatch: pytest.MonkeyPatch, devices: list[int], ranks: int, visible: list[str | None]
) -> None:
    """Each replica sees its own devices; without a list it sees those that the gateway sees."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    got = [
        variables(replica, replicas=3, devices=devices, tensor_parallel_size=ranks).get(
            "CUDA_VISIBLE_DEVICES"
        )
        for replica in range(3)
    ]
    assert got == visible


@pytest.mark.parametrize(
    ("settings", "shared"),
    [
        ({}, False),
        ({"models": [{"model_name": "a"}, {"model_name": "b"}]}, True),
        ({"replicas": 50, "tensor_parallel_size": 64}, True),
    ],
)
def test_waiting_threads_do_not_spin_on_shared_cores(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], shared: bool
) -> None:
    """Only where several workers compute on the same cores do their threads sleep while they wait."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    tree = Settings(gpu_memory_utilization=0.01, **settings)
    assert ("OMP_WAIT_POLICY" in inherited(tree)) is shared
    assert ("GOMP_SPINCOUNT" in inherited(tree)) is not shared
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert inherited(tree)["OMP_WAIT_POLICY"] == "ACTIVE"
    assert "GOMP_SPINCOUNT" not in inherited(tree)


@pytest.mark.process
@pytest.mark.parametrize("url_in", ["EMBEDDING_REDIS_URL", "embedding_redis_url", "OLD_REDIS"])
def test_a_worker_is_told_no_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url_in: str
) -> None:
    """No key and no password of Redis is among a worker's variables, whatever it is called."""
    for name in ("API_KEY", "MY_TOKEN", "EMBEDDING_API_KEYS"):
        monkeypatch.setenv(name, f"a-secret-for-{name}")
    monkeypatch.setenv(url_in, "unix://:a-secret-password@/nowhere/redis.sock")
    monkeypatch.setenv("HF_TOKEN", "needed-there")
    config = tmp_path / "config.yaml"
    config.write_text(
        "{api_keys_env: [MY_TOKEN], environment: {OLD_REDIS: redis_url}}", encoding="utf-8"
    )
    settings, _ = load(config, FAKE)
    assert settings.redis_url is not None
    gateway = RunningGateway(settings, processes=True)
    try:
        gateway.wait_ready()
        (worker,) = gateway.workers.values()
        of_worker = Path("/proc", str(worker.pid))
        told = (of_worker / "environ").read_text() + (of_worker / "cmdline").read_text()
        assert "needed-there" in told
        assert "a-secret" not in told
    finally:
        gateway.stop()

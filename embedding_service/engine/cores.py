"""The cores on which workers compute: which ones, or how many where a quota bounds their time."""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from embedding_service.settings.gateway import Settings
    from embedding_service.settings.model import ModelOptions

_MEMBERSHIP = Path("/proc/self/cgroup")
_MOUNTS = Path("/sys/fs/cgroup")
# A thread that waits for the others of a step spins, so as to go on at once. OpenMP's 300,000 turns
# are milliseconds, in which it keeps a core from whoever has work: beside one busy process on two
# cores MiniLM gave 53 texts/s in place of 229, and a lone text took 176 ms in place of 47. With
# nothing else on the cores it takes 7 % longer than with OpenMP's (docs/notebook/experiments.md).
_BRIEFLY = {"GOMP_SPINCOUNT": "10000"}
_ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE"}


def variables(options: ModelOptions, *, replica: int) -> dict[str, str]:
    """Return what tells vLLM and OpenMP on which cores a worker computes.

    Under a quota (`docker run --cpus`, Kubernetes' `limits.cpu`, systemd's `CPUQuota`) every core
    is allowed, and only their time is bounded: threads on all of them use it up, partly by waiting
    for each other, and then all stand still. So there are as many threads as it has cores, on
    whichever are free.
    """
    cores = sorted(os.sched_getaffinity(0))
    bound = _bounded_by(cores)
    if bound is None:
        binding = cpu_binding(
            cores,
            ranks=options.tensor_parallel_size,
            replica=replica,
            replicas=options.replicas,
        )
        return {"VLLM_CPU_OMP_THREADS_BIND": binding}
    threads = int(bound) // (options.replicas * options.tensor_parallel_size)
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(max(1, threads))}


def waiting(settings: Settings) -> dict[str, str]:
    """Return the variables that say how threads wait for each other, if the operator's do not.

    Where workers compute on the same cores or within a quota they do not spin at all: an embedder
    and a reranker on two cores gave 4 times as many requests then (soak test).
    """
    if "OMP_WAIT_POLICY" in os.environ:
        return {}
    cores, models = os.sched_getaffinity(0), settings.served_models
    crowded = any(model.replicas * model.tensor_parallel_size > len(cores) for model in models)
    return _ASLEEP if len(models) > 1 or crowded or _bounded_by(cores) else _BRIEFLY


def cpu_binding(cores: Sequence[int], *, ranks: int, replica: int, replicas: int) -> str:
    """Split `cores` among replicas, then among tensor-parallel ranks, leaving none idle.

    vLLM's form: `0,1|2,3` binds rank 0 to cores 0 and 1. Its own `auto` keeps a core for a
    server that here lives in another process, which is one of two on a small machine.
    """
    own = _share(cores, replica, replicas)
    bound = [_share(own, rank, ranks) for rank in range(ranks)]
    return "|".join(",".join(map(str, of_rank)) for of_rank in bound)


def _share(cores: Sequence[int], index: int, count: int) -> Sequence[int]:
    """Return the part of `cores` that falls to one of `count`; with too few, one in turn."""
    if count >= len(cores):
        return [cores[index % len(cores)]]
    return cores[index * len(cores) // count : (index + 1) * len(cores) // count]


def _bounded_by(cores: Collection[int]) -> float | None:
    """Return the quota if it is less than the time of these cores."""
    bound = quota()
    return bound if bound is not None and bound < len(cores) else None


def quota() -> float | None:
    """Return how many cores' time this process may take, or None if all that there is.

    The least of its control groups' bounds, of either version: "cpu.max" in
    https://docs.kernel.org/admin-guide/cgroup-v2.html, and
    https://docs.kernel.org/scheduler/sched-bwc.html.
    """
    bounds = map(_bound, chain.from_iterable(map(_groups, _lines(_MEMBERSHIP))))
    return min((bound for bound in bounds if bound is not None), default=None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _groups(membership: str) -> Iterator[Path]:
    """Yield the folders of a group and of those above it, from a line of /proc/self/cgroup.

    In a container the path may be the host's, which is not there, and the group is the mount.
    """
    _, controllers, path = membership.split(":", 2)
    if controllers and "cpu" not in controllers.split(","):
        return
    mount = _MOUNTS / "cpu" if controllers else _MOUNTS
    group = mount / path.lstrip("/")
    yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))


def _bound(group: Path) -> float | None:
    of_two = _lines(group / "cpu.max")
    of_one = [*_lines(group / "cpu.cfs_quota_us"), *_lines(group / "cpu.cfs_period_us")]
    try:
        allowed, period = map(int, " ".join(of_two or of_one).split())
    except ValueError:  # there are none, or "max"
        return None
    return allowed / period if allowed > 0 < period else None

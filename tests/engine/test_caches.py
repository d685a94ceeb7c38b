"""Machines whose user has no name or home, whose root is read-only, whose /tmp forbids execution.

Each case is a mount namespace of its own, with the mounts that a container or a unit would have.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from embedding_service.engine import caches

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
NOBODY = "23456"  # has no entry in passwd
STATE, SOURCE, VENV = "/mnt/state", "/mnt/source", "/mnt/venv"
PYTHON = f"{VENV}/bin/{Path(sys.executable).name}"
STATE_MOUNT = f"mount -t tmpfs -o mode=0777 tmpfs {STATE}"
# `--read-only --tmpfs /tmp` of docker, whose tmpfs is noexec unless it is told otherwise.
READ_ONLY = (
    "mount --make-rprivate /",
    "mount -t tmpfs tmpfs /mnt",
    f"mkdir {STATE} {SOURCE} {VENV}",
    # Both may lie in /tmp.
    f"mount --bind {ROOT} {SOURCE}",
    f"mount --bind {sys.prefix} {VENV}",
    STATE_MOUNT,
    "mount -o remount,bind,ro /",
    "mount -t tmpfs -o noexec,nosuid,nodev,mode=1777 tmpfs /tmp",
    "mount -t tmpfs -o noexec,nosuid,nodev,mode=1777 tmpfs /dev/shm",
    "mount -t tmpfs -o noexec,mode=1777 tmpfs /var/tmp",
)
PRINT = (
    "import json, os; from embedding_service.engine import caches; "
    "print(json.dumps([caches.variables(os.environ, None), caches.unusable_variables(os.environ)]))"
)


def _can_mount() -> bool:
    if os.getuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"):
        return False
    tried = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
    )
    return tried.returncode == 0


needs_mounts = pytest.mark.skipif(not _can_mount(), reason="needs root and unshare")


def _run(
    command: Sequence[str], environ: dict[str, str], *, mounts: Sequence[str] = READ_ONLY
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    started = _start(command, environ, mounts)
    output, errors = started.communicate(timeout=60)
    return subprocess.CompletedProcess(command, started.returncode, output, errors)


def _start(
    command: Sequence[str], environ: dict[str, str], mounts: Sequence[str]
) -> subprocess.Popen[str]:
    """Start a command as nobody, in a mount namespace of its own."""
    drop = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]
    # Python itself may lie in root's home: nobody may read everywhere, and write where they may.
    drop += ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    script = " && ".join([*mounts, 'exec "$@"'])
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": SOURCE, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        ["unshare", "-m", "sh", "-c", script, "sh", *drop, *command],
        env=kept | environ,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _variables(
    environ: dict[str, str], mounts: Sequence[str] = READ_ONLY
) -> tuple[dict[str, str], list[str]]:
    done = _run([PYTHON, "-c", PRINT], environ, mounts=mounts)
    assert done.returncode == 0, done.stderr
    wanted, unusable = json.loads(done.stdout)
    return wanted, unusable


def _dockerfile_variables() -> dict[str, str]:
    """Return the places of caches in the shipped image, moved to where these tests can write."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    found = re.findall(r"(HOME|\w+_(?:HOME|ROOT|DIR))=(/var/cache/\S+)", text)
    moved = {name: place.replace("/var/cache", STATE) for name, place in found}
    return moved | {"HOME": f"{STATE}/embedding-service"}


def _unit_variables() -> dict[str, str]:
    """Return the same of the shipped systemd unit, with what systemd sets itself."""
    text = (ROOT / "deploy" / "systemd" / "embedding-service@.service").read_text(encoding="utf-8")
    found = re.findall(r"^Environment=(\w+)=%C(/\S*)", text, re.MULTILINE)
    moved = {name: STATE + place for name, place in found}
    return moved | {"CACHE_DIRECTORY": f"{STATE}/embedding-service"}


def test_an_ordinary_machine_keeps_its_caches(tmp_path: Path) -> None:
    """Where a home can be written to, nothing is moved."""
    assert caches.variables({"HOME": str(tmp_path)}, None) == {}
    assert caches.unusable_variables({"HOME": str(tmp_path)}) == []


@pytest.mark.process
@needs_mounts
def test_caches_move_to_the_cache_directory() -> None:
    """With a directory of systemd's, everything that is compiled or downloaded goes there."""
    wanted, _ = _variables({"CACHE_DIRECTORY": STATE})
    folder = f"{STATE}/embedding-service-{NOBODY}"
    assert wanted["USER"]
    assert wanted["HOME"] == folder
    assert wanted["VLLM_CACHE_ROOT"] == f"{folder}/vllm"
    assert wanted["TORCHINDUCTOR_CACHE_DIR"] == f"{folder}/torchinductor"
    _, unusable = _variables(wanted)
    assert unusable == []


@pytest.mark.process
@needs_mounts
def test_only_what_does_not_work_is_moved() -> None:
    """With a home, kernels leave a /tmp that forbids execution for its cache; the rest stays."""
    wanted, _ = _variables({"HOME": STATE})
    folder = f"{STATE}/.cache/embedding-service-{NOBODY}/torchinductor"
    assert wanted == {"USER": f"user-{NOBODY}", "TORCHINDUCTOR_CACHE_DIR": folder}


@pytest.mark.process
@needs_mounts
def test_without_any_place_the_variables_are_named() -> None:
    """Where no folder works, none is moved, and the variables that would help are known."""
    wanted, unusable = _variables({})
    assert wanted.keys() == {"USER"}
    assert {"VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME"} <= set(unusable)


@pytest.mark.process
@needs_mounts
@pytest.mark.parametrize("variables", [_dockerfile_variables(), _unit_variables()])
def test_the_shipped_settings_need_nothing_moved(variables: dict[str, str]) -> None:
    """With the image's and the unit's variables every cache works, for a user without a name too."""
    wanted, unusable = _variables(variables)
    assert unusable == []
    assert wanted.keys() <= {"USER"}


@pytest.mark.engine
@pytest.mark.timeout(600)  # a first start compiles, and nothing of it is cached
@needs_mounts
@pytest.mark.parametrize(
    ("environ", "last_words"),
    [(_dockerfile_variables(), '"event": "ready"'), ({}, "VLLM_CACHE_ROOT")],
)
def test_a_compiled_decoder_starts(
    tmp_path_factory: pytest.TempPathFactory, environ: dict[str, str], last_words: str
) -> None:
    """Kernels are compiled and run there; without any place, the line says what to set."""
    from tests.checkpoints import tiny_qwen3_embedding

    model = tiny_qwen3_embedding(tmp_path_factory.mktemp("decoder"))
    there = READ_ONLY.index(STATE_MOUNT) + 1
    mounts = [*READ_ONLY[:there], f"cp -r {model} {STATE}/model", *READ_ONLY[there:]]
    flags = ["--model-path", f"{STATE}/model", "--model-name", "tiny", "--enforce-eager", "false"]
    command = [PYTHON, "-m", "embedding_service", "serve", "--log-format", "json", *flags]
    command += ["--uds", f"{STATE}/socket", "--runtime-dir", "/dev/shm/run"]
    started = _start(command, environ, mounts)
    lines = []
    try:
        for line in started.stderr or ():
            lines.append(line)
            if last_words in line:
                break
        assert last_words in "".join(lines), "".join(lines[-20:])
    finally:
        started.terminate()
        started.communicate(timeout=60)

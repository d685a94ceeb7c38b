"""The locks on every Python that pyproject names: they are installed with `--no-deps`, so that what
a marker asks for on another Python than the tests' own is missing there unless it is in them.
"""

from __future__ import annotations

import platform
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKS = ("requirements-cpu.txt", "requirements-demo.txt", "requirements-test.txt")
# requirements-cpu.txt and requirements-test.txt say why.
LEFT_OUT = {
    *("torchvision", "torchaudio", "torchcodec", "triton", "opencv-python-headless"),
    *("fastapi-cli", "email-validator", "fastar"),
    *("regress", "ruamel-yaml", "ir-datasets"),
}
# PyPI's 2.13.0 is the CUDA build, so the lock cannot name the CPU build; the Makefile installs it.
LOCAL_VERSIONS = {"torch": "+cpu"}


def _python_versions() -> list[str]:
    """Return the first release of each Python that pyproject names, and Debian 12's."""
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if " :: 3." in line]
    return [*(f"{minor}.0" for minor in named), "3.11.2"]


def _environment(full_version: str, machine: str = "x86_64") -> dict[str, str]:
    return {
        "python_version": full_version.rpartition(".")[0],
        "python_full_version": full_version,
        "implementation_version": full_version,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": machine,
        "platform_system": "Linux",
        "platform_release": "6.1.0",
        "platform_version": "1",
        "sys_platform": "linux",
        "os_name": "posix",
        "extra": "",
    }


def _locked() -> dict[str, Requirement]:
    """Return all pins of the locks by normalised name."""
    pins: dict[str, Requirement] = {}
    for name in LOCKS:
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            text = line.partition(" #")[0].rstrip("\\ ").strip()
            if text and not text.startswith(("#", "-")):
                pin = Requirement(text)
                pins[canonicalize_name(pin.name)] = pin
    return pins


PINS = _locked()
OWN = _environment(platform.python_version())


def _holds(requirement: Requirement, environment: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(environment)


def _asked_for(name: str, extra: str, environment: dict[str, str]) -> Iterator[Requirement]:
    """Yield the requirements of a package, with one of its extras, on a Python."""
    for requirement in _requirements(name):
        if _holds(requirement, environment | {"extra": extra}):
            yield requirement


@cache
def _requirements(name: str) -> list[Requirement]:
    try:
        return list(map(Requirement, metadata.requires(name) or []))
    except metadata.PackageNotFoundError:
        # Of a package for other Pythons only, nothing is known here; ours have no requirements.
        assert not _holds(PINS[name], OWN), f"{name} is not installed"
        return []


def _faults(environment: dict[str, str]) -> Iterator[str]:
    """Yield each requirement of a locked package that the locks do not fulfil."""
    active = {name for name, pin in PINS.items() if _holds(pin, environment)}
    todo = [(name, "") for name in sorted(active)]
    seen = set(todo)
    while todo:
        name, extra = todo.pop()
        for requirement in _asked_for(name, extra, environment):
            wanted = canonicalize_name(requirement.name)
            if wanted in LEFT_OUT:
                continue
            if wanted not in active:
                yield f"{name} needs {requirement}, and no lock has it"
                continue
            version = str(PINS[wanted].specifier).removeprefix("==")
            version += LOCAL_VERSIONS.get(wanted, "")
            if not requirement.specifier.contains(version, prereleases=True):
                yield f"{name} needs {requirement}, and the lock has {version}"
            new = {(wanted, more) for more in requirement.extras} - seen
            todo += new
            seen |= new


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("version", _python_versions())
def test_locks_hold_what_markers_ask_for(version: str, machine: str) -> None:
    """Every requirement of every locked package is in the locks, at a version that it takes."""
    assert sorted(_faults(_environment(version, machine))) == []


@pytest.mark.parametrize("version", _python_versions())
def test_locked_packages_take_every_python(version: str) -> None:
    """No locked package refuses a Python that pyproject names."""
    refusing = []
    for name, pin in PINS.items():
        if not _holds(pin, _environment(version)) or not _holds(pin, OWN):
            continue
        allowed = metadata.metadata(name)["Requires-Python"] or ""
        if not SpecifierSet(allowed).contains(version):
            refusing.append(f"{name}: {allowed}")
    assert refusing == []


def test_pyproject_names_the_pythons_that_it_takes() -> None:
    """The least Python of `requires-python` is the first of the classifiers."""
    least = PROJECT["requires-python"].removeprefix(">=")
    assert _python_versions()[0] == f"{least}.0"


@pytest.mark.parametrize("lock", ["requirements.txt", "requirements-cpu.txt"])
def test_locks_hold_what_the_gateway_imports(lock: str) -> None:
    """Each dependency of pyproject is pinned in both locks, to a version that it takes."""
    pins = {}
    for line in (ROOT / lock).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    for text in PROJECT["dependencies"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), text


def test_a_missing_marker_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without redis' async-timeout the check fails on 3.11.2, and on 3.11.3 it does not."""
    monkeypatch.delitem(PINS, "async-timeout")
    assert any("async-timeout" in fault for fault in _faults(_environment("3.11.2")))
    assert list(_faults(_environment("3.11.3"))) == []


def test_extras_name_the_locks_engines() -> None:
    """`pip install .[cuda]`, `.[cpu]` and `.[verify]` bring the versions that the locks have."""
    cuda = {line for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line}
    assert set(PROJECT["optional-dependencies"]["cuda"]) <= cuda
    extras = PROJECT["optional-dependencies"]
    for text in (*extras["cpu"], *extras["verify"]):
        wanted = Requirement(text)
        assert PINS[canonicalize_name(wanted.name)].specifier == wanted.specifier

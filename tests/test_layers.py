"""The shape of the house: who may import whom, read from the syntax trees."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGE = "embedding_service"
BELOW_SERVICE = {"engine", "families", "settings", "systemd", "telemetry"}
# The rules of the house: what a folder (or a single module) may import beside itself, `types` and
# `errors`.
MAY_IMPORT: dict[str, set[str]] = {
    "types": set(),
    "errors": {"types"},
    "systemd": set(),
    "disk": set(),
    "hub": set(),
    "terminal": set(),
    "client": set(),
    "progress": set(),
    "telemetry": {"terminal"},
    "settings": set(),
    "families": set(),
    "families.models": {"families"},
    "worker": {
        "hub",
        "families",
        "families.models",
        "settings",
        "engine.protocol",
        "engine.step_record",
        "engine.caches",
    },
    "engine": {"families", "settings"},
    "service": BELOW_SERVICE,
    "dialects": BELOW_SERVICE | {"service"},
    "dropin": BELOW_SERVICE | {"service", "dialects"},
    "batches": BELOW_SERVICE | {"disk", "service", "dialects"},
    "http": BELOW_SERVICE | {"service", "dialects", "dropin", "batches"},
    "local": BELOW_SERVICE | {"service"},
    "bulk": BELOW_SERVICE | {"disk", "service", "dialects", "local", "progress", "bulk.servers"},
    "bulk.command": BELOW_SERVICE | {"bulk", "commands"},
    "bulk.servers": {"bulk", "client"},
    "verify": BELOW_SERVICE | {"service", "local", "client", "progress", "hub", "worker.location"},
    "server": BELOW_SERVICE | {"service", "http", "batches"},
    "preflight": BELOW_SERVICE | {"service", "http", "worker.backend", "worker.location"},
    "canary": BELOW_SERVICE | {"service", "local", "client", "progress"},
    "commands": {"settings", "dropin"},
    "cli": {
        *("commands", "canary", "hub", "settings", "telemetry", "terminal", "http", "server"),
        "preflight",
    },
    "__main__": {"cli"},
}
VLLM = {"worker", "families.models"}  # the only places that import it, and torch, and transformers
HEAVY = {"vllm", "torch", "transformers"}
WEB = {"fastapi", "starlette", "uvicorn", "httptools", "httpx"}
KNOW_HTTP = {"http", "server", "client"}


class Import(NamedTuple):
    """One import statement's target, as an absolute dotted name."""

    target: str
    typing_only: bool
    lazy: bool


def module_name(path: Path) -> str:
    """Return a module's dotted name within the package; a package's own is its folder."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


def place(module: str) -> str:
    """Return the longest entry of `MAY_IMPORT` that a module lies in."""
    while module not in MAY_IMPORT:
        module = module.rpartition(".")[0]
        assert module, "a new folder has to be given its rule"
    return module


@cache
def imports(module: str) -> tuple[Import, ...]:
    """Return everything that a module imports, wherever the statement stands."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    return tuple(_imports(tree, typing_only=False, lazy=False))


def _imports(node: ast.AST, *, typing_only: bool, lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        guarded = typing_only or (
            isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        )
        inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, guarded, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (
                Import(f"{child.module}.{alias.name}", guarded, inside) for alias in child.names
            )
        else:
            yield from _imports(child, typing_only=guarded, lazy=inside)


def own(target: str) -> str | None:
    """Return the module of ours that a target names or lies in; None for any other."""
    package, _, rest = target.partition(".")
    if package != PACKAGE:
        return None
    while rest and rest not in MODULES:
        rest = rest.rpartition(".")[0]
    return rest or None


def imported(module: str, *, run_time_only: bool = False) -> set[str]:
    """Return the modules of ours that a module imports."""
    found = {
        own(entry.target)
        for entry in imports(module)
        if not (run_time_only and (entry.typing_only or entry.lazy))
    }
    return {name for name in found if name is not None}


def foreign(module: str) -> set[str]:
    """Return the other packages that a module imports at run time."""
    return {entry.target.partition(".")[0] for entry in imports(module) if not entry.typing_only}


def test_the_walk_sees_imports() -> None:
    """The rules below would see what they forbid: known imports of each kind are found."""
    assert "service.checks" in imported("service.service")
    assert "service.models" in imported("service.lifecycle")
    assert "service.models" not in imported("service.lifecycle", run_time_only=True)
    assert "server" in imported("cli")
    assert "vllm" in foreign("worker.vllm_backend")
    assert "fastapi" in foreign("http.app")


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_imports_keep_the_rules(module: str) -> None:
    """A module imports what its folder may, also for type checking."""
    here = place(module)
    allowed = MAY_IMPORT[here] | {"types", "errors"}
    wrong = [name for name in imported(module) if not {place(name), name} & (allowed | {here})]
    assert wrong == []


def test_there_are_no_cycles() -> None:
    """No module imports itself by way of others when it is loaded."""
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join((*path, module))
        if module not in done:
            for target in imported(module, run_time_only=True):
                visit(target, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize(
    "module", [name for name in MODULES if name and place(name) not in KNOW_HTTP]
)
def test_nothing_below_knows_http(module: str) -> None:
    """Service, engine and worker import no web framework, so that they can be used without one."""
    assert foreign(module) & WEB == set()


@pytest.mark.parametrize("module", [name for name in MODULES if name and place(name) not in VLLM])
def test_only_the_workers_side_imports_vllm(module: str) -> None:
    """vLLM, torch and transformers are imported in two folders and nowhere else."""
    assert foreign(module) & HEAVY == set()


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_tables_are_read_by_bulk_jobs_alone(module: str) -> None:
    """pyarrow is imported under bulk/ and nowhere else, and there only where it is used."""
    found = [entry for entry in imports(module) if entry.target.partition(".")[0] == "pyarrow"]
    assert not found or place(module).startswith("bulk")
    assert all(entry.lazy or entry.typing_only for entry in found)


def test_dialects_do_not_import_each_other() -> None:
    """A dialect stands on what all share, so that each can be read and dropped alone."""
    dialects = {
        name
        for name in MODULES
        if re.search(r"^DIALECT = ", MODULES[name].read_text(), re.MULTILINE)
    }
    assert len(dialects) > 5
    for name in dialects:
        neighbours = {other for other in dialects if place(other) == place(name)}
        assert imported(name) & neighbours == set()


def test_types_import_nothing_of_ours() -> None:
    """The vocabulary stands on its own."""
    assert imported("types") == set()


@pytest.mark.parametrize("entry", ["embedding_service.server", "embedding_service.worker.__main__"])
@pytest.mark.process
def test_no_process_imports_an_engine_by_itself(entry: str) -> None:
    """Importing the gateway, or an idle worker, imports neither torch nor vLLM."""
    assert loaded_by(entry, HEAVY) == "[]\n"


@pytest.mark.process
def test_a_gateway_without_batches_does_not_import_them() -> None:
    """Files and batches cost a start nothing where `state_dir` is not set."""
    batches = {name for name in MODULES if name.startswith("batches")} | {"http.batches"}
    unwanted = {f"embedding_service.{name}" for name in batches} | {"sqlite3"}
    assert loaded_by("embedding_service.server", unwanted) == "[]\n"


def loaded_by(entry: str, unwanted: set[str]) -> str:
    """Import a module in a process of its own; return which of some are there then."""
    script = f"import sys, {entry}; print(sorted({unwanted!r} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

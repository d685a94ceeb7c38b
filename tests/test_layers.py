"""The shape of the house: who may import whom, read from the syntax trees."""

from __future__ import annotations

import ast
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
LAYERS = {
    "types": 0,
    "errors": 0,
    "options": 0,
    "presets": 0,
    "settings": 0,
    "configuration": 0,
    "keys": 1,
    "systemd": 1,
    "telemetry": 1,
    "tracing": 1,
    "engine": 1,
    "core": 2,
    "api": 3,
    "lifecycle": 3,
    "app": 4,
    "connection": 4,
    "server": 4,
    "cli": 4,
    "__main__": 4,
}
# What the dialects share; every other module of `api` is a dialect.
SHARED_BY_DIALECTS = {"wire", "direct", "within", "problems", "middleware", "auth", "ratelimit", "embedding", "scoring"}
PLUGINS = "engine.plugins"  # imports vLLM when vLLM calls it
WORKER_SIDE = {
    "engine.bge_m3_model",
    "engine.cpu_attention",
    "engine.cpu_encoder",
    "engine.roberta_models",
    "engine.splade_model",
    "engine.vllm_arguments",
    "engine.vllm_compat",
}
WEB = {"fastapi", "starlette", "uvicorn", "httptools", "httpx"}
HEAVY = {"vllm", "torch", "transformers"}


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


def layer(module: str) -> int:
    return LAYERS[module.partition(".")[0]]


@cache
def imports(module: str) -> tuple[Import, ...]:
    """Return everything that a module imports, wherever the statement stands."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    return tuple(_imports(tree, typing_only=False, lazy=False))


def _imports(node: ast.AST, *, typing_only: bool, lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        guarded = typing_only or (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING")
        inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, guarded, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (Import(f"{child.module}.{alias.name}", guarded, inside) for alias in child.names)
        else:
            yield from _imports(child, typing_only=guarded, lazy=inside)


def own(target: str) -> str | None:
    """Return the module of ours that a target names or lies in; None for other packages and the package itself."""
    package, _, rest = target.partition(".")
    if package != PACKAGE:
        return None
    while rest and rest not in MODULES:
        rest = rest.rpartition(".")[0]
    return rest or None


def imported(module: str, *, run_time_only: bool = False) -> set[str]:
    """Return the modules of ours that a module imports."""
    found = {
        own(entry.target) for entry in imports(module) if not (run_time_only and (entry.typing_only or entry.lazy))
    }
    return {name for name in found if name is not None}


def foreign(module: str) -> set[str]:
    """Return the other packages that a module imports at run time."""
    return {entry.target.partition(".")[0] for entry in imports(module) if not entry.typing_only}


def test_the_walk_sees_imports() -> None:
    """The rules below would see what they forbid: known imports of each kind are found."""
    assert "api.wire" in imported("api.openai")
    assert "core.service" in imported("lifecycle")
    assert "core.service" not in imported("lifecycle", run_time_only=True)
    assert "server" in imported("cli")
    assert "vllm" in foreign("engine.vllm_compat")
    assert "fastapi" in foreign("app")


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_every_module_has_a_layer(module: str) -> None:
    """A new module or folder has to be given its place."""
    assert module.partition(".")[0] in LAYERS


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_imports_point_down(module: str) -> None:
    """A module imports from its own layer or below, also for type checking."""
    assert [target for target in imported(module) if layer(target) > layer(module)] == []


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


@pytest.mark.parametrize("module", [name for name in MODULES if name and layer(name) < 3])
def test_nothing_below_the_api_knows_http(module: str) -> None:
    """Types, engine and core import no web framework, so that they can be used without one."""
    assert foreign(module) & WEB == set()


@pytest.mark.parametrize("module", [name for name in MODULES if name not in WORKER_SIDE | {PLUGINS}])
def test_only_the_workers_side_imports_vllm(module: str) -> None:
    """vLLM, torch and transformers are imported by the worker's files and nowhere else."""
    assert foreign(module) & HEAVY == set()


@pytest.mark.parametrize("module", sorted(WORKER_SIDE))
def test_the_workers_side_is_imported_by_the_worker_only(module: str) -> None:
    """The files that import vLLM at their top are imported by the worker, inside a function."""
    users = {name for name in MODULES if module in imported(name)} - WORKER_SIDE
    assert users <= {"engine.worker"}
    assert all(module not in imported(name, run_time_only=True) for name in users)


DIALECTS = [name for name in MODULES if name.startswith("api.") and name.rpartition(".")[2] not in SHARED_BY_DIALECTS]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects_do_not_import_each_other(dialect: str) -> None:
    """A dialect stands on what all share, so that each can be read and dropped alone."""
    assert imported(dialect) & (set(DIALECTS) - {dialect}) == set()


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("api.") and name not in DIALECTS])
def test_what_dialects_share_knows_no_dialect(module: str) -> None:
    """Shared modules import no dialect."""
    assert imported(module) & set(DIALECTS) == set()


def test_types_import_nothing_of_ours() -> None:
    """The vocabulary and the errors stand on their own."""
    assert imported("types") == imported("errors") == set()


@pytest.mark.parametrize("entry", ["embedding_service.server", "embedding_service.engine.worker"])
def test_no_process_imports_an_engine_by_itself(entry: str) -> None:
    """Importing the gateway, or the worker before it knows its model, imports neither torch nor vLLM."""
    script = f"import sys, {entry}; print(sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "[]\n", done.stderr

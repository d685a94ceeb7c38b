"""docs/changing.md, which says where to change things, against the source."""

from __future__ import annotations

import importlib.util
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from embedding_service import server
from embedding_service.dropin.presets import PRESETS
from embedding_service.http import app
from tests.conftest import FAKE
from tests.test_layers import MODULES, PACKAGE, foreign

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningGateway

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "changing.md").read_text(encoding="utf-8")
TABLE = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", PAGE, re.MULTILINE)[1:]
ROWS = {task.strip("[").partition("]")[0]: (files, checks) for task, files, checks in TABLE}
PATH = re.compile(r"`([\w./-]+\.(?:json|md|py|txt|yaml)|Dockerfile)`")


def paths(text: str) -> set[Path]:
    """Return the files that a text names, those of the package first; `NAME` is any name."""
    found: set[Path] = set()
    for name in PATH.findall(text):
        pattern = name.replace("NAME", "*")
        matching = {*(ROOT / PACKAGE).glob(pattern), *ROOT.glob(pattern)}
        assert matching, name
        found |= matching
    return found


def defining(variable: str) -> set[str]:
    """Return the modules that define a variable of this name."""
    pattern = re.compile(rf"^{variable}\b.* = ", re.MULTILINE)
    return {name for name, path in MODULES.items() if pattern.search(path.read_text("utf-8"))}


def test_every_path_on_the_page_exists() -> None:
    """All files that the page names are there, in the table and in the text."""
    assert len(paths(PAGE)) > 30


def test_a_task_stands_there_once() -> None:
    """No row and no section is there twice, as merges of branches leave them."""
    sections = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert len(ROWS) == len(TABLE) > 10
    assert len(set(sections)) == len(sections) > 10


@pytest.mark.parametrize("task", ROWS)
def test_every_check_can_be_run(task: str) -> None:
    """The command of a task names tests and targets that exist."""
    commands = re.findall(r"`(pytest|make) (.+?)`", ROWS[task][1])
    assert commands
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for program, words in commands:
        for word in words.split():
            if program == "make":
                assert f"\n{word}:" in makefile
            else:
                assert word in ("-m", "engine") or (ROOT / word).exists(), word


def test_every_dialect_is_in_the_list() -> None:
    """Each module of dialects/ that defines one is mounted, in the place the page names."""
    modules = {name for name in defining("DIALECT") if name.startswith("dialects.")}
    assert len(modules) > 4
    source = MODULES["http.app"].read_text(encoding="utf-8")
    mounted = re.findall(r"^    (\w+)\.DIALECT,$", source, re.MULTILINE)
    assert modules <= {f"dialects.{name}" for name in mounted}
    assert len(mounted) == len(set(mounted))


def test_every_preset_is_in_the_list() -> None:
    """Each file in config/drop-in/ is that of a preset, and each preset has its file."""
    files = {
        path.stem: path.read_text("utf-8") for path in (ROOT / "config/drop-in").glob("*.yaml")
    }
    assert files.keys() == PRESETS.keys()
    for name, text in files.items():
        assert f"\npreset: {name}\n" in text


def test_a_kind_of_output_is_named_where_the_page_says() -> None:
    """Hidden states, the output that the page takes for its example, are known to five files."""
    named = {path for path in MODULES.values() if "Output.HIDDEN_STATES" in path.read_text("utf-8")}
    assert named == paths(ROWS["A kind of output"][0])
    assert len(named) <= 5


def test_vllm_is_imported_where_the_page_says() -> None:
    """A new version of vLLM concerns the modules of its row, and no other module imports it."""
    importing = {MODULES[name] for name in MODULES if name and "vllm" in foreign(name)}
    listed = paths(ROWS["Another version of vLLM"][0])
    assert importing <= listed
    assert {path for path in listed if path.parent.name == "worker"} <= importing


def test_one_version_of_vllm_is_pinned() -> None:
    """Requirements for GPUs and for CPUs, and the image, have the same vLLM."""
    files = ("requirements.txt", "requirements-cpu.txt", "Dockerfile")
    pins = [
        re.findall(
            r"^(?:FROM vllm/vllm-openai:v|vllm(?:-cpu)?==)([\d.]+)",
            (ROOT / file).read_text("utf-8"),
            re.MULTILINE,
        )
        for file in files
    ]
    assert len(set(map(tuple, pins))) == 1 == len(pins[0]), pins


def test_the_dialect_on_the_page_works(
    tmp_path: Path, start_gateway: Callable[..., RunningGateway]
) -> None:
    """The page's example is a whole dialect: it answers, and errors have its shape and names."""
    (tmp_path / "sentences.py").write_text(
        re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)[0], encoding="utf-8"
    )
    spec = importlib.util.spec_from_file_location("sentences", tmp_path / "sentences.py")
    assert spec is not None
    assert spec.loader is not None
    sentences = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sentences)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            server,
            "create_app",
            partial(app.create_app, dialects=(*app.DIALECTS, sentences.DIALECT)),
        )
        gateway = start_gateway(**FAKE)
    with gateway.client() as http:
        example = sentences.DIALECT.operations[0].example
        rows = http.post("/sentences", json={"model": "fake", **example}).json()["rows"]
        error = http.post("/sentences", json={"model": "fake", "sentences": ["w1"], "width": 7})
    gateway.stop()
    assert [len(row) for row in rows] == [32]
    assert (error.status_code, error.json()) == (
        400,
        {
            "oops": "width must be 32: fake is not known to be trained for shorter vectors "
            "(matryoshka: true in the server's settings allows them)"
        },
    )

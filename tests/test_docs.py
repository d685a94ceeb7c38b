"""Links of the documentation lead somewhere, and what its text names is there.

`tests/docs/test_blocks.py` runs its blocks.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from pydantic import TypeAdapter
from typer.main import get_command
from typer.testing import CliRunner

from embedding_service.cli import app
from embedding_service.commands.lazy import COMMANDS as LAZY
from embedding_service.commands.lazy import imported
from embedding_service.commands.settings import SettingsCommand
from embedding_service.settings import catalogue, flags
from embedding_service.settings.keys import KeySettings
from embedding_service.settings.load import load
from tests.documents import PAGES, ROOT, Block, anchors, blocks, commands
from tests.test_layers import MAY_IMPORT, PACKAGE

if TYPE_CHECKING:
    from pathlib import Path

LINK = re.compile(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)")
# `folder/`, `folder/module.py` and `folder/test_module.py::test_promise`.
PATH = re.compile(r"`((?:[\w-]+/)*(?:[\w-]+\.py|[\w-]+/))(?:::(\w+))?`")
# "What is cut ..." at the beginning of a line of prose, a comment, a docstring or a sentence.
CLAUSE = re.compile(r'(?m)(?:^#+ |^\s*# |"""|\. |^- )(?:What|Who) [a-z][^?\n]*$')
WRITTEN = ("embedding_service/**/*.py", "tests/**/*.py", "benchmarks/*.py", "config/**/*.yaml")
BASES = (ROOT, ROOT / PACKAGE, ROOT / "tests", ROOT / "tests" / "soak")
LITELLM = {"openai/", "hosted_vllm/", "cohere/", "jina_ai/"}  # its prefixes of models' names
# The notebook tells of files as they were; docs/changing.md has tests/test_changing.py.
OF_TODAY = [page for page in PAGES if "notebook" not in page.parts and page.stem != "changing"]


def text_of(page: Path | str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link is to a file or folder of this repository, and to a heading in it."""
    for target, anchor in LINK.findall(text_of(page)):
        path = page.parent / target if target else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), f"{target}#{anchor}"


def test_no_sentence_begins_with_a_relative_clause() -> None:
    """CONTRIBUTING.md: neither a page nor a comment has a sentence whose subject is a clause."""
    written = [*PAGES, *(path for place in WRITTEN for path in ROOT.glob(place))]
    found = {
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in written
        for match in CLAUSE.finditer(text_of(path))
    }
    assert found == set()


@pytest.mark.parametrize("page", OF_TODAY, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_folders_and_tests_exist(page: Path) -> None:
    """Every module, folder and test that a page names is there, under that name."""
    for path, test in PATH.findall(text_of(page)):
        places = [base / path for base in BASES if (base / path).exists()]
        assert places or path in LITELLM, path
        if test:
            assert any(f"def {test}(" in text_of(place) for place in places), f"{path}::{test}"


def test_the_table_of_folders_is_complete() -> None:
    """docs/architecture.md has a row for each rule of tests/test_layers.py."""
    page = text_of("docs/architecture.md").partition("## The walk")[0]
    rows = re.findall(r"^\| `([\w/.]+)` \|", page, re.MULTILINE)
    names = {row.removesuffix(".py").strip("/").replace("/", ".") for row in rows}
    assert names == MAY_IMPORT.keys()


def test_every_promise_names_a_test() -> None:
    """Each row of docs/reliability.md ends with the tests that show it on every change."""
    page = text_of("docs/reliability.md").partition("## Shown on every change")[2]
    _, _, *promises = re.findall(r"^\| .+ \| (.+) \|$|^\|---.*", page, re.MULTILINE)
    assert len(promises) > 40
    for tests in promises:
        assert all(PATH.fullmatch(test) for test in tests.split(", ")), tests


COMMANDS = commands("embedding-service")
FILES = re.compile(r"(?:config|deploy)/[\w./-]+\.yaml")


def test_commands_are_found() -> None:
    """The tests below see the commands of blocks and of running text, with their arguments."""
    assert ("README.md", ["init", "--model", "bge-m3", "--reranker"]) in COMMANDS
    assert ("docs/errors.md", ["settings", "NAME"]) in COMMANDS
    assert ("deploy/systemd/README.md", ["keys", "new", "--name", "first"]) in COMMANDS
    assert len(COMMANDS) > 30


@pytest.mark.parametrize(("page", "arguments"), COMMANDS, ids=str)
def test_commands_have_known_flags(page: str, arguments: list[str]) -> None:
    """Documents name only commands, flags, settings and files of ours that there are."""
    command: Any = get_command(app)
    rest = list(arguments)
    while rest and rest[0] in getattr(command, "commands", {}):
        word = rest.pop(0)
        command = imported(word) if word in LAZY else command.commands[word]
    own = {flag for param in command.params for flag in [*param.opts, *param.secondary_opts]}
    own |= {"--help", "-h"}
    own |= {"-"}  # standard input
    unknown = [word for word in rest if word.startswith("-") and word.partition("=")[0] not in own]
    if isinstance(command, SettingsCommand) or "ignore_unknown_options" in command.context_settings:
        for word in unknown:
            assert catalogue.find(word.partition("=")[0]), word
    else:
        assert unknown in ([], ["-"])
        group = getattr(command, "commands", None)
        assert group is None or all(word.startswith("-") for word in rest), f"{page}: {rest}"
    for word in rest:
        assert not FILES.fullmatch(word) or (ROOT / word).exists(), word


RUN = [
    arguments
    for _, arguments in COMMANDS
    if "NAME" not in arguments
    and (
        arguments[0] in ("settings", "--help", "version")
        or (arguments[:1] == ["init"] and len(arguments) > 1)
        or arguments[:2] == ["keys", "new"]
        or (arguments[0] == "check-config" and "--config" not in arguments)
        or arguments[-1].startswith("--help")
    )
]


@pytest.mark.parametrize("arguments", RUN, ids=" ".join)
def test_commands_run(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands that need no model do as they are typed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model" / "config.json").write_text("{}")
    if "--for" in arguments and "--model" not in arguments:
        (tmp_path / "embedding-service.yaml").write_text("model_name: mine")
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert result.output


def test_the_second_model_is_as_init_writes_it() -> None:
    """The page shows the models of the file that its next sentence names."""
    page = (block for block in blocks("yaml") if block.page.name == "getting-started.md")
    shown = next(yaml.safe_load(block.text) for block in page if "rerank" in block.text)
    arguments = ["init", "--model", "bge-m3", "--reranker", "-o", "-"]
    written = yaml.safe_load(CliRunner().invoke(app, arguments).stdout)
    assert shown == {"models": written["models"]}


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.page.name)
def test_yaml_is_accepted(block: Block, tmp_path: Path) -> None:
    """Every YAML block is a settings file that `check-config` accepts, or a list of keys."""
    text = re.sub(r"sha256:\w+…", "sha256:" + "ab" * 32, block.text)
    tree = yaml.safe_load(text)
    if isinstance(tree, list):
        assert TypeAdapter(list[KeySettings]).validate_python(tree)
        return
    (tmp_path / "settings.yaml").write_text(text, "utf-8")
    _, warnings = load(tmp_path / "settings.yaml")
    assert warnings == []


@pytest.mark.parametrize(("page", "arguments"), commands("make"), ids=str)
def test_make_has_the_target(page: str, arguments: list[str]) -> None:
    """Every target and variable of `make` exists, and what it is given can be read."""
    makefile = text_of("Makefile")
    words = [word for word in arguments if word not in ("-C", "/opt/embedding-service")]
    variables = dict(word.split("=", 1) for word in words if "=" in word)
    for word in words:
        if "=" not in word:
            assert f"\n{word}:" in makefile, f"{page}: {word}"
    assert all(re.search(rf"^{variable} \?=", makefile, re.MULTILINE) for variable in variables)
    assert (ROOT / variables.get("CONFIG", ".")).exists()
    if "serve" in words:
        assert isinstance(flags.read(variables.get("ARGS", "").split()), dict)


def test_the_index_leads_everywhere() -> None:
    """docs/index.md has every page of docs/, and of deploy/."""
    linked = {
        (ROOT / "docs" / target).resolve() for target, _ in LINK.findall(text_of("docs/index.md"))
    }
    pages = [*ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*/README.md")]
    assert [page for page in pages if page not in linked and page.stem != "index"] == []

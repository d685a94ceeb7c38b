"""What the documentation points at exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_layers import MAY_IMPORT, PACKAGE

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)")
# `folder/`, `folder/module.py` and `folder/test_module.py::test_promise`.
PATH = re.compile(r"`((?:[\w-]+/)*(?:[\w-]+\.py|[\w-]+/))(?:::(\w+))?`")
BASES = (ROOT, ROOT / PACKAGE, ROOT / "tests", ROOT / "tests" / "soak")
LITELLM = {"openai/", "hosted_vllm/", "cohere/", "jina_ai/"}  # its prefixes of models' names
# The notebook tells of files as they were; docs/changing.md has tests/test_changing.py.
OF_TODAY = [page for page in PAGES if "notebook" not in page.parts and page.stem != "changing"]


def text_of(page: Path | str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link is to a file or folder of this repository."""
    for target in LINK.findall(text_of(page)):
        assert (page.parent / target).exists(), target


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

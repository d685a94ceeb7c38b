"""What the documentation points at exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link is to a file or folder of this repository."""
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_tests_that_show_a_promise_exist() -> None:
    """Every test that docs/reliability.md names is there, under that name."""
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    names = re.findall(
        r"`((?:[a-z_]+/)*test_[a-z_]+\.py)(?:::(test_\w+))?", page.partition("## Shown on every change")[2]
    )
    assert len(names) > 40
    for file, test in names:
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in source, f"{file}::{test}"

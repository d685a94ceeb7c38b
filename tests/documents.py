"""The parts of a page: its commands, blocks, links and headings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
# The notebook tells of files and commands as they were, and the changelog of those that are gone.
OF_TODAY = [page for page in PAGES if "notebook" not in page.parts]
# A fence of either kind, in a list or not, of any language.
_BLOCK = re.compile(r"^( *)(```+|~~~+) *(.*)\n((?:.*\n)*?)\1\2 *$", re.MULTILINE)
_FENCE = re.compile(r"^ *(?:```|~~~)", re.MULTILINE)
_INLINE = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
_END = re.compile(r"^(?:[|;&]+|\d*[<>]{1,2}.*|#.*)$")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    language: str
    text: str


def name(page: Path) -> str:
    """Return a page's path in the repository."""
    return str(page.relative_to(ROOT))


def blocks(*languages: str) -> list[Block]:
    """Return the fenced blocks of all pages of today in these languages."""
    return [block for page in OF_TODAY for block in blocks_of(page) if block.language in languages]


def blocks_of(page: Path) -> list[Block]:
    """Return all fenced blocks of a page. Raises `AssertionError` if a fence is left over."""
    text = page.read_text("utf-8")
    found = [Block(page, language, body) for _, _, language, body in _BLOCK.findall(text)]
    assert len(_FENCE.findall(text)) == 2 * len(found), f"{name(page)}: a fence has no other"
    return found


def commands(program: str) -> list[tuple[str, list[str]]]:
    """Return page and arguments of every call of a program, in blocks and in running text."""
    found = []
    for page in OF_TODAY:
        for line in _lines(page.read_text("utf-8")):
            found += [(name(page), arguments) for arguments in _calls(line, program)]
    return found


def _lines(text: str) -> Iterator[str]:
    for _, _, language, block in _BLOCK.findall(text):
        if language in ("sh", "bash"):
            yield from block.replace("\\\n", " ").splitlines()
    for inline in _INLINE.findall(_BLOCK.sub("", text)):
        yield " ".join(inline.split())


def _calls(line: str, program: str) -> Iterator[list[str]]:
    line = re.sub(r"(^|\s)#.*", "", line)
    try:
        words = shlex.split(re.sub(r"([;|])", r" \1 ", line) if program != "curl" else line)
    except ValueError:  # an apostrophe in running text
        return
    for place, word in enumerate(words):
        here = word == program or word.endswith(f"bin/{program}")
        if here and (place == 0 or _begins(words[place - 1], word)):
            rest = words[place + 1 :]
            end = next((i for i, each in enumerate(rest) if _END.match(each)), len(rest))
            if end:
                yield rest[:end]


def _begins(before: str, word: str) -> bool:
    """Tell whether a command begins behind this word, and is no argument of another."""
    return bool(_END.match(before)) or "/" in word or "=" in before or before in ("sudo", "--")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = _BLOCK.sub("", page.read_text("utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}

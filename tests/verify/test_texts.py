"""The built-in texts have what breaks servers; files of texts are read as they are."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import pytest

from embedding_service.errors import BadConfiguration
from embedding_service.verify import texts

if TYPE_CHECKING:
    from pathlib import Path

# First words of the names of letters, by which Unicode tells scripts apart.
_STYLES = {"FULLWIDTH", "HALFWIDTH", "MATHEMATICAL", "SCRIPT", "MODIFIER", "DOUBLE-STRUCK"}


@pytest.mark.parametrize("context", [1, 256, 8192])
def test_there_are_200_different_texts(context: int) -> None:
    """The last three are longer than any context, whatever it is, and none is empty."""
    chosen = texts.built_in(context)
    assert len(chosen) == 200
    assert all(chosen)
    assert all(len(text.split()) >= context for text in chosen[-3:])
    assert context == 1 or len(set(chosen)) == 200


def test_they_have_what_breaks_servers() -> None:
    """Some twenty scripts, capitals and their small letters, marks, joiners, odd white space."""
    chosen = texts.built_in(256)
    together = "".join(chosen)
    letters = {unicodedata.name(char, "").partition(" ")[0] for char in together if char.isalpha()}
    assert len(letters - _STYLES) >= 25
    assert sum(text.lower() in chosen for text in chosen if text != text.lower()) >= 10
    for odd in ("\r\n", "\u00a0", "\u200b", "\u200d", "\u202e", "\ufeff", "\u0301", "\x01", "<s>"):
        assert odd in together
    assert any(len(text) > 200 and " " not in text for text in chosen)
    together.encode()  # no lone surrogate, which no API takes


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "one\r\n\n two \u2028x\n"),
        ("a.txt", "\ufeffone\n \t\n two \u2028x"),
        ("a.json", '["one", " two \\u2028x"]'),
        ("a.jsonl", '"one"\n\n" two \\u2028x"\n'),
    ],
)
def test_files_are_read(tmp_path: Path, name: str, content: str) -> None:
    """A text stays as it is, except for the end of its line."""
    path = tmp_path / name
    path.write_bytes(content.encode())
    assert texts.read(path) == ["one", " two \u2028x"]


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    """A carriage return within a line is part of a text."""
    (tmp_path / "a.txt").write_bytes(b"a\rb\r\nc")
    assert texts.read(tmp_path / "a.txt") == ["a\rb", "c"]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.json", b'{"a": 1}', "each text has to be a JSON string"),
        ("a.jsonl", b"1\n", "each text has to be a JSON string"),
        ("a.jsonl", b"x\n", "not JSON as its name says"),
        ("a.txt", b"\xff", "it is not UTF-8"),
        ("a.jsonl", b'"\\ud800"\n', "not JSON as its name says"),
        ("a.json", b"[" * 100_000, "not JSON as its name says"),
        ("a.txt", b"\n \r\n", "there is no text in it"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes, line: str) -> None:
    """One line says why."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadConfiguration, match=line):
        texts.read(path)

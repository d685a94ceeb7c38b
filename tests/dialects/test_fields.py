"""Names that clients choose, where they come back in messages and headers."""

from __future__ import annotations

import pytest

from embedding_service.dialects.fields import MOST_ECHOED_CHARACTERS, header_list


@pytest.mark.parametrize("name", ["a\r\nset-cookie: b", "naïve", "\0", "\x7f", "emoji 😀"])
def test_header_values_are_printable_ascii(name: str) -> None:
    """No field name of a client can break a header."""
    value = header_list([name])
    assert value.isascii()
    assert value.isprintable()


def test_long_header_lists_end_between_names() -> None:
    """A list that is too long for a header is cut between two names and says so."""
    value = header_list(map(str, range(1000)))
    *names, last = value.split(", ")
    assert names == [str(i) for i in range(len(names))]
    assert last == "..."
    assert len(value) <= MOST_ECHOED_CHARACTERS + len(", ...")

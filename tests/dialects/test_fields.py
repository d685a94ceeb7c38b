"""Names that clients choose, where they come back in messages and headers."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import ValidationError

from embedding_service.dialects.fields import (
    MOST_ECHOED_CHARACTERS,
    Fields,
    Limits,
    header_list,
    read_fields,
)
from embedding_service.errors import InvalidRequest


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


class Inner(Fields):
    """A list in an object."""

    words: list[str]


class Outer(Fields):
    """Lists of every kind that requests have."""

    words: list[str] | None = None
    ids: list[int] | None = None
    either: list[str | Inner] | None = None
    inner: Inner | None = None


FEW = Limits(items=3, tokens=5)
FITTING = {"words": ["a"] * 3, "ids": [1] * 5, "either": ["a"] * 3, "inner": {"words": ["a"] * 3}}


@pytest.mark.parametrize(
    ("tree", "name"),
    [
        ({"words": [{}] * 4}, "words"),
        ({"ids": [1] * 6}, "ids"),
        ({"either": [{}] * 4}, "either"),
        ({"inner": {"words": [{}] * 4}}, "inner.words"),
    ],
)
def test_a_list_that_is_too_long_is_not_looked_at(tree: dict[str, object], name: str) -> None:
    """Every list of a request is bounded, also in an inner object, before its items are read."""
    read_fields(Outer, FITTING, FEW)
    with pytest.raises(InvalidRequest, match=r"at most|more than") as caught:
        read_fields(Outer, tree, FEW)
    assert caught.value.param == name


class Words(Fields):
    """Fields whose values are words, and one of texts."""

    model: str | None = None
    kind: Literal["a", "b"] | None = None
    kinds: list[Literal["a", "b"]] | None = None
    size: int | None = None
    text: str | list[str] | None = None
    within: Inner | None = None


@pytest.mark.parametrize("name", ["model", "kind", "kinds", "size"])
def test_a_text_in_place_of_a_word_is_not_looked_at(name: str) -> None:
    """Pydantic would copy it three times, and the model's name be looked up on the event loop."""
    text = "x" * (1 + (1 << 18))
    read_fields(Words, {"text": [text], "within": {"words": [text]}})
    with pytest.raises(InvalidRequest, match="more than 262144 characters") as caught:
        read_fields(Words, {name: [text] if name == "kinds" else text})
    assert caught.value.param == name


def test_a_list_ends_at_its_first_wrong_item() -> None:
    """However many items are wrong, one is reported, and no error is made for the others."""
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"words": [{}] * 1000, "either": [1] * 1000})
    assert caught.value.error_count() <= 4  # the first of each list, in every type of the union


def test_unknown_fields_are_bounded() -> None:
    """A hundred fields that nobody knows are ignored, and more are refused."""
    _, ignored = read_fields(Outer, dict.fromkeys(map(str, range(100))))
    assert len(ignored) == 100
    with pytest.raises(InvalidRequest, match="101 fields") as caught:
        read_fields(Outer, dict.fromkeys(map(str, range(101))))
    assert caught.value.param == "0"

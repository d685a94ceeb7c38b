"""Values are counted before they are made: as many as a slow reader counts, whatever surrounds them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_service.http import json_values
from embedding_service.http.json_values import has_longer_number, has_more_values

SIGNS = st.text('a\\",:[{}] \n', max_size=40)
TREES = st.dictionaries(
    SIGNS,
    st.recursive(
        SIGNS | st.none() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(SIGNS, inner),
    ),
)


def counted(body: bytes) -> int:
    """Count byte by byte: one value, and one more after each comma, colon and opening bracket."""
    total, inside, escaped = 1, False, False
    for byte in body:
        sign = chr(byte)
        if inside and (escaped or sign == "\\"):
            escaped = not escaped
        elif sign == '"':
            inside = not inside
        elif not inside:
            total += sign in ",:[{"
    return total


@given(TREES, st.integers(1, 40))
def test_counts_what_a_slow_reader_counts(tree: dict[str, object], slice_bytes: int) -> None:
    """Signs in strings are no values, whatever is escaped and wherever a slice ends."""
    body = json.dumps(tree).encode()
    total = counted(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "_SLICE_BYTES", slice_bytes)
        assert not has_more_values(body, total)
        assert has_more_values(body, total - 1)


def longest_number(body: bytes) -> int:
    """Return the longest run of digits outside strings, read byte by byte."""
    longest = run = 0
    inside = escaped = False
    for byte in body:
        sign = chr(byte)
        run = run + 1 if not inside and sign.isdigit() else 0
        longest = max(longest, run)
        if inside and (escaped or sign == "\\"):
            escaped = not escaped
        elif sign == '"':
            inside = not inside
    return longest


@given(st.lists(st.integers() | st.text('12\\",[')), st.integers(1, 40), st.integers(1, 30))
def test_finds_the_longest_number(tree: list[object], slice_bytes: int, digits: int) -> None:
    """Digits in strings are no numbers, and a number may reach over slices."""
    body = json.dumps(tree).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "_SLICE_BYTES", slice_bytes)
        assert has_longer_number(body, digits) is (longest_number(body) > digits)


def values_in(tree: object) -> int:
    """Count the values of a tree, names included."""
    if isinstance(tree, dict):
        return 1 + sum(1 + values_in(value) for value in tree.values())
    return 1 + sum(map(values_in, tree)) if isinstance(tree, list) else 1


@given(TREES)
def test_no_value_is_missed(tree: dict[str, object]) -> None:
    """A body that passes holds no more values than that."""
    assert has_more_values(json.dumps(tree).encode(), values_in(tree) - 1)


@given(st.binary(max_size=60))
def test_any_bytes_are_counted(body: bytes) -> None:
    """A body that is not JSON is counted somehow, and never an error."""
    assert has_more_values(body, len(body)) is False
    has_more_values(body, 3)

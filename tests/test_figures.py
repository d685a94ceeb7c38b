"""How dense the source may be: in syntax nodes, which a reader takes in, and not only in lines."""

from __future__ import annotations

from functools import cache

import pytest

from benchmarks.figures import PACKAGE, Source, measure


@cache
def source() -> Source:
    """Return the counts of the whole service."""
    return measure(PACKAGE)


@pytest.mark.parametrize(("figure", "p50", "p90"), [("nodes", 60, 180), ("lines", 10, 30)])
def test_most_functions_are_small(figure: str, p50: int, p90: int) -> None:
    """Functions are short, and not by being packed."""
    median, tenth, _ = source().of_functions(figure)
    assert median <= p50
    assert tenth <= p90


def test_no_function_is_dense() -> None:
    """No function has more than 300 syntax nodes."""
    assert [function.place for function in source().functions if function.nodes > 300] == []


def test_comprehensions_do_not_nest() -> None:
    """No statement has a loop within the loop of a comprehension."""
    assert source().nested_comprehensions == []


def test_lines_have_at_most_100_columns() -> None:
    """Two files fit beside each other."""
    assert source().long_lines == []

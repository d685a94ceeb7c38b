"""The examples run as printed, against real clients in local mode."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.dialects.test_bge import THREE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningGateway


@pytest.fixture(scope="module")
def arguments(start_gateway: Callable[..., RunningGateway]) -> list[str]:
    """Return the examples' arguments for a gateway whose fake model gives all three vectors."""
    return ["--base-url", f"{start_gateway(**THREE).url}/v1", "--model", "m3"]


def test_qdrant_hybrid(arguments: list[str]) -> None:
    """A text that is its own query comes out first of a hybrid query with MaxSim reranking."""
    example = pytest.importorskip("examples.qdrant_hybrid")
    for text in example.DOCUMENTS:
        ranked = example.main([*arguments, "--query", text])
        assert ranked[0].payload["text"] == text
        assert ranked[0].score == pytest.approx(max(point.score for point in ranked))


def test_postgres_statements(arguments: list[str]) -> None:
    """Every text becomes one INSERT with all four types, sizes as declared."""
    example = pytest.importorskip("examples.postgres")
    lines = example.main([*arguments, "it's w1", "w2"])
    table = next(line for line in lines if line.startswith("CREATE TABLE"))
    assert "vector(32)" in table
    assert "halfvec(32)" in table
    assert "sparsevec(250002)" in table
    assert "bit(32)" in table
    inserts = [line for line in lines if line.startswith("INSERT")]
    assert len(inserts) == 2
    assert "'it''s w1'" in inserts[0]
    for line in inserts:
        assert re.search(r"B'[01]{32}'\);$", line)
        assert re.search(r"'\{(\d+:[\d.e-]+(,\d+:[\d.e-]+)*)?\}/250002'", line)

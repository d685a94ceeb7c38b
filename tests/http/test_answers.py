"""Answers on their way out: small parts become pieces, and nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_service.http import answers


@given(st.lists(st.binary(max_size=9), max_size=50), st.integers(1, 40))
def test_pieces_lose_nothing(parts: list[bytes], size: int) -> None:
    """Pieces join to what went in, and only the last may be smaller than was asked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "PIECE_BYTES", size)
        pieces = list(answers.pieces(parts))
    assert b"".join(pieces) == b"".join(parts)
    assert all(len(piece) >= size for piece in pieces[:-1])

"""Vectors as text: lists of numbers, and base64 of their bytes."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_service.dialects import embedding
from embedding_service.dialects.embedding import matrix_json, vector_json
from embedding_service.types import Encoding


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.uint8])
@pytest.mark.parametrize("shape", [(4,), (3, 4)])
def test_vectors_as_base64_are_their_bytes(dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    """Base64 holds the little-endian numbers, row after row."""
    vector = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    text = json.loads(vector_json(vector, Encoding.BASE64))
    decoded = np.frombuffer(
        base64.b64decode(text, validate=True), np.dtype(dtype).newbyteorder("<")
    )
    np.testing.assert_array_equal(decoded.reshape(shape), vector)


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20)
)
def test_floats_survive_json(values: list[float]) -> None:
    """A float32 written as JSON reads back as the same float32."""
    vector = np.array(values, np.float32)
    np.testing.assert_array_equal(
        np.array(json.loads(vector_json(vector, Encoding.FLOAT)), np.float32), vector
    )


@given(
    st.integers(0, 40),
    st.integers(1, 9),
    st.integers(1, 60),
    st.sampled_from(list(Encoding)),
    st.sampled_from([np.float32, np.float16, np.int8]),
)
def test_a_matrix_in_parts_is_the_matrix(
    rows: int, columns: int, at_once: int, encoding: Encoding, dtype: type[np.generic]
) -> None:
    """Rows that are written some at a time join to what they are in one go."""
    matrix = np.arange(rows * columns).reshape(rows, columns).astype(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "_NUMBERS_AT_ONCE", at_once)
        written = b"".join(matrix_json(matrix, encoding))
    assert written == vector_json(matrix, encoding)

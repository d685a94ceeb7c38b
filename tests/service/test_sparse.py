"""Lexical weights in the hashed index space."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embedding_service.service.vectors import HASH_SPACE, hash_indices
from embedding_service.types import Sparse

weights_of_ids = st.dictionaries(
    st.integers(0, 40) | st.integers(0, 250_001),
    st.floats(0, 4, width=32, exclude_min=True),
    max_size=200,
)


@given(weights_of_ids, st.sampled_from([1, 7, 1000, HASH_SPACE]))
def test_hash_sums_collisions(weights: dict[int, float], space: int) -> None:
    """An index is 32 bits of the id's sha256, modulo the space; collisions are summed."""
    ids = sorted(weights)
    sparse = Sparse(
        np.array(ids, np.int64), np.array([weights[token] for token in ids], np.float32)
    )
    expected: dict[int, float] = defaultdict(float)
    for token, weight in weights.items():
        expected[int(hashlib.sha256(str(token).encode()).hexdigest()[:8], 16) % space] += weight
    hashed = hash_indices(sparse, space=space)
    assert hashed.indices.dtype == np.int64
    assert hashed.values.dtype == np.float32
    assert hashed.indices.tolist() == sorted(expected)
    np.testing.assert_allclose(
        hashed.values, [expected[index] for index in sorted(expected)], rtol=1e-6
    )

"""Lexical weights: FlagEmbedding's merge and the hashed index space."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embedding_service.service.sparse import HASH_SPACE, hash_indices, merge_sparse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedding_service.types import Sparse

SKIP_IDS = (0, 1, 2, 3)
weights_of_tokens = st.lists(
    st.tuples(st.integers(0, 40) | st.integers(0, 250_001), st.floats(-1, 4, width=32)), max_size=200
)


def merge(tokens: list[tuple[int, float]]) -> Sparse:
    ids = np.array([token for token, _ in tokens], dtype=np.int32)
    weights = np.array([weight for _, weight in tokens], dtype=np.float32)
    return merge_sparse(ids, weights, skip_ids=SKIP_IDS)


def assert_equal(sparse: Sparse, expected: Mapping[int, float]) -> None:
    assert sparse.indices.dtype == np.int64
    assert sparse.values.dtype == np.float32
    assert sparse.indices.tolist() == sorted(expected)
    np.testing.assert_allclose(sparse.values, [expected[index] for index in sorted(expected)], rtol=1e-6)


@given(weights_of_tokens)
def test_merge_is_flagembeddings_rule(tokens: list[tuple[int, float]]) -> None:
    """The largest positive weight of each id, without the special tokens wherever they stand."""
    expected: dict[int, float] = {}
    for token, weight in tokens:
        if token not in SKIP_IDS and weight > 0:
            expected[token] = max(weight, expected.get(token, 0.0))
    assert_equal(merge(tokens), expected)


@given(weights_of_tokens, st.sampled_from([1, 7, 1000, HASH_SPACE]))
def test_hash_sums_collisions(tokens: list[tuple[int, float]], space: int) -> None:
    """An index is the first 32 bits of the id's sha256, modulo the space; colliding weights are summed."""
    sparse = merge(tokens)
    expected: dict[int, float] = defaultdict(float)
    for token, weight in zip(sparse.indices.tolist(), sparse.values.tolist(), strict=True):
        expected[int(hashlib.sha256(str(token).encode()).hexdigest()[:8], 16) % space] += weight
    assert_equal(hash_indices(sparse, space=space), expected)

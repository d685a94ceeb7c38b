"""Weights of the vocabulary, from the engine's array to what the gateway joins."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embedding_service.families import splade

WEIGHTS = st.lists(st.floats(0, 10, width=32) | st.just(0.0), min_size=1, max_size=40)


@given(st.lists(WEIGHTS, min_size=1, max_size=6))
def test_split_undoes_pack(texts: list[list[float]]) -> None:
    """Each text gets back its own ids and weights, also where it has none."""
    arrays = [np.array(text, np.float32) for text in texts]
    split = splade.split(np.concatenate([splade.pack(weights) for weights in arrays]))
    assert len(split) == len(arrays)
    for pairs, weights in zip(split, arrays, strict=True):
        assert pairs.shape == (np.count_nonzero(weights), 2)
        np.testing.assert_array_equal(pairs[:, 0], np.flatnonzero(weights))
        np.testing.assert_array_equal(pairs[:, 1], weights[weights > 0])


def test_a_nan_is_not_lost() -> None:
    """A weight that is not a number reaches the check for such, which refuses the whole answer."""
    ((pair,),) = splade.split(splade.pack(np.array([0, np.nan, 0], np.float32)))
    assert pair[0] == 1
    assert np.isnan(pair[1])


def test_large_ids_are_exact() -> None:
    """Ids of the largest vocabularies survive as float32."""
    weights = np.zeros(300_000, np.float32)
    weights[[262_143, 299_999]] = 0.5
    ((first, last),) = splade.split(splade.pack(weights))
    assert (first[0], last[0]) == (262_143, 299_999)

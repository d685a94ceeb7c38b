"""Lexical weights as rows of token id and weight, from a model's numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_service.families import lexical

SKIP_IDS = (0, 1, 2, 3)
TOKENS = st.lists(
    st.tuples(st.integers(0, 40) | st.integers(0, 250_001), st.floats(-1, 4, width=32)),
    max_size=200,
)
VOCABULARY = st.lists(st.floats(0, 10, width=32) | st.just(0.0), min_size=1, max_size=40)


def of_tokens(tokens: list[tuple[int, float]]) -> list[list[float]]:
    ids = np.array([token for token, _ in tokens], np.int32)
    weights = np.array([weight for _, weight in tokens], np.float32)
    rows = lexical.largest(lexical.of_tokens(ids, weights, skip_ids=SKIP_IDS))
    assert (rows.dtype, rows.shape[1]) == (np.float32, 2)
    return rows.tolist()


@given(TOKENS)
def test_tokens_merge_by_flagembeddings_rule(tokens: list[tuple[int, float]]) -> None:
    """The largest positive weight of each id, ascending, without special tokens anywhere."""
    expected: dict[int, float] = {}
    for token, weight in tokens:
        if token not in SKIP_IDS and weight > 0:
            expected[token] = max(weight, expected.get(token, 0.0))
    assert of_tokens(tokens) == [[token, expected[token]] for token in sorted(expected)]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("token", [7, SKIP_IDS[0]])
def test_what_is_not_finite_survives(token: int, wrong: float) -> None:
    """A NaN or an infinity reaches its check, also from a special token or beside others."""
    assert not np.isfinite(of_tokens([(token, 1.0), (token, wrong), (8, 2.0)])).all()


@given(VOCABULARY)
def test_a_vocabulary_gives_its_positive_weights(weights: list[float]) -> None:
    """The entries with a weight are the rows, by their place in the vocabulary."""
    rows = lexical.of_vocabulary(np.array(weights, np.float32))
    assert rows.tolist() == [[token, weight] for token, weight in enumerate(weights) if weight > 0]


def test_a_nan_of_the_vocabulary_survives() -> None:
    """A weight that is not a number keeps its row."""
    ((token, weight),) = lexical.of_vocabulary(np.array([0, np.nan, 0], np.float32))
    assert token == 1
    assert np.isnan(weight)


def test_large_ids_are_exact() -> None:
    """Ids of the largest vocabularies survive as float32."""
    weights = np.zeros(300_000, np.float32)
    weights[[262_143, 299_999]] = 0.5
    assert lexical.of_vocabulary(weights)[:, 0].tolist() == [262_143, 299_999]


@given(st.lists(TOKENS, min_size=1, max_size=3))
def test_chunks_join_as_if_they_were_one_text(chunks: list[list[tuple[int, float]]]) -> None:
    """The largest weights of several texts' rows are those of all their tokens."""
    rows = np.concatenate(
        [np.array(of_tokens(chunk), np.float32).reshape(-1, 2) for chunk in chunks]
    )
    assert lexical.largest(rows).tolist() == of_tokens(
        [token for chunk in chunks for token in chunk]
    )

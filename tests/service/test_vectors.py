"""Vectors against plain definitions: mean of chunks, cut, normalisation, number formats, sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from embedding_service.dialects.embedding import vector_json
from embedding_service.service.vectors import (
    chunk_mean,
    is_finite,
    quantise,
    shape_dense,
    written_bytes,
)
from embedding_service.types import EmbedDtype, Encoding

numbers = st.floats(-100, 100, width=32, allow_subnormal=False)
matrices = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 6), st.integers(1, 40)), elements=numbers
)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(1, 8), st.data())
def test_chunk_mean_is_the_weighted_mean(
    chunks_of: list[int], size: int, data: st.DataObject
) -> None:
    """Each input's vector is the mean of its chunks, weighted by their tokens."""
    owner = [i for i, chunks in enumerate(chunks_of) for _ in range(chunks)]
    vectors = data.draw(arrays.arrays(np.float32, (len(owner), size), elements=numbers))
    weights = data.draw(st.lists(st.integers(1, 8192), min_size=len(owner), max_size=len(owner)))
    means = chunk_mean(vectors, owner, weights)
    assert means.dtype == np.float32
    assert means.shape == (len(chunks_of), size)
    for i, mean in enumerate(means):
        rows = [k for k, o in enumerate(owner) if o == i]
        expected = np.average(
            vectors[rows].astype(np.float64), axis=0, weights=[weights[k] for k in rows]
        )
        np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-3)


@given(matrices, st.integers(1, 50), st.booleans())
def test_dense_vectors_are_cut_first_and_scaled_then(
    vectors: Any, dimensions: int, normalize: bool
) -> None:
    """A vector is the beginning of the model's own, at length 1 if wanted; zeros stay."""
    shaped = shape_dense(vectors, dimensions=dimensions, normalize=normalize)
    assert shaped.dtype == np.float32
    assert shaped.flags.c_contiguous
    for row, got in zip(vectors, shaped, strict=True):
        expected = row[:dimensions].astype(np.float64)
        length = np.linalg.norm(expected)
        if normalize and length > 0:
            expected = expected / length
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_long_and_short_vectors_normalise() -> None:
    """Neither huge nor tiny numbers overflow or vanish on the way to length 1."""
    vectors = np.array([[1e30, 1e30], [1e-30, 1e-30], [3, 4]], np.float32)
    shaped = shape_dense(vectors, dimensions=None, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(shaped, axis=1), 1, rtol=1e-6)


@given(
    arrays.arrays(
        np.float32, st.tuples(st.integers(0, 4), st.integers(1, 3)), elements=st.floats(width=32)
    )
)
def test_is_finite(vectors: Any) -> None:
    """Rows are finite if all their numbers are, however large these are."""
    assert is_finite(vectors) == all(np.isfinite(value) for value in vectors.ravel())


@pytest.mark.parametrize("numbers", [384, 100_000])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_one_wrong_number_is_seen(numbers: int, wrong: float) -> None:
    """One number that is not finite is seen among any number of others."""
    vector = np.ones((1, numbers), np.float32)
    assert is_finite(vector)
    vector[0, numbers // 2] = wrong
    assert not is_finite(vector)


def packed(row: Any) -> list[int]:
    """Return the signs of a row, most significant bit first, eight dimensions a byte."""
    bits = "".join("1" if value > 0 else "0" for value in row)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]


PLAIN: dict[EmbedDtype, tuple[type[np.generic], Any]] = {
    EmbedDtype.FLOAT32: (np.float32, lambda row: row),
    EmbedDtype.FLOAT16: (np.float16, lambda row: row.astype(np.float16)),
    EmbedDtype.INT8: (
        np.int8,
        lambda row: [max(-127, min(127, round(float(np.float32(127) * x)))) for x in row],
    ),
    EmbedDtype.UINT8: (
        np.uint8,
        lambda row: [max(-127, min(127, round(float(np.float32(127) * x)))) + 128 for x in row],
    ),
    EmbedDtype.UBINARY: (np.uint8, packed),
    EmbedDtype.BINARY: (np.int8, lambda row: [byte - 128 for byte in packed(row)]),
}


def test_every_format_has_a_definition() -> None:
    """The definitions below cover every format."""
    assert set(PLAIN) == set(EmbedDtype)


@pytest.mark.parametrize("dtype", EmbedDtype)
@given(vectors=arrays.arrays(np.float32, (2, 19), elements=st.floats(-1, 1, width=32)))
def test_formats_are_as_defined(dtype: EmbedDtype, vectors: Any) -> None:
    """Each format is what its definition says, number by number."""
    kind, definition = PLAIN[dtype]
    got = quantise(vectors, dtype)
    assert got.dtype == kind
    assert got.tolist() == np.array([definition(row) for row in vectors], kind).tolist()


def test_formats_at_the_ends() -> None:
    """The ends of the range are not wrapped round: -1 is -127 and 1, 1 is 127 and 255."""
    ends = np.array([[-1, 0, 1, 1.00001]], np.float32)
    assert quantise(ends, EmbedDtype.INT8).tolist() == [[-127, 0, 127, 127]]
    assert quantise(ends, EmbedDtype.UINT8).tolist() == [[1, 128, 255, 255]]
    assert quantise(ends, EmbedDtype.UBINARY).tolist() == [[0b00110000]]
    assert quantise(ends, EmbedDtype.BINARY).tolist() == [[0b00110000 - 128]]


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("dtype", EmbedDtype)
@pytest.mark.parametrize("dimensions", [64, 384, 1024])
def test_the_estimate_covers_what_is_written(
    dtype: EmbedDtype, encoding: Encoding, dimensions: int
) -> None:
    """A vector is not larger than what is reserved for it, and not less than a third of that."""
    random = np.random.default_rng(dimensions).standard_normal((1, dimensions)).astype(np.float32)
    written = vector_json(
        quantise(shape_dense(random, dimensions=None, normalize=True), dtype)[0], encoding
    )
    reserved = written_bytes(dimensions, dtype, encoding)
    assert reserved / 3 <= len(written) - 2 <= reserved


def test_vectors_are_written_without_loss() -> None:
    """float32 as JSON has as many digits as it needs."""
    vector = np.array([0.1, 1 / 3, 1e-8, 123456.79], np.float32)
    assert (
        np.array(orjson.loads(vector_json(vector, Encoding.FLOAT)), np.float32).tolist()
        == vector.tolist()
    )


def test_layer_norm_comes_before_a_cut_alone() -> None:
    """nomic-embed-text-v1.5: whole vectors of mean 0 and variance 1, then cut; else as they are."""
    rows = np.array([[3.0, -1.0, 4.0, -2.0]], np.float32)
    cut = shape_dense(rows, dimensions=2, normalize=False, layer_norm=True)
    np.testing.assert_allclose(cut, [[2 / np.sqrt(6.5), -2 / np.sqrt(6.5)]], rtol=1e-5)
    whole = shape_dense(rows, dimensions=4, normalize=False, layer_norm=True)
    np.testing.assert_array_equal(whole, rows)

"""Numpy on vectors: mean of chunks, Matryoshka cut, normalisation, number formats, hashed indices.

Everything that determines the returned numbers after the model has run, in one place.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Final

import jiter
import numpy as np

from embedding_service.errors import BadConfiguration
from embedding_service.types import EmbedDtype, Encoding, Sparse

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from embedding_service.types import Floats

    Ids = npt.NDArray[np.int64]

HASH_SPACE: Final = 1 << 20
_SQUARED_NUMBERS = 8192  # OpenBLAS starts threads above 10,000
_SHORTEST = np.finfo(np.float64).tiny  # less than any row of float32 that is not all zeros


def chunk_mean(vectors: Floats, owner: list[int], weights: list[int]) -> Floats:
    """Average the chunks of each input, weighted by their tokens: (chunks, d) → (inputs, d).

    `owner` is non-decreasing and names each chunk's input. The vectors must not be normalised:
    this is then what mean pooling over the whole text gives, if every chunk saw only itself.
    """
    if len(owner) == owner[-1] + 1:
        return vectors
    starts = np.searchsorted(owner, np.arange(owner[-1] + 1))
    w = np.asarray(weights, np.float32)[:, None]
    return np.asarray(np.add.reduceat(vectors * w, starts) / np.add.reduceat(w, starts), np.float32)


def is_finite(numbers: Floats) -> bool:
    """Tell whether all numbers are finite.

    The square of a vector says so in 0.6 µs, in place of 1.5 (384 numbers). It may overflow, and
    for large arrays BLAS would start threads: then each number is looked at.
    """
    if numbers.size <= _SQUARED_NUMBERS and math.isfinite(np.vdot(numbers, numbers)):
        return True
    return bool(np.isfinite(numbers).all())


def shape_dense(
    vectors: Floats, *, dimensions: int | None, normalize: bool, layer_norm: bool = False
) -> Floats:
    """Cut (n, d) to its first `dimensions` columns (Matryoshka), then scale rows to length 1.

    Cutting comes first, so that a cut vector has length 1 too. A row of zeros stays as it is.
    With `layer_norm` whole vectors go through one before they are cut, as nomic-embed-text-v1.5
    was trained.
    """
    if dimensions is not None and dimensions < vectors.shape[1]:
        vectors = (_layer_norm(vectors) if layer_norm else vectors)[:, :dimensions]
    if normalize:
        exact = vectors.astype(np.float64)
        lengths = np.sqrt(np.vecdot(exact, exact))
        exact /= np.maximum(lengths, _SHORTEST)[:, None]
        vectors = exact.astype(np.float32)
    return np.ascontiguousarray(vectors)


def _layer_norm(vectors: Floats) -> Floats:
    """Return rows of mean 0 and variance 1, as `torch.nn.functional.layer_norm` does."""
    exact = vectors.astype(np.float64)
    centred = exact - exact.mean(axis=1, keepdims=True)
    variance = (centred**2).mean(axis=1, keepdims=True)
    return np.asarray(centred / np.sqrt(variance + 1e-5), np.float32)


def quantise(
    vectors: Floats, dtype: EmbedDtype, ranges: Floats | None = None
) -> npt.NDArray[np.generic]:
    """Convert unit vectors (n, d) to a number format.

    int8 = round(127·x), uint8 = that + 128 (so 1 to 255). With `ranges`, the least and the largest
    value of each dimension (2, d), uint8 = floor(255·(x - least) / (largest - least)) within 0 to
    255 and int8 = that - 128, as sentence-transformers has it. ubinary packs the signs, most
    significant bit first, 8 dimensions a byte; binary = ubinary - 128 as int8. The packings are
    those of Cohere and sentence-transformers. float16 and float32 keep any scale.
    """
    match dtype:
        case EmbedDtype.FLOAT32:
            return vectors
        case EmbedDtype.FLOAT16:
            return vectors.astype(np.float16)
        case EmbedDtype.UBINARY:
            return np.packbits(vectors > 0, axis=-1)
        case EmbedDtype.BINARY:
            return (np.packbits(vectors > 0, axis=-1) ^ 128).view(np.int8)  # less 128
        case EmbedDtype.INT8:
            return _steps(vectors, ranges).astype(np.int8)
        case EmbedDtype.UINT8:
            return (_steps(vectors, ranges) + 128).astype(np.uint8)


def _steps(vectors: Floats, ranges: Floats | None) -> Floats:
    """Return whole numbers from -128 to 127."""
    if ranges is None:
        steps: Floats = np.clip(np.rint(vectors * np.float32(127)), -127, 127)
        return steps
    least, widths = ranges[0], (ranges[1] - ranges[0]) / 255
    steps = np.floor((vectors - least) / np.where(widths > 0, widths, 1))
    return np.asarray(np.clip(steps, 0, 255) - 128, np.float32)


def read_ranges(path: Path) -> Floats:
    """Return a `calibration_file`, for int8 and uint8: rows `min` and `max` (2, dimension) of JSON.

    Raises `BadConfiguration`.
    """
    try:
        tree = jiter.from_json(path.read_bytes())
        ranges = np.array([tree["min"], tree["max"]], np.float32)
    except OSError as error:
        raise BadConfiguration(
            f"calibration_file: {path}: {error.strerror}; name a file that can be read"
        ) from None
    except (ValueError, TypeError, KeyError):
        ranges = np.empty((0, 0), np.float32)
    usable = ranges.ndim == 2 and ranges.size and np.isfinite(ranges).all()  # noqa: PLR2004
    if not usable or (ranges[0] > ranges[1]).any():
        raise BadConfiguration(
            f"calibration_file: {path}: it has to hold `min` and `max`, two lists of as many "
            "finite numbers, no minimum above its maximum"
        )
    return ranges


def written_bytes(numbers: int, dtype: EmbedDtype, encoding: Encoding) -> int:
    """Return about how many bytes `numbers` dimensions take in an answer, rounded up.

    As JSON a float takes up to 14 characters with its comma and a small integer 5.
    """
    packed = dtype in (EmbedDtype.BINARY, EmbedDtype.UBINARY)
    values = (numbers + 7) // 8 if packed else numbers
    if encoding is Encoding.FLOAT:
        return values * (14 if dtype in (EmbedDtype.FLOAT32, EmbedDtype.FLOAT16) else 5)
    width = {EmbedDtype.FLOAT32: 4, EmbedDtype.FLOAT16: 2}.get(dtype, 1)
    return (values * width + 2) // 3 * 4


def hash_indices(sparse: Sparse, *, space: int = HASH_SPACE) -> Sparse:
    """Map token ids to `int(sha256(str(id)).hexdigest()[:8], 16) % space`.

    Colliding weights are summed.
    """
    indices, slots = np.unique(_hashes.of(sparse.indices) % space, return_inverse=True)
    values = np.bincount(slots, weights=sparse.values)
    return Sparse(indices, values.astype(np.float32))


class _TokenHashes:
    """The first 32 bits of each id's sha256, computed once.

    They take 2 MB for XLM-R's vocabulary, a tenth of a dict.
    Racing threads write equal values, or lose a few that are computed again: there is no lock.
    """

    def __init__(self) -> None:
        self._memo = np.empty(0, dtype=np.int64)  # -1 where not known yet

    def of(self, token_ids: Ids) -> Ids:
        memo = self._memo
        if token_ids.size and token_ids.max() >= memo.size:
            memo = self._memo = _grown(memo, int(token_ids.max()))
        for unknown in token_ids[memo[token_ids] < 0].tolist():
            memo[unknown] = int(hashlib.sha256(str(unknown).encode()).hexdigest()[:8], 16)
        return memo[token_ids]


def _grown(memo: Ids, largest: int) -> Ids:
    grown = np.full(1 << largest.bit_length(), -1, dtype=np.int64)
    grown[: memo.size] = memo
    return grown


_hashes = _TokenHashes()

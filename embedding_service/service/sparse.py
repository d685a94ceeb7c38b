"""Lexical weights under hashed indices, for stores with a fixed number of them. Pure numpy."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import numpy as np

from embedding_service.types import Sparse

if TYPE_CHECKING:
    import numpy.typing as npt

    Ids = npt.NDArray[np.int64]

HASH_SPACE: Final = 1 << 20


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

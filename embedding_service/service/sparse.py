"""Lexical weights: from one weight per token position to what a sparse index stores.

Pure numpy, no I/O. The finite check happens before this module: `nan > 0` is false, so a
NaN would vanish here without a word.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import numpy as np

from embedding_service.types import Sparse

if TYPE_CHECKING:
    from collections.abc import Collection

    import numpy.typing as npt

    Ids = npt.NDArray[np.integer]
    Floats = npt.NDArray[np.float32]

HASH_SPACE: Final = 1 << 20


def merge_sparse(token_ids: Ids, weights: Floats, *, skip_ids: Collection[int]) -> Sparse:
    """Merge the weights of one text's tokens, both of shape (tokens,), into one per token id.

    FlagEmbedding's rule (`M3Embedder._process_token_weights`): the largest weight of each id,
    positive weights only, `skip_ids` (cls, eos, pad and unk) removed wherever they stand.
    """
    keep = weights > 0
    for skipped in skip_ids:
        keep &= token_ids != skipped
    kept_ids, kept_weights = token_ids[keep].astype(np.int64), weights[keep].astype(np.float32)
    if not kept_ids.size:
        return Sparse(indices=kept_ids, values=kept_weights)
    order = kept_ids.argsort(kind="stable")
    indices, starts = np.unique(kept_ids[order], return_index=True)
    return Sparse(indices=indices, values=np.maximum.reduceat(kept_weights[order], starts))


def hash_indices(sparse: Sparse, *, space: int = HASH_SPACE) -> Sparse:
    """Map token ids to `int(sha256(str(id)).hexdigest()[:8], 16) % space`; colliding weights are summed."""
    indices, slots = np.unique(_hashes.of(sparse.indices) % space, return_inverse=True)
    values = np.bincount(slots, weights=sparse.values, minlength=indices.size)
    return Sparse(indices=indices, values=values.astype(np.float32))


class _TokenHashes:
    """The first 32 bits of each id's sha256, computed once: 2 MB for XLM-R's vocabulary, a tenth of a dict.

    Racing threads write equal values, or lose a few that are computed again: there is no lock.
    """

    def __init__(self) -> None:
        self._memo = np.empty(0, dtype=np.int64)  # -1 where not known yet

    def of(self, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        memo = self._memo
        if token_ids.size and token_ids.max() >= memo.size:
            grown = np.full(1 << int(token_ids.max()).bit_length(), -1, dtype=np.int64)
            grown[: memo.size] = memo
            memo = self._memo = grown
        for unknown in token_ids[memo[token_ids] < 0].tolist():
            memo[unknown] = int(hashlib.sha256(str(unknown).encode()).hexdigest()[:8], 16)
        return memo[token_ids]


_hashes = _TokenHashes()

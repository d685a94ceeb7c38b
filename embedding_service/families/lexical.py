"""Lexical weights in one shape for every model: rows (k, 2) of token id and weight.

Ids are exact in float32, as they are below 2**24. The worker only drops rows that do not count,
since on a GPU its time does not overlap the step; the gateway sorts and merges. Pure numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection

    import numpy.typing as npt

    from embedding_service.types import Floats

    Ids = npt.NDArray[np.integer]


def of_tokens(ids: Ids, weights: Floats, *, skip_ids: Collection[int]) -> Floats:
    """Return the rows of one text from the ids and the weights of its tokens, both (tokens,).

    FlagEmbedding's rule (`M3Embedder._process_token_weights`): positive weights only, without
    `skip_ids` (cls, eos, pad and unk) wherever they are; `largest` merges those of one id. A NaN
    or an infinity stays, wherever it is: the gateway refuses the text for it.
    """
    keep = weights > 0
    for skipped in skip_ids:
        keep &= ids != skipped
    keep |= ~np.isfinite(weights)
    return _rows(ids[keep], weights[keep])


def of_vocabulary(weights: Floats) -> Floats:
    """Return the rows of one text from a weight for each entry of the vocabulary; a NaN stays."""
    ids = np.flatnonzero(~(weights <= 0))  # unlike `weights > 0`, true for NaN
    return _rows(ids, weights[ids])


def largest(rows: Floats) -> Floats:
    """Return the largest weight of each token id, ids ascending; a NaN is the largest."""
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    last = np.ones(len(rows), np.bool_)
    np.not_equal(rows[1:, 0], rows[:-1, 0], out=last[:-1])
    return rows[last]


def _rows(ids: Ids, weights: Floats) -> Floats:
    rows = np.empty((len(ids), 2), np.float32)
    rows[:, 0], rows[:, 1] = ids, weights
    return rows

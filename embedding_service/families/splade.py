"""Weights of the vocabulary on the wire: `protocol.Done` has frames of one shape for each output.

A text weighs some hundred of 30,000 entries, so it is sent as rows of two numbers: (k, 0), then
(token id, weight) for each of the k. Ids are exact in float32 below 2**24. Pure numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from embedding_service.types import Floats


def pack(weights: Floats) -> Floats:
    """Return the rows (k + 1, 2) of one text, from its (vocabulary,) weights; a NaN stays one."""
    ids = np.flatnonzero(~(weights <= 0))  # unlike `weights > 0`, true for NaN
    rows = np.zeros((len(ids) + 1, 2), np.float32)
    rows[0, 0] = len(ids)
    rows[1:, 0], rows[1:, 1] = ids, weights[ids]
    return rows


def split(rows: Floats) -> list[Floats]:
    """Return each text's (k, 2) token ids and weights, from the rows of several texts end to end."""
    texts, start = [], 0
    while start < len(rows):
        end = start + 1 + int(rows[start, 0])
        texts.append(rows[start + 1 : end])
        start = end
    return texts

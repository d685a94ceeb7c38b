"""The order of scores, which is that of logits."""

from __future__ import annotations

import numpy as np

from embedding_service.dialects import scoring
from embedding_service.types import Scores


def test_order_is_decided_before_sigmoids_are_taken() -> None:
    """Logits whose float32 sigmoids are all 1 have an order."""
    logits = np.array([17.98, 13.93, 20.93, 18.82], np.float32)
    scores = Scores("model", logits, tokens=4, truncated=(), logits=True)
    shown = scoring.relevance(scores, raw=False)
    assert shown[0] == shown[2] == shown[3] == 1
    assert scoring.ranking(scores) == [2, 3, 0, 1]
    assert scoring.ranking(scores, top_n=1) == [2]

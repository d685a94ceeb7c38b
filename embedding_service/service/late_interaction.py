"""Similarity of BGE-M3's vectors: MaxSim of token vectors, and the weighted sum of all three.

Pure numpy; the formulas are FlagEmbedding's (`M3Embedder.colbert_score`,
`compute_lexical_matching_score`, `compute_single_score`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from embedding_service.service import slices
from embedding_service.types import EmbedJob, Encoding, Field, Output, Truncate

if TYPE_CHECKING:
    from embedding_service.service.slices import Steps
    from embedding_service.types import Embeddings, Floats, RerankJob, Sparse

    Three = tuple[float, float, float]  # dense, sparse, ColBERT

# Query tokens that are compared with a document at once: with 8,192 of a document 16 MB.
_ROWS_AT_ONCE = 512
# Similarities between two rests: 0.5 GFLOP with 1,024 dimensions.
_PRODUCTS_AT_ONCE = 1 << 18
_MAX_SIM = frozenset({Output.COLBERT})
_ALL_THREE = frozenset({Output.DENSE, Output.SPARSE, Output.COLBERT})


def max_sim(query: Floats, document: Floats) -> Steps[float]:
    """Return the mean over query tokens of the best match among document tokens.

    Both have unit rows: (query tokens, d) and (document tokens, d). An empty side scores 0.
    """
    if not len(query) or not len(document):
        return 0.0
    best = np.empty(len(query), np.float32)
    for start in range(0, len(query), _ROWS_AT_ONCE):
        if start:
            yield False
        rows = slice(start, start + _ROWS_AT_ONCE)
        best[rows] = (query[rows] @ document.T).max(axis=1)
    return float(best.mean())


def lexical(query: Sparse, document: Sparse) -> float:
    """Return the sum over shared tokens of the product of their weights."""
    _, in_query, in_document = np.intersect1d(
        query.indices, document.indices, assume_unique=True, return_indices=True
    )
    return float(query.values[in_query] @ document.values[in_document])


def weighted(scores: Three, weights: Three) -> float:
    """Return the weighted mean of (dense, sparse, ColBERT) scores, however large weights are."""
    largest = max(weights)
    shares = [weight / largest for weight in weights]
    return sum(score * share for score, share in zip(scores, shares, strict=True)) / sum(shares)


def embed_job(model: str, job: RerankJob) -> tuple[EmbedJob, list[str]]:
    """Return the job that embeds documents and then distinct queries, and those queries.

    Documents come first, so that an error about one gives the place that it was sent at.
    """
    queries = list(dict.fromkeys(query for query, _ in job.pairs))
    documents = [document for _, document in job.pairs]
    embed = EmbedJob(
        model,
        [*documents, *queries],
        _MAX_SIM if job.weights is None else _ALL_THREE,
        truncate=Truncate.LEFT if job.left else Truncate.RIGHT,
        encoding=Encoding.BASE64,
        field=Field.DOCUMENTS,
        queries=len(queries),
    )
    return embed, queries


def score_pairs(job: RerankJob, queries: list[str], embedded: Embeddings) -> Steps[Floats]:
    """Score the pairs from the vectors of their documents, followed by its distinct `queries`'.

    Rests between documents, and within long ones.
    """
    places = {query: place for place, query in enumerate(queries, len(job.pairs))}
    pairs = [(places[query], document) for document, (query, _) in enumerate(job.pairs)]
    scores: list[float] = []
    pace = slices.Pace(_PRODUCTS_AT_ONCE)
    colbert: Any = embedded.colbert
    for query, document in pairs:
        scores.append((yield from _score(embedded, query, document, job.weights)))
        if pace.rests(len(colbert[query]) * len(colbert[document])):
            yield False
    return np.array(scores, np.float32)


def _score(embedded: Embeddings, q: int, d: int, weights: Three | None) -> Steps[float]:
    """Score the query and the document at these places: MaxSim alone, or all three weighted."""
    colbert: Any = embedded.colbert
    similarity = yield from max_sim(colbert[q], colbert[d])
    if weights is None or embedded.dense is None or embedded.sparse is None:
        return similarity
    dense = float(np.vdot(embedded.dense[q], embedded.dense[d]))
    sparse = lexical(embedded.sparse[q], embedded.sparse[d])
    return weighted((dense, sparse, similarity), weights)

"""From the engine's numbers to what was asked for: checked, joined from their chunks, cut, scaled, in their format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from embedding_service.errors import EngineFailed
from embedding_service.service import vectors
from embedding_service.service.sparse import merge_sparse
from embedding_service.types import Embeddings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embedding_service.service.compute import Computed
    from embedding_service.service.prompts import Encoder, Prepared
    from embedding_service.types import EmbedJob, Floats, Sparse

_Array = TypeVar("_Array", bound="np.ndarray[Any, Any]")


def finish(
    job: EmbedJob, name: str, encoder: Encoder, prepared: Prepared, computed: Computed, *, ranges: Floats | None
) -> Embeddings:
    """Turn the engine's numbers into what was asked for. Raises `EngineFailed` if they are not numbers.

    `ranges`, if there are any, scale int8 and uint8 of dense vectors.
    """
    result = computed.result
    owner, lengths, field = prepared.owner, [len(ids) for ids in prepared.ids], job.field
    whole = len(owner) == owner[-1] + 1  # no input was chunked
    tokens = lengths if whole else np.bincount(owner, weights=lengths).astype(int).tolist()
    dense = None
    if result.dense is not None:
        check_finite(vectors.finite_rows(result.dense).tolist(), owner, field)
        means = vectors.chunk_mean(result.dense, owner, lengths)
        shaped = vectors.shape_dense(means, dimensions=job.dimensions, normalize=job.normalize)
        dense = vectors.quantise(shaped, job.embed_dtype, ranges)
    colbert = None
    if result.colbert is not None:
        check_finite([bool(np.isfinite(rows).all()) for rows in result.colbert], owner, field)
        colbert = [vectors.quantise(rows, job.embed_dtype) for rows in _per_input(result.colbert, owner)]
    hidden_states = None
    if result.hidden_states is not None:
        check_finite([bool(np.isfinite(rows).all()) for rows in result.hidden_states], owner, field)
        hidden_states = _per_input(result.hidden_states, owner)
    sparse = None
    if result.sparse is not None:
        check_finite([bool(np.isfinite(weights).all()) for weights in result.sparse], owner, field)
        sparse = _merge(prepared, result.sparse, encoder)
    return Embeddings(
        model=name,
        tokens=tokens,
        dense=dense,
        sparse=sparse,
        colbert=colbert,
        hidden_states=hidden_states,
        ranges=ranges,
        truncated=prepared.truncated,
        chunked=prepared.chunked,
        token_ids_read_as=prepared.read_as,
        cached=_all_cached(computed.cached, owner),
        engine_s=computed.seconds,
    )


def _all_cached(cached: list[bool], owner: list[int]) -> list[bool]:
    """Tell for each input whether all its chunks came from the cache."""
    if not any(cached):
        return [False] * (owner[-1] + 1)
    missing = {index for index, hit in zip(owner, cached, strict=True) if not hit}
    return [index not in missing for index in range(owner[-1] + 1)]


def _merge(prepared: Prepared, weights: list[Floats], encoder: Encoder) -> list[Sparse]:
    """Give each input one weight for each token id, the largest of all its chunks."""
    merged = _per_input(weights, prepared.owner)
    if merged[0].ndim == 2:  # noqa: PLR2004 - token ids of the vocabulary, and their weights
        return [merge_sparse(rows[:, 0].astype(np.int64), rows[:, 1], skip_ids=()) for rows in merged]
    ids = _per_input(prepared.ids, prepared.owner)
    return [merge_sparse(i, w, skip_ids=encoder.facts.special_ids) for i, w in zip(ids, merged, strict=True)]


def _per_input(arrays: list[_Array], owner: list[int]) -> list[_Array]:
    """Join the arrays of each input's chunks."""
    if len(arrays) == owner[-1] + 1:
        return arrays
    joined: list[list[_Array]] = [[] for _ in range(owner[-1] + 1)]
    for array, index in zip(arrays, owner, strict=True):
        joined[index].append(array)
    return [np.concatenate(parts) for parts in joined]


def check_finite(finite: list[bool], owner: Sequence[int], field: str) -> None:
    """Raise `EngineFailed` about the first item of `field` whose numbers are not all finite."""
    if not all(finite):
        where = f"{field}[{owner[finite.index(False)]}]"
        raise EngineFailed(f"the model gave numbers that are not finite for {where}", param=where)

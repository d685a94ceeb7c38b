"""The table of outputs: how the chunks of an input join, and how an answer has them.

The one place where a kind of output has to be known beside the model that computes it and the
dialect that writes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, assert_never

import numpy as np

from embedding_service.families import lexical
from embedding_service.service import vectors
from embedding_service.types import Output, Sparse

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedding_service.engine.protocol import ModelFacts
    from embedding_service.service.prompts import Prepared
    from embedding_service.types import EmbedJob, Floats


@dataclass(frozen=True, slots=True)
class Kind:
    """How results of one kind are finished.

    `join` takes the rows of each chunk and returns those of each input. `write` cuts, scales and
    converts these as the request says, with the ranges that int8 and uint8 are calibrated for.
    `fits` tells whether rows of this shape can be the model's for an input of so many tokens.
    `per_token` outputs have a vector for each token.
    """

    join: Callable[[list[Floats], Prepared], Any]
    write: Callable[[Any, EmbedJob, Floats | None], Any]
    fits: Callable[[Floats, ModelFacts, int], bool]
    per_token: bool = False


def kind_of(output: Output) -> Kind:
    """Return the entry of an output; the type checker sees when one is missing."""
    match output:
        case Output.DENSE:
            return Kind(join=_mean, write=_shaped, fits=_is_vector)
        case Output.SPARSE:
            return Kind(join=_largest_weights, write=_as_it_is, fits=_are_weights)
        case Output.COLBERT:
            return Kind(join=_end_to_end, write=_quantised, fits=_are_vectors, per_token=True)
        case Output.HIDDEN_STATES:
            return Kind(join=_end_to_end, write=_as_it_is, fits=_are_vectors, per_token=True)
        case Output.SCORE:  # of pairs, which are not chunked
            return Kind(join=_stacked, write=_as_it_is, fits=_is_score)
        case _:
            assert_never(output)


def _is_vector(rows: Floats, facts: ModelFacts, _: int) -> bool:
    return rows.shape == (1, facts.dimension)


def _is_score(rows: Floats, *_: object) -> bool:
    return rows.shape == (1, 1)


def _are_vectors(rows: Floats, facts: ModelFacts, tokens: int) -> bool:
    """Tell whether there is a row for each token, or for each but the first."""
    return rows.shape[1] in (facts.dimension, 0) and tokens - 1 <= len(rows) <= tokens


def _are_weights(rows: Floats, facts: ModelFacts, _: int) -> bool:
    """Tell whether these are ascending token ids of the model, each with a weight above 0."""
    if rows.shape[1] != 2 or len(rows) > facts.vocab_size:  # noqa: PLR2004 - id and weight
        return False
    ids, weights = rows[:, 0], rows[:, 1]
    known = (ids >= 0) & (ids < facts.vocab_size) & (ids == np.rint(ids))
    return bool(known.all() and (weights > 0).all() and (np.diff(ids) > 0).all())


def _stacked(rows: list[Floats], _: Prepared) -> Floats:
    return np.concatenate(rows)


def _mean(rows: list[Floats], prepared: Prepared) -> Floats:
    """Average the chunks of an input, weighted by their tokens, to (inputs, dimension)."""
    return vectors.chunk_mean(np.concatenate(rows), prepared.owner, list(map(len, prepared.ids)))


def _end_to_end(rows: list[Floats], prepared: Prepared) -> list[Floats]:
    """Put the chunks of an input one after the other."""
    return prepared.by_input(rows, np.concatenate)


def _largest_weights(rows: list[Floats], prepared: Prepared) -> list[Sparse]:
    """Give each token id the largest weight that it has anywhere in an input."""
    return [_sparse(lexical.largest(array)) for array in _end_to_end(rows, prepared)]


def _sparse(rows: Floats) -> Sparse:
    return Sparse(rows[:, 0].astype(np.int64), rows[:, 1].copy())


def _shaped(means: Floats, job: EmbedJob, ranges: Floats | None) -> object:
    """Cut each vector to its first `dimensions` numbers, then scale it to length 1."""
    shaped = vectors.shape_dense(
        means, dimensions=job.dimensions, normalize=job.normalize, layer_norm=job.layer_norm
    )
    return vectors.quantise(shaped, job.embed_dtype, ranges)


def _quantised(joined: list[Floats], job: EmbedJob, _: Floats | None) -> object:
    return [vectors.quantise(array, job.embed_dtype) for array in joined]


def _as_it_is(joined: Any, *_: object) -> Any:
    return joined


KINDS = {output: kind_of(output) for output in Output}
PER_TOKEN = frozenset(output for output, kind in KINDS.items() if kind.per_token)

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

    from embedding_service.service.prompts import Prepared
    from embedding_service.types import EmbedJob, Floats


@dataclass(frozen=True, slots=True)
class Kind:
    """How results of one kind are finished.

    `join` takes the rows of each chunk and returns those of each input. `write` cuts, scales and
    converts these as the request says, with the ranges that int8 and uint8 are calibrated for.
    `per_token` outputs have a vector for each token.
    """

    join: Callable[[list[Floats], Prepared], Any]
    write: Callable[[Any, EmbedJob, Floats | None], Any]
    per_token: bool = False


def kind_of(output: Output) -> Kind:
    """Return the entry of an output; the type checker sees when one is missing."""
    match output:
        case Output.DENSE:
            return Kind(join=_mean, write=_shaped)
        case Output.SPARSE:
            return Kind(join=_largest_weights, write=_as_it_is)
        case Output.COLBERT:
            return Kind(join=_end_to_end, write=_quantised, per_token=True)
        case Output.HIDDEN_STATES:
            return Kind(join=_end_to_end, write=_as_it_is, per_token=True)
        case Output.SCORE:  # of pairs, which are not chunked
            return Kind(join=_stacked, write=_as_it_is)
        case _:
            assert_never(output)


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
    shaped = vectors.shape_dense(means, dimensions=job.dimensions, normalize=job.normalize)
    return vectors.quantise(shaped, job.embed_dtype, ranges)


def _quantised(joined: list[Floats], job: EmbedJob, _: Floats | None) -> object:
    return [vectors.quantise(array, job.embed_dtype) for array in joined]


def _as_it_is(joined: Any, *_: object) -> Any:
    return joined


KINDS = {output: kind_of(output) for output in Output}
PER_TOKEN = frozenset(output for output, kind in KINDS.items() if kind.per_token)

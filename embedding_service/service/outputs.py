"""From the engine's rows to the answer: checked, joined from their chunks, cut, in their format.

The table of outputs is the one place where a kind has to be known beside the model that computes
it and the dialect that writes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, assert_never

import numpy as np

from embedding_service.errors import EngineFailed
from embedding_service.families import lexical
from embedding_service.service import vectors
from embedding_service.service.vectors import is_finite
from embedding_service.types import Embeddings, Output, Sparse

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedding_service.engine.protocol import ModelFacts
    from embedding_service.service.compute import Computed
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
    fits = rows.shape[1] == facts.dimension or rows.shape == (0, 0)
    return fits and tokens - 1 <= len(rows) <= tokens


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


def finish(
    job: EmbedJob,
    name: str,
    prepared: Prepared,
    computed: Computed,
    *,
    ranges: Floats | None,
    ignored: tuple[str, ...] = (),
) -> Embeddings:
    """Turn the engine's rows into what was asked for. Raises `EngineFailed` if some are no numbers.

    `ranges`, if there are any, scale int8 and uint8 of dense vectors. `ignored` names fields of the
    job that changed nothing.
    """
    by_output: dict[Output, Any] = {}
    for output in job.outputs:
        rows, kind = [found[output] for found in computed.result.results], KINDS[output]
        joined = kind.join(rows, prepared)
        # One look at all vectors, where they are one array; a mean of chunks hides nothing.
        if not (isinstance(joined, np.ndarray) and is_finite(joined)):
            check_finite(rows, prepared.owner, job.field)
        by_output[output] = kind.write(joined, job, ranges)
    return Embeddings(
        model=name,
        tokens=prepared.by_input(list(map(len, prepared.ids)), sum),
        by_output=by_output,
        ranges=ranges,
        truncated=prepared.truncated,
        chunked=prepared.chunked,
        ignored=ignored,
        token_ids_read_as=prepared.read_as,
        cached=prepared.by_input(computed.cached, all),
        engine_s=computed.seconds,
    )


def check_finite(rows: list[Floats], owner: list[int], field: str) -> None:
    """Raise `EngineFailed` about the first item of `field` whose numbers are not all finite."""
    for array, index in zip(rows, owner, strict=True):
        if not is_finite(array):
            raise _not_finite(f"{field}[{index}]")


def _not_finite(where: str) -> EngineFailed:
    return EngineFailed(
        f"the model gave numbers that are not finite for {where}; leave it out", param=where
    )

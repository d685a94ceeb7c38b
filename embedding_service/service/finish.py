"""From the engine's rows to the answer: checked, joined from their chunks, cut, in their format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embedding_service.errors import EngineFailed
from embedding_service.service.outputs import KINDS
from embedding_service.service.vectors import is_finite
from embedding_service.types import Embeddings, Output

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from embedding_service.service.compute import Computed
    from embedding_service.service.prompts import Prepared
    from embedding_service.types import EmbedJob, Floats


def finish(
    job: EmbedJob, name: str, prepared: Prepared, computed: Computed, *, ranges: Floats | None
) -> Embeddings:
    """Turn the engine's rows into what was asked for. Raises `EngineFailed` if some are no numbers.

    `ranges`, if there are any, scale int8 and uint8 of dense vectors.
    """
    by_output: dict[Output, Any] = {}
    for output in job.outputs:
        rows = [found[output] for found in computed.result.results]
        check_finite(rows, prepared.owner, job.field)
        kind = KINDS[output]
        by_output[output] = kind.write(kind.join(rows, prepared), job, ranges)
    return Embeddings(
        model=name,
        tokens=_tokens(prepared),
        by_output=by_output,
        ranges=ranges,
        truncated=prepared.truncated,
        chunked=prepared.chunked,
        token_ids_read_as=prepared.read_as,
        cached=_all_cached(computed.cached, prepared),
        engine_s=computed.seconds,
    )


def _tokens(prepared: Prepared) -> list[int]:
    """Count the tokens of each input."""
    lengths = list(map(len, prepared.ids))
    if not prepared.chunked:
        return lengths
    totals = [0] * (prepared.owner[-1] + 1)
    for index, length in zip(prepared.owner, lengths, strict=True):
        totals[index] += length
    return totals


def _all_cached(cached: list[bool], prepared: Prepared) -> list[bool]:
    """Tell for each input whether all its chunks came from the cache."""
    if not prepared.chunked:
        return cached
    computed = {index for index, hit in zip(prepared.owner, cached, strict=True) if not hit}
    return [index not in computed for index in range(prepared.owner[-1] + 1)]


def check_finite(rows: Sequence[Floats], owner: Iterable[int], field: str) -> None:
    """Raise `EngineFailed` about the first item of `field` whose numbers are not all finite."""
    for array, index in zip(rows, owner, strict=True):
        if not is_finite(array):
            where = f"{field}[{index}]"
            message = f"the model gave numbers that are not finite for {where}"
            raise EngineFailed(message, param=where)

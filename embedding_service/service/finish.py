"""From the engine's rows to the answer: checked, joined from their chunks, cut, in their format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from embedding_service.errors import EngineFailed
from embedding_service.service.outputs import KINDS
from embedding_service.service.vectors import is_finite
from embedding_service.types import Embeddings, Output

if TYPE_CHECKING:
    from embedding_service.service.compute import Computed
    from embedding_service.service.prompts import Prepared
    from embedding_service.types import EmbedJob, Floats


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

"""BGE-M3's vectors: which a checkpoint has, how they are asked for, and the answer read.

Imports neither vLLM nor torch; the model's class is in `models/bge_m3.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from embedding_service.families.checkpoint import Files
from embedding_service.types import Output

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from embedding_service.types import Floats, Rows

    Shape = tuple[int, int]

# The only pooling task. Of vLLM's fixed names it is the one that every version and every model
# runner takes: the V2 runner, which 0.32 prefers on a GPU, refuses "plugin".
TASK: Final = "embed"


@dataclass(frozen=True, slots=True)
class Part:
    """One of the model's outputs, made of the hidden states of `tokens`.

    `head` is the file of the linear layer that they go through, to `width` numbers (None: as many
    as before). `unit` rows have length 1; other rows of a head are not below 0.
    """

    tokens: slice
    head: str | None = None
    width: int | None = None
    unit: bool = False

    def shape(self, n_tokens: int, hidden: int) -> Shape:
        """Return the rows and columns for a text of so many tokens."""
        return len(range(n_tokens)[self.tokens]), self.width or hidden


# In the order of the model's flat answer.
PARTS: Final[Mapping[Output, Part]] = {
    Output.DENSE: Part(slice(1)),
    Output.SPARSE: Part(slice(None), head="sparse_linear.pt", width=1),
    Output.COLBERT: Part(slice(1, None), head="colbert_linear.pt", unit=True),
    Output.HIDDEN_STATES: Part(slice(None)),
}
HEADLESS: Final = frozenset(output for output, part in PARTS.items() if part.head is None)


def pooling_kwargs(outputs: Collection[Output]) -> dict[str, Any]:
    """Return the `PoolingParams.extra_kwargs` that ask for `outputs`; prompts may differ."""
    return {"outputs": sorted(outputs)}


def head_files(
    model: str, *, revision: str | None = None, cache_dir: str | None = None
) -> dict[Output, Path]:
    """Return where the checkpoint's heads lie on this machine; those that it lacks are left out.

    `model` is a folder or a Hub repository.
    """
    files = Files(model, revision=revision, cache_dir=cache_dir)
    paths = {output: files.path(part.head) for output, part in PARTS.items() if part.head}
    return {output: path for output, path in paths.items() if path is not None}


def available_outputs(
    model: str, *, revision: str | None = None, cache_dir: str | None = None
) -> frozenset[Output]:
    """Return what this checkpoint can give: what needs no head, and what its heads are for."""
    return HEADLESS.union(head_files(model, revision=revision, cache_dir=cache_dir))


def unpack(flat: Floats, *, n_tokens: int, hidden: int, outputs: Collection[Output]) -> Rows:
    """Split the engine's answer for one text of `n_tokens`, without copying.

    `flat` holds the parts that are in `outputs`, in the order of `PARTS`. Raises ValueError when
    the sizes disagree, as when the checkpoint lacks a head.
    """
    wanted = {
        output: part.shape(n_tokens, hidden) for output, part in PARTS.items() if output in outputs
    }
    numbers = sum(map(math.prod, wanted.values()))
    if flat.shape != (numbers,):
        takes = f"{sorted(outputs)} of {n_tokens} tokens take {numbers} numbers"
        raise ValueError(f"{takes}; got shape {flat.shape}")
    return dict(zip(wanted, _split(flat, wanted.values()), strict=True))


def _split(flat: Floats, shapes: Iterable[Shape]) -> Iterator[Floats]:
    for shape in shapes:
        size = math.prod(shape)
        yield flat[:size].reshape(shape)
        flat = flat[size:]

"""BGE-M3's vectors: which a checkpoint has, how they are asked for, and the answer read.

Imports neither vLLM nor torch; the model's class is in `models/bge_m3.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from embedding_service.types import Output

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

# The only pooling task. Of vLLM's fixed names it is the one that every version and every model
# runner takes: the V2 runner, which 0.32 prefers on a GPU, refuses "plugin".
TASK: Final = "embed"
HEAD_FILES: Final[Mapping[Output, str]] = {
    Output.SPARSE: "sparse_linear.pt",
    Output.COLBERT: "colbert_linear.pt",
}


class Vectors(NamedTuple):
    """One text's vectors as views of the engine's answer; what was not asked for is None.

    `dense` (hidden,) is not normalised. `sparse` (tokens,) has one weight ≥ 0 for each token
    position, special tokens included. `colbert` (tokens - 1, hidden) has unit rows for all
    tokens but the first. `hidden_states` (tokens, hidden) are what all others are made of.
    """

    dense: Floats | None
    sparse: Floats | None
    colbert: Floats | None
    hidden_states: Floats | None


def pooling_kwargs(outputs: Collection[Output]) -> dict[str, Any]:
    """Return the `PoolingParams.extra_kwargs` that ask for `outputs`; prompts of one batch may differ."""
    return {"outputs": sorted(outputs)}


def head_files(model: str, *, revision: str | None = None, cache_dir: str | None = None) -> dict[Output, Path]:
    """Return where the checkpoint's sparse and ColBERT heads lie on this machine.

    `model` is a folder or a Hub repository; from there an absent file is fetched unless
    `HF_HUB_OFFLINE` is set. Heads that the checkpoint lacks are left out.
    """
    if Path(model).is_dir():
        return {output: path for output, name in HEAD_FILES.items() if (path := Path(model, name)).is_file()}

    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - as above
    from huggingface_hub.errors import EntryNotFoundError  # noqa: PLC0415

    found: dict[Output, Path] = {}
    for output, name in HEAD_FILES.items():
        try:
            found[output] = Path(hf_hub_download(model, name, revision=revision, cache_dir=cache_dir))
        except EntryNotFoundError:
            continue
    return found


def available_outputs(model: str, *, revision: str | None = None, cache_dir: str | None = None) -> frozenset[Output]:
    """Return what this checkpoint can give; dense vectors and hidden states always."""
    return frozenset({Output.DENSE, Output.HIDDEN_STATES, *head_files(model, revision=revision, cache_dir=cache_dir)})


def unpack(flat: Floats, *, n_tokens: int, hidden: int, outputs: Collection[Output]) -> Vectors:
    """Split the engine's answer for one text, without copying.

    `flat` is dense | sparse | colbert | hidden states, of those in `outputs`; `n_tokens` is the prompt's length.
    Raises ValueError when the sizes disagree, as when the checkpoint lacks a head.
    """
    sizes = {
        Output.DENSE: hidden,
        Output.SPARSE: n_tokens,
        Output.COLBERT: (n_tokens - 1) * hidden,
        Output.HIDDEN_STATES: n_tokens * hidden,
    }
    expected = sum(size for output, size in sizes.items() if output in outputs)
    if flat.shape != (expected,):
        raise ValueError(f"{sorted(outputs)} of {n_tokens} tokens take {expected} numbers; got shape {flat.shape}")
    parts: dict[Output, Floats] = {}
    start = 0
    for output, size in sizes.items():
        if output in outputs:
            parts[output] = flat[start : start + size]
            start += size
    colbert, hidden_states = parts.get(Output.COLBERT), parts.get(Output.HIDDEN_STATES)
    return Vectors(
        dense=parts.get(Output.DENSE),
        sparse=parts.get(Output.SPARSE),
        colbert=None if colbert is None else colbert.reshape(n_tokens - 1, hidden),
        hidden_states=None if hidden_states is None else hidden_states.reshape(n_tokens, hidden),
    )

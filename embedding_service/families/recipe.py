"""How token vectors become the answer: the recipe that a checkpoint's files come to.

Read by `pipeline.py`, computed by `models/sentence_pooler.py`. Formulas and defaults:
sentence-transformers 6.2, `sentence_transformer/modules` and `base/modules`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

# In the order in which several are put end to end.
MODES: Final = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
# Those that need no argument.
ACTIVATIONS: Final = frozenset({
    "CELU", "ELU", "GELU", "GLU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity",
    "LeakyReLU", "LogSigmoid", "LogSoftmax", "Mish", "PReLU", "RReLU", "ReLU", "ReLU6", "SELU",
    "SiLU", "Sigmoid", "Softmax", "Softmin", "Softplus", "Softshrink", "Softsign", "Tanh",
    "Tanhshrink",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer to `outputs` numbers and an activation of `torch.nn`."""

    inputs: int
    outputs: int
    bias: bool
    activation: str
    residual: bool
    weights: Path


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """`torch.nn.LayerNorm` over the whole vector."""

    width: int
    weights: Path


@dataclass(frozen=True, slots=True)
class Normalize:
    """Scale to length 1."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Keep the first `width` numbers."""

    width: int


Step = Dense | LayerNorm | Normalize | Cut


@dataclass(frozen=True, slots=True)
class Splade:
    """Weights of the vocabulary: how logits are activated, and joined over the tokens."""

    pooling: str = "max"
    activation: str = "relu"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How token vectors become the answer; `folder` holds the transformer, "" where it is the root.

    `modes` are pooled and put end to end, then go through `steps`, which end before the
    checkpoint's own last `Normalize`: `normalizes` tells that it has one, and the service scales.
    Tokens of a prompt are pooled unless `include_prompt` is false. With `splade` there is no dense
    vector. `described`: the checkpoint has a modules.json.
    """

    modes: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    splade: Splade | None = None
    normalizes: bool = False
    include_prompt: bool = True
    lower_case: bool = False
    folder: str = ""
    described: bool = True

    @property
    def plain(self) -> bool:
        """Whether vLLM's own pooler computes the same."""
        simple = self.modes in {("cls",), ("mean",), ("lasttoken",)}
        return simple and not self.steps and self.include_prompt

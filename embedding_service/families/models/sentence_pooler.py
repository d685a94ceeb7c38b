"""The modules behind the transformer, as sentence-transformers has them, for all vLLM models.

Put into a loaded model by `install`, where `recipe.Recipe` says more than vLLM's own pooler knows.
Formulas: sentence-transformers 6.2, `Pooling._forward_flattened`, `Dense`, `LayerNorm`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from vllm.model_executor.layers.pooler import Pooler

from embedding_service.families import recipe
from embedding_service.families.bge_m3 import TASK
from embedding_service.families.checkpoint import ModelRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from torch import Tensor
    from vllm.tasks import PoolingTask
    from vllm.v1.outputs import PoolerOutput
    from vllm.v1.pool.metadata import PoolingCursor, PoolingMetadata

    from embedding_service.families.recipe import Recipe, Step

# The key in `PoolingParams.extra_kwargs` for the number of tokens to leave out at the beginning.
SKIPPED: Final = "skipped_tokens"


@dataclass(frozen=True, slots=True)
class Texts:
    """The token vectors of several texts, end to end: `rows` (tokens, hidden) in float32.

    `starts` and `lengths` are (texts,); `skipped` tokens of each text are not pooled. For each
    token `owner` is its text, `place` its place in it, and `kept` 1.0 or 0.0, all (tokens,).
    """

    rows: Tensor
    starts: Tensor
    lengths: Tensor
    skipped: Tensor
    owner: Tensor
    place: Tensor
    kept: Tensor

    @classmethod
    def of(cls, rows: Tensor, lengths: Sequence[int], skipped: Sequence[int]) -> Texts:
        """Lay out texts of these `lengths`; the last token of a text is never skipped."""
        on_device = partial(torch.tensor, device=rows.device)
        sizes = on_device(lengths)
        starts = on_device([0, *accumulate(lengths)][:-1])
        left_out = torch.minimum(on_device(skipped), sizes - 1)
        owner = torch.repeat_interleave(sizes, output_size=len(rows))  # told, a GPU need not wait
        place = torch.arange(len(rows), device=rows.device) - starts[owner]
        kept = (place >= left_out[owner]).float()
        return cls(rows.float(), starts, sizes, left_out, owner, place, kept)

    @property
    def kept_lengths(self) -> Tensor:
        """How many tokens of each text are pooled, (texts, 1)."""
        return (self.lengths - self.skipped)[:, None]

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Return (texts, hidden) for weights (tokens,)."""
        sums = self.rows.new_zeros(len(self.lengths), self.rows.shape[1])
        return sums.index_add_(0, self.owner, self.rows * weights.unsqueeze(1))


def _first(texts: Texts) -> Tensor:
    return texts.rows[texts.starts + texts.skipped]


def _last(texts: Texts) -> Tensor:
    return texts.rows[texts.starts + texts.lengths - 1]


def _largest(texts: Texts) -> Tensor:
    rows = texts.rows.masked_fill(texts.kept[:, None] == 0, -torch.inf)
    highest = rows.new_full((len(texts.lengths), rows.shape[1]), -torch.inf)
    return highest.scatter_reduce_(0, texts.owner[:, None].expand_as(rows), rows, "amax")


def _mean(texts: Texts) -> Tensor:
    return texts.weighted_sum(texts.kept) / texts.kept_lengths


def _mean_sqrt(texts: Texts) -> Tensor:
    return texts.weighted_sum(texts.kept) / texts.kept_lengths.sqrt()


def _weighted_mean(texts: Texts) -> Tensor:
    """Weigh each token by its place in the text, from 1, the prompt counted."""
    weights = (texts.place + 1) * texts.kept
    totals = weights.new_zeros(len(texts.lengths)).index_add_(0, texts.owner, weights)
    return texts.weighted_sum(weights) / totals[:, None]


POOL: Final[dict[str, Callable[[Texts], Tensor]]] = {
    "cls": _first,
    "max": _largest,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}


class _Dense(nn.Module):
    """Named as sentence-transformers names it, so that its weights load by name."""

    def __init__(self, step: recipe.Dense) -> None:
        super().__init__()
        self.linear = nn.Linear(step.inputs, step.outputs, bias=step.bias)
        self.activation_function = getattr(nn, step.activation)()
        self.uses_residual = step.residual
        if step.residual and step.inputs != step.outputs:
            self.residual = nn.Linear(step.inputs, step.outputs, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        changed = self.activation_function(self.linear(vectors))
        if not self.uses_residual:
            return changed
        return changed + (self.residual(vectors) if hasattr(self, "residual") else vectors)


class _LayerNorm(nn.Module):
    def __init__(self, step: recipe.LayerNorm) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(step.width)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.norm(vectors)


class _Normalize(nn.Module):
    def forward(self, vectors: Tensor) -> Tensor:
        return functional.normalize(vectors, dim=-1)


class _Cut(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors[:, : self.width]


def layer(step: Step) -> nn.Module:
    """Return a step with its weights, in float32. Raises `ModelRefused` if they do not fit."""
    match step:
        case recipe.Dense():
            return _loaded(_Dense(step), step.weights)
        case recipe.LayerNorm():
            return _loaded(_LayerNorm(step), step.weights)
        case recipe.Normalize():
            return _Normalize()
        case recipe.Cut():
            return _Cut(step.width)


def _loaded(module: nn.Module, path: Path) -> nn.Module:
    safe = path.suffix == ".safetensors"
    state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        fault = " ".join(str(error).split())
        raise ModelRefused(f"{path.parent.name}/{path.name}: {fault}") from error
    return module.float().eval()


class WholePooler(Pooler):
    """Base of our poolers, whose texts have to come whole."""

    def get_supported_tasks(self) -> AbstractSet[PoolingTask]:
        """Return the one task whose prompts reach this pooler."""
        return {TASK}

    def cursor(self, pooling_metadata: PoolingMetadata) -> PoolingCursor:
        """Return where the texts of a batch are."""
        cursor = pooling_metadata.get_pooling_cursor()
        if cursor.is_partial_prefill():
            raise RuntimeError("texts are pooled whole: chunked prefill must be off")
        return cursor


class SentencePooler(WholePooler):
    """Gives each text one vector, from the hidden states (tokens, hidden) of the batch."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.pool = [POOL[mode] for mode in recipe.modes]
        self.steps = nn.Sequential(*map(layer, recipe.steps))

    def forward(self, hidden_states: Tensor, pooling_metadata: PoolingMetadata) -> PoolerOutput:
        """Return (texts, width), not normalised."""
        cursor = self.cursor(pooling_metadata)
        skipped = [
            (params.extra_kwargs or {}).get(SKIPPED, 0)
            for params in pooling_metadata.pooling_params
        ]
        return self.vectors(hidden_states, cursor.num_scheduled_tokens_cpu.tolist(), skipped)

    def vectors(
        self, hidden_states: Tensor, lengths: Sequence[int], skipped: Sequence[int]
    ) -> Tensor:
        """Return (texts, width) for texts of these lengths, laid end to end."""
        texts = Texts.of(hidden_states, lengths, skipped)
        return self.steps(torch.cat([pool(texts) for pool in self.pool], dim=-1))


def install(model: nn.Module, recipe: Recipe) -> None:
    """Have a loaded model of vLLM pool as the recipe says. Raises `ModelRefused` if it cannot."""
    dispatch = getattr(model, "pooler", None)
    by_task = getattr(dispatch, "poolers_by_task", None)
    if by_task is None or "embed" not in by_task:
        asked, kind = describe_recipe(recipe), type(model).__name__
        raise ModelRefused(f"modules.json asks for {asked}; vLLM's {kind} pools in its own way")
    device = next(model.parameters()).device
    by_task["embed"] = SentencePooler(recipe).to(device)


def describe_recipe(recipe: Recipe) -> str:
    """Name the modes and the steps."""
    parts: Iterable[str] = (*recipe.modes, *(type(step).__name__ for step in recipe.steps))
    return " + ".join(parts)

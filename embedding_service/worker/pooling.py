"""Each kind of model in vLLM: the outputs it has, how they are asked for, and the answer read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from vllm import PoolingParams
from vllm.transformers_utils.config import try_get_dense_modules

from embedding_service.families import architectures, bge_m3, lexical
from embedding_service.types import Output
from embedding_service.worker.backend import ModelRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from vllm.config import ModelConfig

    from embedding_service.settings.model import ModelOptions
    from embedding_service.types import Floats, Rows, TokenIds

    Outputs = frozenset[Output]


class Pooling(Protocol):
    """One kind of model; an input is asked for a subset of `outputs`."""

    @property
    def outputs(self) -> Outputs:
        """All that it can give."""

    def ask(self, outputs: Outputs, boundary: int | None) -> PoolingParams:
        """Return vLLM's parameters; `boundary` is the number of tokens of a pair's first text."""

    def read(self, flat: Floats, ids: TokenIds, outputs: Outputs) -> Rows:
        """Return the rows of one input from vLLM's numbers for its token ids."""


class _Task(NamedTuple):
    """How vLLM is asked for one output; `read` makes rows of its answer for so many tokens."""

    arguments: dict[str, Any]
    read: Callable[[Floats, int], Floats]


def _one_row(flat: Floats, n_tokens: int) -> Floats:  # noqa: ARG001
    return flat.reshape(1, -1)


def _a_row_for_each_token(flat: Floats, n_tokens: int) -> Floats:
    return flat.reshape(n_tokens, -1)


def _weights_of_the_vocabulary(flat: Floats, n_tokens: int) -> Floats:  # noqa: ARG001
    return lexical.of_vocabulary(flat)


_EMBED = {"task": "embed", "use_activation": False}
# Scores have no activation, see `vllm_arguments`; with False, 0.26 leaves out the tanh of BERT's
# pooler too.
_CLASSIFY = {"task": "classify", "use_activation": True}
_TASKS = {
    Output.DENSE: _Task(_EMBED, _one_row),
    Output.SPARSE: _Task(_EMBED, _weights_of_the_vocabulary),
    Output.SCORE: _Task(_CLASSIFY, _one_row),
    Output.HIDDEN_STATES: _Task(_EMBED | {"task": "token_embed"}, _a_row_for_each_token),
}
_DENSE = frozenset({Output.DENSE})
_DENSE_AND_WHOLE = _DENSE | {Output.HIDDEN_STATES}


@dataclass(frozen=True, slots=True)
class OneTask:
    """A model that vLLM asks for one output at a time."""

    outputs: Outputs

    def ask(self, outputs: Outputs, boundary: int | None) -> PoolingParams:
        """Ask for the one output."""
        (output,) = outputs
        types = None if boundary is None else {"compressed_token_type_ids": boundary}
        return PoolingParams(**_TASKS[output].arguments, extra_kwargs=types)

    def read(self, flat: Floats, ids: TokenIds, outputs: Outputs) -> Rows:
        """Read the one output."""
        (output,) = outputs
        return {output: _TASKS[output].read(flat, len(ids))}


@dataclass(frozen=True, slots=True)
class BgeM3:
    """BGE-M3, which gives any of its outputs from one pass; `special_ids` have no weight."""

    outputs: Outputs
    hidden: int
    special_ids: tuple[int, ...]

    def ask(self, outputs: Outputs, boundary: int | None) -> PoolingParams:  # noqa: ARG002
        """Ask for all of `outputs` at once."""
        wanted = bge_m3.pooling_kwargs(outputs)
        return PoolingParams(task=bge_m3.TASK, use_activation=False, extra_kwargs=wanted)

    def read(self, flat: Floats, ids: TokenIds, outputs: Outputs) -> Rows:
        """Take the flat answer apart, and merge the weights of equal tokens."""
        rows = bge_m3.unpack(flat, n_tokens=len(ids), hidden=self.hidden, outputs=outputs)
        if (weights := rows.get(Output.SPARSE)) is not None:
            rows[Output.SPARSE] = lexical.of_tokens(ids, weights[:, 0], skip_ids=self.special_ids)
        return rows


def find(
    config: ModelConfig,
    options: ModelOptions,
    *,
    model: str,
    tasks: Collection[str],
    special_ids: tuple[int, ...],
) -> Pooling:
    """Return the kind of the `model` at this place, for which vLLM offers `tasks`.

    Raises `ModelRefused` if none of them is of use.
    """
    if config.architecture == architectures.BGE_M3:
        outputs = bge_m3.available_outputs(model, revision=options.revision)
        return BgeM3(outputs, config.get_hidden_size(), special_ids)
    if config.architecture == architectures.SPLADE:
        return OneTask(frozenset({Output.SPARSE}))
    if "embed" in tasks:
        # Hidden states would go through the Dense modules that sentence-transformers has behind
        # its pooling, and be none any more.
        whole = "token_embed" in tasks and not try_get_dense_modules(model, options.revision)
        return OneTask(_DENSE_AND_WHOLE if whole else _DENSE)
    if "classify" in tasks:
        return OneTask(frozenset({Output.SCORE}))
    offers = ", ".join(tasks)
    raise ModelRefused(f"{options.model_name} neither embeds nor scores (vLLM offers: {offers})")

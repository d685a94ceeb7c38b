"""Each kind of model in vLLM: the outputs it has, how they are asked for, and the answer read."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from vllm import PoolingParams

from embedding_service.families import architectures, bge_m3, lexical
from embedding_service.families.models.sentence_pooler import SKIPPED, describe_recipe
from embedding_service.types import Output
from embedding_service.worker.backend import ModelRefused
from embedding_service.worker.steps import BOUNDARY

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from vllm.config import ModelConfig

    from embedding_service.families.plan import Plan
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
    """A model that vLLM asks for one output at a time.

    `boundary` is the key under which it reads the boundary of an input, None if it reads none. Of
    the columns of a score, one for each label, `label` counts.
    """

    outputs: Outputs
    boundary: str | None = None
    label: int = 0

    def ask(self, outputs: Outputs, boundary: int | None) -> PoolingParams:
        """Ask for the one output."""
        (output,) = outputs
        given = self.boundary is not None and boundary is not None
        more = {self.boundary: boundary} if given else None
        return PoolingParams(**_TASKS[output].arguments, extra_kwargs=more)

    def read(self, flat: Floats, ids: TokenIds, outputs: Outputs) -> Rows:
        """Read the one output."""
        (output,) = outputs
        rows = _TASKS[output].read(flat, len(ids))
        return {output: rows[:, self.label, None] if output is Output.SCORE else rows}


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
    plan: Plan,
    *,
    tasks: Collection[str],
    special_ids: tuple[int, ...],
    typed: bool,
) -> Pooling:
    """Return the kind of a model that was loaded as planned, for which vLLM offers `tasks`.

    `typed` tells that its tokenizer gives models the numbers of segments.

    Raises `ModelRefused` if none of them is of use.
    """
    if config.architecture == architectures.BGE_M3:
        outputs = bge_m3.available_outputs(plan.model, revision=options.revision)
        return BgeM3(outputs, config.get_hidden_size(), special_ids)
    if plan.recipe is not None and plan.recipe.splade is not None:
        return OneTask(frozenset({Output.SPARSE}))
    if plan.scores and "classify" in tasks:
        return _scoring(config, plan, typed=typed)
    if not plan.scores and "embed" in tasks:
        _check_pooling(config, plan)
        return _embedding(plan, tasks)
    offers, wants = ", ".join(tasks), "scores" if plan.scores else "vectors"
    raise ModelRefused(
        f"config.json says {config.architecture}, which gives no {wants} in vLLM, but {offers}"
    )


def _scoring(config: ModelConfig, plan: Plan, *, typed: bool) -> Pooling:
    types = BOUNDARY if typed and _takes_types(config) else None
    return OneTask(frozenset({Output.SCORE}), types, plan.label)


def _check_pooling(config: ModelConfig, plan: Plan) -> None:
    """Raise `ModelRefused` if vLLM's class has decided on another pooling than the files say."""
    taken = config.pooler_config.seq_pooling_type
    if plan.pooling not in (None, taken) and not plan.pools:
        raise ModelRefused(
            f"the model's files say {plan.pooling} pooling, and vLLM's {config.architecture} takes "
            f"{taken} from config.json; set engine_args: {{pooler_config: …}} to the right one"
        )


def _embedding(plan: Plan, tasks: Collection[str]) -> Pooling:
    if plan.pools:
        # vLLM sends hidden states through the Dense modules behind a pooling, too.
        return OneTask(_DENSE, SKIPPED)
    return OneTask(_DENSE_AND_WHOLE if "token_embed" in tasks else _DENSE)


def _takes_types(config: ModelConfig) -> bool:
    """Whether the model numbers the segments of a pair; to give others a number ends the engine.

    Tokenizers of ModernBERT and of Llama's kind number them for models that have no use for it.
    """
    several = getattr(config.hf_config, "type_vocab_size", 0) > 1
    return several and any(map(_can_be_types, _forward_parameters(config)))


def _can_be_types(parameter: inspect.Parameter) -> bool:
    # vLLM's wrapper around transformers' classes hands on what it does not know.
    return parameter.name == "token_type_ids" or parameter.kind is parameter.VAR_KEYWORD


def _forward_parameters(config: ModelConfig) -> Iterable[inspect.Parameter]:
    model_class, _ = config.registry.resolve_model_cls([config.architecture], config)
    return inspect.signature(model_class.forward).parameters.values()


def describe(plan: Plan, config: ModelConfig) -> str:
    """Name how tokens become the answer."""
    if plan.recipe is None or config.architecture == architectures.BGE_M3:
        return str(config.pooler_config.seq_pooling_type)
    if plan.recipe.splade is not None:
        return f"SPLADE {plan.recipe.splade.pooling}"
    if plan.pools:
        return describe_recipe(plan.recipe)
    return str(config.pooler_config.seq_pooling_type)

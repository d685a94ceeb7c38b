"""How a checkpoint is served, decided from its files before the engine starts.

Computed as its authors compute it, or refused with the file and the value: vLLM falls back in
silence where files say what it does not know.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from embedding_service.families import (
    architectures,
    feeding,
    logit_score,
    pipeline,
    profiles,
    recipe,
    refusals,
    tokenizer_files,
    weights,
)
from embedding_service.families.checkpoint import Files, ModelRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedding_service.families.checkpoint import Json
    from embedding_service.families.profiles import Profile
    from embedding_service.families.recipe import Recipe

# vLLM's names of the modes that it has.
_VLLM_POOLING: Final = {"cls": "CLS", "mean": "MEAN", "lasttoken": "LAST"}
_GENERATES: Final = ("ForCausalLM", "ForConditionalGeneration")
_UNDER_A_HEAD: Final = ("bert.", "classifier.", "cls.")
_ASKED: Final = "Qwen3-Reranker, mxbai-rerank-v2 and bge-reranker-v2-gemma"


@dataclass(frozen=True, slots=True)
class Wishes:
    """The operator's word on a model; `overrides` and `pooling` are settings of vLLM's."""

    name: str
    task: Literal["auto", "embed", "rerank"] = "auto"
    label: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    pooling: bool = False  # chosen by hand


@dataclass(frozen=True, slots=True)
class Plan:
    """The way in which a checkpoint is served.

    vLLM loads `model`, a folder or a name on the Hub, with `overrides` of its config.json and the
    `pooling` of its own that comes nearest, in whose place comes ours if `pools` is true; `recipe`
    is None for models that score pairs, of whose labels `label` counts. With `lower_case` the
    tokenizer is to lower-case a text first. Of a text `max_seq_length` tokens are read, which
    sentence-transformers' files say, or else `max_tokens`, the limit of tokenizer and positions.
    `unread` are files without effect.
    """

    model: str
    files: Files
    config: Json
    profile: Profile
    overrides: Json
    recipe: Recipe | None = None
    pooling: str | None = None
    pools: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    label: int = 0
    lower_case: bool = False
    max_seq_length: int | None = None
    max_tokens: int | None = None
    unread: list[str] = field(default_factory=list)

    @property
    def architecture(self) -> str:
        """The class that vLLM looks for, "" where no file names one."""
        return architectures.named_in(self.config | self.overrides)

    @property
    def scores(self) -> bool:
        """Whether it scores pairs."""
        return self.recipe is None


def make(model: str, wishes: Wishes, *, revision: str | None = None) -> Plan:
    """Decide how the `model`, a folder or a name on the Hub, is served. Raises `ModelRefused`."""
    return _Planner(Files(model, revision=revision), wishes).plan()


class _Planner:
    """The files of one checkpoint, and what is wished of it."""

    def __init__(self, files: Files, wishes: Wishes) -> None:
        self.files = files
        self.wishes = wishes
        self.folder = pipeline.transformer_folder(files)
        self.max_seq_length = feeding.max_seq_length(files, self.folder)
        self.unread = feeding.unread(files)
        self.config = self._config()
        self.architecture = architectures.named_in(self.config)
        self.profile = self._profile()

    def _config(self) -> Json:
        """Return config.json with the operator's differences to it."""
        place = f"{self.folder}/config.json" if self.folder else "config.json"
        config: Json = self.files.json(place)
        refusals.check_adapter(self.files, self.folder, alone=not config)
        if not config:
            if self.files.json("modules.json"):
                pipeline.read(self.files, {})  # names a module that needs no transformer
            if Path(self.files.model).is_dir():
                found = "nothing in" if self.files.path(place) else "no"
                raise ModelRefused(f"there is {found} {place}, so it is not a model")
            raise ModelRefused(
                f"{self.files.model} has no {place} in the local cache and the hub cannot be "
                "reached, or has no such model"
            )
        own = self.wishes.overrides
        return config | (dict(own) if isinstance(own, dict) else {})

    def _profile(self) -> Profile:
        marks = [name for name in profiles.MARKS if self.files.path(name)]
        return profiles.find(
            model_name=self.wishes.name,
            architecture=self.architecture,
            files=marks,
            template=tokenizer_files.chat_template(self.files),
        )

    def plan(self) -> Plan:
        """Decide."""
        refusals.check_architecture(self.files, self.architecture)
        refusals.check_config(self.config, self.architecture)
        refusals.check_tokenizer(self.files, self.folder)
        if self.architecture.endswith("ForSequenceClassification") and not self._pools():
            return self._pairs(self.profile)
        if (reranker := self._causal_reranker()) is not None:
            return self._pairs(reranker)
        return self._vectors()

    def _pools(self) -> bool:
        """Whether its modules make a vector, whatever head its architecture names."""
        modules = self.files.json("modules.json")
        return any(str(module.get("type")).endswith("Pooling") for module in modules)

    def _known_code(self) -> Json:
        return dict(architectures.KNOWN_CODE.get(architectures.own_class(self.config) or "", {}))

    def _causal_reranker(self) -> Profile | None:
        """Return the family of a causal language model that scores pairs, or None if it embeds.

        Raises `ModelRefused` about one whose question is not known.
        """
        if not self.architecture.endswith(_GENERATES) or self.wishes.task == "embed":
            return None
        if self._pools():
            return None  # whatever its name and its chat template say
        if self.profile.pair_prompt is not None:
            return self.profile
        modules = self.files.json("modules.json")
        scores = logit_score.is_in(modules)
        if modules and not scores and self.wishes.task == "auto":
            return None
        if self.architecture == "Qwen3ForCausalLM" and not scores and self._appends_nothing():
            return profiles.named("qwen3-reranker")
        if scores:
            raise ModelRefused(
                f"modules.json has LogitScore, and config.json says {self.architecture}: a "
                "language model that scores pairs by its answer to a question; served are those "
                f"of {_ASKED}"
            )
        if self._should_score():
            raise ModelRefused(
                f"config.json says {self.architecture}: a language model that scores pairs by the "
                f"answer to a question, which no file says. Known are {_ASKED}, by their names; "
                "to embed with it set task: embed"
            )
        return None

    def _should_score(self) -> bool:
        return self.wishes.task == "rerank" or "rerank" in self.wishes.name.lower()

    def _appends_nothing(self) -> bool:
        """Whether the tokenizer ends a text with no token of its own, unlike Qwen3-Embedding's."""
        steps = tokenizer_files.steps(self.files.json("tokenizer.json"))
        # A tokenizer that transformers saved again may have a template without any token.
        return not any(step.get("special_tokens") for step in steps)

    def _pairs(self, profile: Profile) -> Plan:
        """Serve a model that scores pairs."""
        if self.wishes.task == "embed":
            raise ModelRefused(f"config.json says {self.architecture}: it scores, and embeds not")
        self._check_pairs(profile)
        overrides = profile.hf_overrides | self._known_code()
        overrides |= architectures.missing_keys(self.config, self.architecture)
        if ours := architectures.replacement(self.config, architectures.PAIRS):
            overrides |= {"architectures": [ours]}
        label = 0 if profile.hf_overrides else self._label()
        # A question in words is known to the family, whatever the files say of it.
        lower = profile.pair_prompt is None and pipeline.pairs_are_lower_case(self.files)
        return self._planned(profile, overrides, label=label, lower_case=lower)

    def _check_pairs(self, profile: Profile) -> None:
        """Raise `ModelRefused` about what vLLM or we would score otherwise than the files say."""
        refusals.check_pairs(self.config, self.architecture)
        feeding.check_activation("config.json", self._activation())
        if profile.pair_prompt is None:
            refusals.check_last_token(self.files, self.folder, self.config, self.architecture)
        logit_score.check(self.files, profile, tokenizer_files.chat_template(self.files))

    def _activation(self) -> str | None:
        """Return the class under which scores are to come; the second key is that of old files."""
        old = self.config.get("sbert_ce_default_activation_function")
        named: str | None = (self.config.get("sentence_transformers") or {}).get("activation_fn")
        return named or old

    def _label(self) -> int:
        """Return which label's logit is the score. Raises `ModelRefused` if that is not known."""
        names = self.config.get("id2label") or {}
        # transformers' default is two.
        count = len(names) or self.config.get("num_labels", 2)
        if count == 1:
            return 0
        labels = [str(names.get(str(index), index)) for index in range(count)]
        wanted = self.wishes.label
        if wanted in labels:
            return labels.index(wanted)
        if wanted is not None and wanted.isdecimal() and int(wanted) < count:
            return int(wanted)
        raise ModelRefused(
            f"config.json says id2label: {', '.join(labels)}; set score_label to the one whose "
            "logit is the score of a pair"
        )

    def _vectors(self) -> Plan:
        """Serve a model that embeds."""
        found = pipeline.read(self.files, self.config)
        refusals.check_segments(self.files, self.folder, self.config, self.architecture)
        profile = self.profile if _suits(self.profile, found) else profiles.PLAIN
        overrides = profile.hf_overrides | self._known_code()
        if found.splade is not None or (profile.replaces and not found.described):
            profile, found = _as_splade(found)
        classes = architectures.SPARSE if found.splade else architectures.DENSE
        if "architectures" not in overrides:
            overrides |= self._class(classes, needed=found.splade is not None)
        if found.splade is not None:
            overrides |= {"splade": [found.splade.pooling, found.splade.activation]}
        prompts, default = self._prompts()
        by_hand = self.wishes.pooling
        return self._planned(
            profile,
            overrides,
            recipe=found,
            pooling=None if by_hand else _vllm_pooling(found),
            pools=not (by_hand or found.plain or found.splade),
            prompts=prompts,
            default_prompt_name=default,
            lower_case=found.lower_case,
        )

    def _prompts(self) -> tuple[dict[str, str], str | None]:
        """Return the prompts by name and the default one's name; a merged adapter has none."""
        if self.config.get("lora_adaptations"):
            return {architectures.MERGED_TASK: ""}, None
        return feeding.prompts(self.files)

    def _class(self, classes: Mapping[str, str], *, needed: bool) -> Json:
        """Name our class for the architecture. Raises `ModelRefused` if there must be one."""
        if self.architecture in classes.values():
            return {}
        ours = architectures.replacement(self.config, classes)
        if ours is None and self._has_weights_of_a_head():
            ours = architectures.BERT
        if ours is None and needed:
            raise ModelRefused(
                f"config.json says {self.architecture or 'no architecture'}; weights of the "
                f"vocabulary (SPLADE) are served of {' and '.join(classes)}"
            )
        if ours is None and re.search(f"{architectures.HEADS}$", self.architecture):
            raise ModelRefused(
                f"config.json says {self.architecture}: only the encoder under that head would "
                "embed, and vLLM cannot load it alone; save it in a folder of your own "
                "(AutoModel.from_pretrained and save_pretrained of transformers) and set model_path"
            )
        overrides: Json = {} if ours is None else {"architectures": [ours]}
        return overrides | architectures.missing_keys(self.config, self.architecture)

    def _has_weights_of_a_head(self) -> bool:
        """Whether a plain BERT's weights have a head, or names as under one: transformers' ways."""
        folder = Path(self.files.model, self.folder)
        return self.architecture == "BertModel" and weights.some_begin(folder, _UNDER_A_HEAD)

    def _planned(self, profile: Profile, overrides: Json, **more: Any) -> Plan:
        return Plan(
            model=_subfolder(self.files.model, self.folder),
            files=self.files,
            config=self.config,
            profile=profile,
            # The operator's come last. vLLM reads `problem_type` in one place, to choose the
            # activation of a classifier: none for regression, so that scores are logits.
            overrides={"problem_type": "regression"} | overrides | dict(self.wishes.overrides),
            max_seq_length=self.max_seq_length,
            max_tokens=self._max_tokens(),
            unread=self.unread,
            **more,
        )

    def _max_tokens(self) -> int | None:
        """Return where sentence-transformers cuts a text if there is no max_seq_length.

        vLLM passes over the tokenizer's limit, and takes rotary positions that are scaled for more
        than there are.
        """
        if self.max_seq_length is not None:
            return None
        limits = (
            tokenizer_files.limit(self.files, self.folder),
            self.config.get("max_position_embeddings"),
        )
        return min((limit for limit in limits if limit is not None and limit > 0), default=None)


def _suits(profile: Profile, found: Recipe) -> bool:
    """Whether a family's class pools as the files say; BGE-M3's takes the first token.

    That of a reranker makes no vectors, whatever a checkpoint is called.
    """
    if profile.pair_prompt is not None:
        return False
    own_pooling = architectures.BGE_M3 in profile.architectures and found.described
    return not own_pooling or (found.plain and found.modes == ("cls",))


def _as_splade(found: Recipe) -> tuple[Profile, Recipe]:
    """Return the family and the recipe of a model that weighs the vocabulary."""
    if found.splade is None:
        found = recipe.Recipe(modes=(), splade=recipe.Splade(), described=False)
    return profiles.named("splade"), found


def _vllm_pooling(found: Recipe) -> str | None:
    """Return vLLM's nearest pooling: it reads texts whole for MEAN, as our own pooler needs."""
    if found.splade is not None:
        return None
    return _VLLM_POOLING[found.modes[0]] if found.plain else "MEAN"


def _subfolder(model: str, folder: str) -> str:
    """Return where the transformer is. Raises `ModelRefused` for a subfolder on the Hub."""
    if not folder:
        return model
    if not Path(model).is_dir():
        raise ModelRefused(
            f"modules.json has the transformer in {folder}, an old layout that is served from a "
            "folder only: download the repository and set model_path"
        )
    return str(Path(model, folder))

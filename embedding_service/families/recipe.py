"""The work of sentence-transformers behind the transformer, as the checkpoint's files say it.

An allow-list: each module, key and value that is not known here is refused with its file, since
vLLM passes over whatever it does not know. `models/sentence_pooler.py` computes what is read here.
Formulas and defaults: sentence-transformers 6.2, `sentence_transformer/modules` and `base/modules`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from embedding_service.families import architectures, tokenizer_files
from embedding_service.families.checkpoint import ModelRefused

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from embedding_service.families.checkpoint import Files, Json

_OURS: Final = re.compile(
    r"sentence_transformers\.(models|base\.modules|sentence_transformer\.modules"
    r"|sparse_encoder\.(models|modules))(\.\w+)*\.(?P<name>\w+)"
)
# By the names in old files, in the order in which several are put end to end.
_OLD_MODES: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
MODES: Final = frozenset(_OLD_MODES.values())
# Those that need no argument.
ACTIVATIONS: Final = frozenset({
    "CELU", "ELU", "GELU", "GLU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity",
    "LeakyReLU", "LogSigmoid", "LogSoftmax", "Mish", "PReLU", "RReLU", "ReLU", "ReLU6", "SELU",
    "SiLU", "Sigmoid", "Softmax", "Softmin", "Softplus", "Softshrink", "Softsign", "Tanh",
    "Tanhshrink",
})  # fmt: skip
_ACTIVATION: Final = re.compile(r"torch\.nn(\.modules(\.\w+)?)?\.(?P<name>\w+)")
# Of scores: those under which they keep their order, and which a request chooses between.
_SCORES: Final = re.compile(r"torch\.nn(\.modules(\.\w+)?)?\.(Identity|Sigmoid)")
_TRANSFORMER_FILES: Final = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_MAIN: Final = "config_sentence_transformers.json"
# Arguments of transformers that change how numbers are computed, but not which.
_WITHOUT_EFFECT: Final = frozenset({
    "add_pooling_layer", "attn_implementation", "dtype", "padding_side", "torch_dtype",
    "trust_remote_code", "unpad_inputs", "use_cache", "use_flash_attn",
    "use_memory_efficient_attention",
})  # fmt: skip
_ARGUMENTS: Final = (
    "model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args",
    "config_kwargs",
)  # fmt: skip


# Of one that scores pairs by its answer.
_LANGUAGE_MODEL: Final = {
    "transformer_task": {"text-generation"},
    "module_output_name": {"causal_logits"},
    "do_lower_case": {False},
}


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


def read(files: Files, config: Json) -> Recipe:
    """Return the recipe of a checkpoint with this config.json. Raises `ModelRefused`.

    Without a modules.json it is what sentence-transformers takes: the mean of all tokens, or the
    last one of a causal language model.
    """
    main = _main(files)
    modules = files.json("modules.json")
    if main.get("model_type") == "CrossEncoder":
        raise _unknown_scoring(modules, config)
    if modules:
        return _Reader(files, main).read(modules)
    causal = config.get("is_causal", True) and _architecture(config).endswith("ForCausalLM")
    return Recipe(modes=("lasttoken",) if causal else ("mean",), described=False)


def _unknown_scoring(modules: list[Json], config: Json) -> ModelRefused:
    return ModelRefused(
        f"{_MAIN} says model_type: CrossEncoder: it scores pairs and makes no vectors, and "
        f"{kinds(modules) or 'no modules.json'} with {_architecture(config) or 'no architecture'} "
        "is no kind of scoring that is known here"
    )


def kinds(modules: list[Json]) -> str:
    """Return the modules' types as one text."""
    return ", ".join(str(module.get("type")) for module in modules)


def folder_of(module: Json) -> str:
    """Return the folder of a module, "" where it is the root."""
    folder = (module.get("path") or "").strip("/")
    return "" if folder == "." else folder


def transformer_folder(files: Files) -> str:
    """Return the folder of the transformer, "" where it is the root."""
    modules = files.json("modules.json")
    return folder_of(modules[0]) if modules else ""


def prompts(files: Files) -> tuple[dict[str, str], str | None]:
    """Return the prompts in the checkpoint's files by name, and the name of the default one."""
    main = _main(files) if files.json("modules.json") else {}
    texts = {
        name: text for name, text in (main.get("prompts") or {}).items() if isinstance(text, str)
    }
    default = main.get("default_prompt_name")
    if default is not None and default not in texts:
        raise _unknown(_MAIN, "default_prompt_name", default)
    return texts, default


def max_seq_length(files: Files, folder: str) -> int | None:
    """Return the most tokens of a text, None where the file of the transformer does not say."""
    length: int | None = feeding(files, folder)[1].get("max_seq_length")
    return length if files.json("modules.json") else None


def unread(files: Files) -> list[str]:
    """Name the files that sentence-transformers passes over, as it does without a modules.json."""
    if files.json("modules.json"):
        return []
    return [name for name in (_MAIN, *_TRANSFORMER_FILES) if files.json(name)]


def feeding(files: Files, folder: str) -> tuple[str, Json]:
    """Return the file that says how a transformer is fed, and what it says."""
    for name in _TRANSFORMER_FILES:
        place = tokenizer_files.at(folder, name)
        if found := files.json(place):
            return place, found
    return _TRANSFORMER_FILES[0], {}


def check_language_model(files: Files, folder: str) -> None:
    """Raise `ModelRefused` if one that scores pairs is fed otherwise than it is here."""
    place, found = feeding(files, folder)
    _main(files)
    told = found.get("processing_kwargs") or {}
    _check(f"{place}, processing_kwargs", told, {"chat_template": None})
    own = {key: found[key] for key in _LANGUAGE_MODEL if key in found}
    _check(place, own, _LANGUAGE_MODEL)
    rest = found.keys() - {*own, "processing_kwargs"}
    _check_transformer(place, {key: found[key] for key in rest})


def check_activation(place: str, name: str | None) -> None:
    """Raise `ModelRefused` if scores are to be what no request can ask for."""
    if name is not None and not _SCORES.fullmatch(str(name)):
        raise ModelRefused(
            f"{place} says activation_fn: {name!r}, and scores are served as they are (Identity) "
            "or under Sigmoid; if you want these, take it out in a folder of your own and set "
            "model_path"
        )


def pairs_are_lower_case(files: Files) -> bool:
    """Whether the files of a classifier say that pairs are lower-cased first.

    Raises `ModelRefused` about what they say beyond that, such as a prompt before each query. As in
    sentence-transformers, they are read where they say that they are a cross-encoder's.
    """
    main = _main(files)
    if main.get("model_type") != "CrossEncoder":
        return False
    if main.get("default_prompt_name") is not None:
        raise _unknown(_MAIN, "default_prompt_name", main["default_prompt_name"])
    modules = files.json("modules.json")
    if set(_module_names(modules)) - {"Transformer"}:
        raise ModelRefused(
            f"modules.json has {kinds(modules)}; a classifier is its transformer alone"
        )
    reader = _Reader(files, main)
    for module in modules:
        reader.read_transformer(folder_of(module))
    return bool(reader.transformer.get("do_lower_case"))


def _architecture(config: Json) -> str:
    return str(next(iter(config.get("architectures") or ()), ""))


def _main(files: Files) -> Json:
    main: Json = files.json(_MAIN)
    allowed = {
        "__version__": None,
        "model_type": {"SentenceTransformer", "SparseEncoder", "CrossEncoder"},
        "prompts": None,
        "default_prompt_name": None,
        "similarity_fn_name": {"cosine", "dot", "dot_score", "euclidean", "manhattan"},
        "truncate_dim": None,
    }
    if main.get("model_type") == "MultiVectorEncoder":
        raise ModelRefused(f"{_MAIN} says model_type: MultiVectorEncoder: {architectures.LATE}")
    if main.get("model_type") == "CrossEncoder":
        allowed |= {"activation_fn": None, "keep_in_fp32_modules": None}
        check_activation(_MAIN, main.get("activation_fn"))
    _check(_MAIN, main, allowed)
    return main


class _Reader:
    """Reads the modules one after another."""

    def __init__(self, files: Files, main: Json) -> None:
        self.files = files
        self.main = main
        self.modes: tuple[str, ...] = ()
        self.steps: list[Step] = []
        self.splade: Splade | None = None
        self.include_prompt = True
        self.transformer: Json = {}
        self.folder = ""
        self.place = ""  # of the file that says how the transformer is fed
        self.first = ""  # the class of the first module

    def read(self, modules: list[Json]) -> Recipe:
        """Return the recipe. Raises `ModelRefused`."""
        names = list(_module_names(modules))
        _check_told_apart(modules)
        for name, module in zip(names, modules, strict=True):
            self._check_place(name, module)
            self.first = self.first or name
            _READ[name](self, folder_of(module))
        if not self.modes and self.splade is None:
            raise ModelRefused("modules.json has no Pooling, so nothing makes a vector of tokens")
        return self._recipe()

    def _recipe(self) -> Recipe:
        if width := self.main.get("truncate_dim"):
            self.steps.append(Cut(int(width)))  # behind a Normalize: shorter than 1
        normalizes = isinstance(self.steps[-1], Normalize) if self.steps else False
        if normalizes:
            self.steps.pop()
        return Recipe(
            modes=self.modes,
            steps=tuple(self.steps),
            splade=self.splade,
            normalizes=normalizes,
            include_prompt=self.include_prompt,
            lower_case=bool(self.transformer.get("do_lower_case")),
            folder=self.folder,
        )

    def _check_place(self, name: str, module: Json) -> None:
        """Raise `ModelRefused` for a module that is not where it can be computed."""
        first, pooled = not self.transformer, bool(self.modes or self.splade)
        if name in _FIRST:
            fits = first
        elif name in _POOLING:
            fits = not first and not pooled
        else:
            fits = pooled and self.splade is None
        if not fits:
            raise ModelRefused(
                f"modules.json: {module['type']} at {module.get('path')!r} is not where it is "
                "known to be; the order is Transformer, Pooling, and what follows"
            )

    def _json(self, folder: str) -> tuple[str, Json]:
        place = tokenizer_files.at(folder, "config.json")
        return place, self.files.json(place)

    def _described(self, folder: str) -> tuple[str, Json]:
        """Return a config.json without which nobody knows how its module computes."""
        place, config = self._json(folder)
        if not self.files.path(place):
            raise ModelRefused(
                f"there is no {place}, of a module that modules.json names; the download may be "
                "incomplete"
            )
        return place, config

    def read_transformer(self, folder: str) -> None:
        """Keep how the transformer is fed."""
        self.folder = folder
        place, found = feeding(self.files, folder)
        self.transformer = {"read": True} | found
        self.place = place
        _check_transformer(place, found)

    def _check_task(self, module: str, wanted: str) -> None:
        """Raise `ModelRefused` if the transformer gives a module other rows than those known."""
        usual = "fill-mask" if self.first == "MLMTransformer" else "feature-extraction"
        if (task := self.transformer.get("transformer_task", usual)) != wanted:
            raise ModelRefused(
                f"{self.place} says transformer_task: {task}, whose rows are not those that "
                f"{module} in modules.json is known for ({wanted})"
            )

    def read_pooling(self, folder: str) -> None:
        """Keep which tokens make the vector."""
        place, config = self._described(folder)
        self._check_task("Pooling", "feature-extraction")
        self.modes = _modes(place, config)
        self.include_prompt = config.get("include_prompt", True)

    def read_splade(self, folder: str) -> None:
        """Keep how the vocabulary is weighed."""
        place, config = self._described(folder)
        self._check_task("SpladePooling", "fill-mask")
        allowed = {
            "pooling_strategy": {"max", "sum"},
            "activation_function": {"relu", "log1p_relu"},
            "word_embedding_dimension": None,
            "embedding_dimension": None,
            "chunk_size": None,
        }
        _check(place, config, allowed)
        self.splade = Splade(
            config.get("pooling_strategy", "max"), config.get("activation_function", "relu")
        )

    def read_dense(self, folder: str) -> None:
        """Add a linear layer."""
        place, config = self._described(folder)
        allowed = {
            **_VECTOR_KEYS,
            "in_features": None,
            "out_features": None,
            "bias": {True, False},
            "activation_function": None,
            "use_residual": {True, False},
        }
        _check(place, config, allowed)
        dense = Dense(
            inputs=_integer(place, config, "in_features"),
            outputs=_integer(place, config, "out_features"),
            bias=config.get("bias", True),
            activation=_activation(place, config),
            residual=config.get("use_residual", False),
            weights=self._weights(folder),
        )
        self.steps.append(dense)

    def read_layer_norm(self, folder: str) -> None:
        """Add a layer norm."""
        place, config = self._described(folder)
        _check(place, config, {"dimension": None})
        norm = LayerNorm(_integer(place, config, "dimension"), self._weights(folder))
        self.steps.append(norm)

    def read_normalize(self, folder: str) -> None:
        """Add a scaling to length 1; files from before version 5 have no config.json for it."""
        if folder:
            _check(*self._json(folder), _VECTOR_KEYS)
        self.steps.append(Normalize())

    def skip(self, folder: str) -> None:
        """Do nothing: dropout is for training."""

    def _weights(self, folder: str) -> Path:
        places = [f"{folder}/{name}" for name in ("model.safetensors", "pytorch_model.bin")]
        found = next(filter(None, map(self.files.path, places)), None)
        if found is None:
            raise ModelRefused(f"there is neither {places[0]} nor {places[1]}")
        return found


_VECTOR_KEYS: Final = {
    "module_input_name": {"sentence_embedding"},
    "module_output_name": {"sentence_embedding", None},
}
_FIRST: Final = frozenset({"Transformer", "MLMTransformer"})
_POOLING: Final = frozenset({"Pooling", "SpladePooling"})
_READ: Final = {
    "Transformer": _Reader.read_transformer,
    "MLMTransformer": _Reader.read_transformer,
    "Pooling": _Reader.read_pooling,
    "SpladePooling": _Reader.read_splade,
    "Dense": _Reader.read_dense,
    "LayerNorm": _Reader.read_layer_norm,
    "Normalize": _Reader.read_normalize,
    "Dropout": _Reader.skip,
}


def _check_told_apart(modules: list[Json]) -> None:
    """Raise `ModelRefused` about two modules of one name: the last one takes the first one's place.

    So it goes in sentence-transformers (`_load_config_modules`), which nobody can have meant.
    """
    named = [module["name"] for module in modules if "name" in module]
    if twice := next((name for name in named if named.count(name) > 1), None):
        raise ModelRefused(
            f"modules.json names two modules {twice!r}, of which sentence-transformers keeps one; "
            "give each a name of its own in a folder of your own and set model_path"
        )


def _module_names(modules: list[Json]) -> Iterator[str]:
    """Yield the class of each module. Raises `ModelRefused` about one that is not known."""
    for module in modules:
        kind = str(module.get("type"))
        # Its authors' own loader of adapters; `plan.py` says what of them is served.
        if kind == "custom_st.Transformer":
            yield "Transformer"
            continue
        match = _OURS.fullmatch(kind)
        if match is None or match["name"] not in _READ:
            known = ", ".join(_READ)
            raise ModelRefused(
                f"modules.json has a {kind}, which cannot be computed here; {known} can, of "
                "sentence-transformers' own"
            )
        yield match["name"]


def _check(place: str, found: Mapping[str, Any], allowed: Mapping[str, Any]) -> None:
    """Raise `ModelRefused` about a key or a value that is not allowed; None allows all values."""
    for key, value in found.items():
        if key not in allowed:
            if value not in (None, False, {}, [], ""):
                raise _unknown(place, key, value)
        elif allowed[key] is not None and not _among(value, allowed[key]):
            raise _unknown(place, key, value)


def _among(value: Any, allowed: set[Any]) -> bool:
    return value is None or (not isinstance(value, list | dict) and value in allowed)


def _unknown(place: str, key: str, value: object) -> ModelRefused:
    return ModelRefused(
        f"{place} says {key}: {value!r}, which cannot be computed here; if it changes no number, "
        "take it out in a folder of your own and set model_path"
    )


def _integer(place: str, config: Json, key: str) -> int:
    if not isinstance(config.get(key), int):
        raise _unknown(place, key, config.get(key))
    return int(config[key])


def _modes(place: str, config: Json) -> tuple[str, ...]:
    allowed = {key: {True, False} for key in _OLD_MODES} | {
        "word_embedding_dimension": None,
        "embedding_dimension": None,
        "pooling_mode": None,
        "include_prompt": {True, False},
    }
    _check(place, config, allowed)
    new = config.get("pooling_mode")
    if new is None:
        return tuple(mode for key, mode in _OLD_MODES.items() if config.get(key)) or ("mean",)
    modes = (new,) if isinstance(new, str) else tuple(map(str, new))
    if not modes or not MODES.issuperset(modes):
        raise _unknown(place, "pooling_mode", new)
    return modes


def _activation(place: str, config: Json) -> str:
    written = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    match = _ACTIVATION.fullmatch(str(written))
    if match is None or match["name"] not in ACTIVATIONS:
        raise _unknown(place, "activation_function", written)
    return match["name"]


def _check_transformer(place: str, found: Json) -> None:
    allowed = {
        "max_seq_length": None,
        "do_lower_case": {True, False},
        "transformer_task": {"feature-extraction", "fill-mask", "sequence-classification"},
        "module_output_name": {"token_embeddings", "scores"},
        "modality_config": None,
        "backend": None,
        "unpad_inputs": None,
        **dict.fromkeys(_ARGUMENTS),
    }
    _check(place, found, allowed)
    text = (found.get("modality_config") or {}).get("text", {"method": "forward"})
    if not isinstance(text, dict) or text.get("method") != "forward":
        raise _unknown(place, "modality_config", text)
    check = partial(_check, allowed=dict.fromkeys(_WITHOUT_EFFECT))
    for name in _ARGUMENTS:
        check(f"{place}, {name}", found.get(name) or {})

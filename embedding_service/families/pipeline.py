"""modules.json and the folders that it names, read into a recipe.

An allow-list: each module that is not known here is refused, and so is one in another place than
where sentence-transformers puts it. Source: sentence-transformers 6.2, `_load_config_modules`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from embedding_service.families import architectures, feeding, tokenizer_files
from embedding_service.families.checkpoint import ModelRefused, check, integer, unknown
from embedding_service.families.recipe import (
    ACTIVATIONS,
    MODES,
    Cut,
    Dense,
    LayerNorm,
    Normalize,
    Recipe,
    Splade,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from embedding_service.families.checkpoint import Files, Json
    from embedding_service.families.recipe import Step

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
_ACTIVATION: Final = re.compile(r"torch\.nn(\.modules(\.\w+)?)?\.(?P<name>\w+)")


def read(files: Files, config: Json) -> Recipe:
    """Return the recipe of a checkpoint with this config.json. Raises `ModelRefused`.

    Without a modules.json it is what sentence-transformers takes: the mean of all tokens, or the
    last one of a causal language model.
    """
    main = feeding.main_file(files)
    modules = files.json("modules.json")
    if main.get("model_type") == "CrossEncoder":
        raise _unknown_scoring(modules, config)
    if modules:
        return _Reader(files, main).read(modules)
    decoder = architectures.named_in(config).endswith("ForCausalLM")
    causal = decoder and config.get("is_causal", True)
    return Recipe(modes=("lasttoken",) if causal else ("mean",), described=False)


def _unknown_scoring(modules: list[Json], config: Json) -> ModelRefused:
    architecture = architectures.named_in(config) or "no architecture"
    return ModelRefused(
        f"{feeding.MAIN} says model_type: CrossEncoder: it scores pairs and makes no vectors, and "
        f"{kinds(modules) or 'no modules.json'} with {architecture} is no kind of scoring that is "
        "known here"
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


def pairs_are_lower_case(files: Files) -> bool:
    """Whether the files of a classifier say that pairs are lower-cased first.

    Raises `ModelRefused` about what they say beyond that, such as a prompt before each query. As in
    sentence-transformers, they are read where they say that they are a cross-encoder's.
    """
    main = feeding.main_file(files)
    if main.get("model_type") != "CrossEncoder":
        return False
    if main.get("default_prompt_name") is not None:
        raise unknown(feeding.MAIN, "default_prompt_name", main["default_prompt_name"])
    modules = files.json("modules.json")
    if set(_module_names(modules)) - {"Transformer"}:
        raise ModelRefused(
            f"modules.json has {kinds(modules)}; a classifier is its transformer alone"
        )
    reader = _Reader(files, main)
    for module in modules:
        reader.read_transformer(folder_of(module))
    return bool(reader.transformer.get("do_lower_case"))


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
        self.place, found = feeding.read(self.files, folder)
        self.transformer = {"read": True} | found
        feeding.check_transformer(self.place, found)

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
        check(place, config, allowed)
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
        check(place, config, allowed)
        dense = Dense(
            inputs=integer(place, config, "in_features"),
            outputs=integer(place, config, "out_features"),
            bias=config.get("bias", True),
            activation=_activation(place, config),
            residual=config.get("use_residual", False),
            weights=self._weights(folder),
        )
        self.steps.append(dense)

    def read_layer_norm(self, folder: str) -> None:
        """Add a layer norm."""
        place, config = self._described(folder)
        check(place, config, {"dimension": None})
        width = integer(place, config, "dimension")
        self.steps.append(LayerNorm(width, self._weights(folder)))

    def read_normalize(self, folder: str) -> None:
        """Add a scaling to length 1; files from before version 5 have no config.json for it."""
        if folder:
            check(*self._json(folder), _VECTOR_KEYS)
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


def _modes(place: str, config: Json) -> tuple[str, ...]:
    allowed = {key: {True, False} for key in _OLD_MODES} | {
        "word_embedding_dimension": None,
        "embedding_dimension": None,
        "pooling_mode": None,
        "include_prompt": {True, False},
    }
    check(place, config, allowed)
    new = config.get("pooling_mode")
    if new is None:
        return tuple(mode for key, mode in _OLD_MODES.items() if config.get(key)) or ("mean",)
    modes = (new,) if isinstance(new, str) else tuple(map(str, new))
    if not modes or not set(modes) <= set(MODES):
        raise unknown(place, "pooling_mode", new)
    return modes


def _activation(place: str, config: Json) -> str:
    written = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    match = _ACTIVATION.fullmatch(str(written))
    if match is None or match["name"] not in ACTIVATIONS:
        raise unknown(place, "activation_function", written)
    return match["name"]

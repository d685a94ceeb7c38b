"""The small files of a checkpoint, in a folder or on the Hub; their meaning is known elsewhere.

Keys and values are checked against allow-lists: vLLM passes over what it does not know.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

Json = dict[str, Any]

_Kinds = tuple[type, ...]
# By the end of a file's name, the types of those of its values that are looked into. Null is taken
# for an absent one.
_TYPES: Final[Mapping[str, Mapping[_Kinds, str]]] = {
    "config.json": {
        (dict,): "auto_map id2label rope_parameters sentence_transformers",
        (int,): "embedding_size head_dim hidden_size max_position_embeddings num_attention_heads "
        "num_labels pad_token_id type_vocab_size",
        (int, float): "partial_rotary_factor",
        (int, list): "eos_token_id",
        (list,): "architectures",
        (str,): "position_embedding_type",
        (str, list): "pooling_mode",
    },
    "config_sentence_transformers.json": {
        (dict,): "prompts",
        (int,): "truncate_dim",
        (str,): "default_prompt_name",
    },
    "_config.json": {
        (dict,): "config_args config_kwargs modality_config model_args model_kwargs "
        "processing_kwargs processor_kwargs tokenizer_args",
        (int,): "max_seq_length",
    },
    "tokenizer.json": {(dict,): "model post_processor", (list,): "added_tokens"},
    "tokenizer_config.json": {(int, float): "model_max_length"},
}
_NAMES: Final[Mapping[type, str]] = {
    bool: "true or false",
    dict: "an object",
    float: "a number",
    int: "a whole number",
    list: "a list",
    str: "a text",
}
_MODULE: Final[Mapping[_Kinds, str]] = {(str,): "path type"}


class ModelRefused(Exception):
    """The model cannot be served; the message is one line for its operator."""


class Files:
    """The files of a `model`: a folder, or a Hub repository at `revision`.

    From the Hub an absent file is fetched, unless `HF_HUB_OFFLINE` is set or it does not answer.
    """

    def __init__(
        self, model: str, *, revision: str | None = None, cache_dir: str | None = None
    ) -> None:
        self.model = model
        self._options: Json = {"revision": revision, "cache_dir": cache_dir}
        self._fresh = False  # whether the Hub has been asked which commit it has
        self._reachable = True

    def path(self, place: str) -> Path | None:
        """Return where the file at this place in the checkpoint is, or None where it has none."""
        if Path(self.model).is_dir():
            local = Path(self.model, place)
            return local if local.is_file() else None
        if self._fresh:
            known, path = self._cached(place)
            if known or not self._reachable:
                return path
        return self._fetched(place)

    def _cached(self, place: str) -> tuple[bool, Path | None]:
        """Tell whether the local cache knows of a file, which may be that there is none."""
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - heavy, at start only

        found = try_to_load_from_cache(self.model, place, **self._options)
        return found is not None, Path(found) if isinstance(found, str) else None

    def _fetched(self, place: str) -> Path | None:
        from huggingface_hub import hf_hub_download  # noqa: PLC0415 - heavy, and at start-up only
        from huggingface_hub.errors import (  # noqa: PLC0415
            EntryNotFoundError,
            LocalEntryNotFoundError,
        )

        try:
            return Path(hf_hub_download(self.model, place, **self._options))
        except LocalEntryNotFoundError:
            self._reachable = False
            return None
        except EntryNotFoundError:
            return None
        finally:
            self._fresh = True

    def json(self, place: str) -> Any:
        """Return what a JSON file says, {} where there is none.

        modules.json is a list of objects, any other an object. Raises `ModelRefused` where it is
        neither JSON nor of these types.
        """
        path = self.path(place)
        if path is None:
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelRefused(f"{place} is not JSON: {error}") from error
        _check_types(place, found)
        return found


def _check_types(place: str, found: Any) -> None:
    """Raise `ModelRefused` about a value whose type is not that of its key."""
    if place.endswith("modules.json"):
        _check_type(place, found, (list,))
        for module in found:
            _check_object(place, module, _MODULE)
        return
    _check_type(place, found, (dict,))
    for name, types in _TYPES.items():
        if place.endswith(name):
            _check_object(place, found, types)


def _check_object(place: str, found: Any, types: Mapping[_Kinds, str]) -> None:
    _check_type(place, found, (dict,))
    for kinds, keys in types.items():
        for key in keys.split():
            if found.get(key) is not None:
                _check_type(f"{place}, {key}", found[key], kinds)


def _check_type(place: str, found: Any, kinds: _Kinds) -> None:
    if not isinstance(found, kinds):
        wanted = " or ".join(_NAMES[kind] for kind in kinds)
        raise ModelRefused(f"{place} is {_NAMES.get(type(found), 'null')}, and has to be {wanted}")


def check(place: str, found: Mapping[str, Any], allowed: Mapping[str, Any]) -> None:
    """Raise `ModelRefused` about a key or a value that is not allowed; None allows all values."""
    for key, value in found.items():
        if key not in allowed:
            if value not in (None, False, {}, [], ""):
                raise unknown(place, key, value)
        elif allowed[key] is not None and not _among(value, allowed[key]):
            raise unknown(place, key, value)


def _among(value: Any, allowed: set[Any]) -> bool:
    return value is None or (not isinstance(value, list | dict) and value in allowed)


def unknown(place: str, key: str, value: object) -> ModelRefused:
    """Return the error about a key or a value that is not known."""
    return ModelRefused(
        f"{place} says {key}: {value!r}, which cannot be computed here; if it changes no number, "
        "take it out in a folder of your own and set model_path"
    )


def integer(place: str, config: Json, key: str) -> int:
    """Return a whole number. Raises `ModelRefused` where there is none."""
    if not isinstance(config.get(key), int):
        raise unknown(place, key, config.get(key))
    return int(config[key])

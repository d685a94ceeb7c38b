"""Values in a checkpoint's files that vLLM's class of its architecture passes over.

Each is refused with the file and the value, since the numbers would be others.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from embedding_service.families import architectures, tokenizer_files
from embedding_service.families.checkpoint import ModelRefused

if TYPE_CHECKING:
    from embedding_service.families.checkpoint import Files, Json

_ADAPTER: Final = "adapter_config.json"


def check_config(config: Json, architecture: str) -> None:
    """Raise `ModelRefused` about an encoder that is to compute otherwise than vLLM's class."""
    if _is_encoder(architecture) and config.get("is_decoder"):
        raise ModelRefused(
            f"config.json says is_decoder: {config['is_decoder']}: tokens see those before them "
            f"only, and vLLM's {architecture} lets every token see every other"
        )
    _check_scale(config)


def _is_encoder(architecture: str) -> bool:
    return re.match(architectures.ENCODER, architecture) is not None


def _check_scale(config: Json) -> None:
    if config.get("logn_attention_scale"):
        raise ModelRefused(
            "config.json says logn_attention_scale: true, which vLLM's class does not compute"
        )


def check_pairs(config: Json, architecture: str) -> None:
    """Raise `ModelRefused` about a classifier whose head vLLM computes otherwise."""
    if reason := architectures.REFUSED_PAIRS.get(architecture):
        raise ModelRefused(f"config.json says {architecture}: {reason}")
    if architecture == "ModernBertForSequenceClassification":
        _check_modern(config)


def _check_modern(config: Json) -> None:
    activation = config.get("classifier_activation", "gelu")
    if activation != "gelu":
        raise ModelRefused(
            f"config.json says classifier_activation: {activation!r}, and vLLM's class "
            "always takes gelu"
        )


def check_last_token(files: Files, folder: str, config: Json, architecture: str) -> None:
    """Raise `ModelRefused` about a decoder's classifier whose pairs end in the padding token.

    transformers scores the last token that is none of padding, and vLLM the last one.
    """
    padding = config.get("pad_token_id")
    if padding is None or _is_encoder(architecture):
        return
    if padding in _ends(files, folder, config):
        raise ModelRefused(
            f"tokenizer.json ends a text with token {padding}, which config.json calls "
            f"pad_token_id: transformers' {architecture} scores the token before it, and vLLM's "
            "this one"
        )


def _ends(files: Files, folder: str, config: Json) -> set[int | None]:
    """Return the ids of the tokens that may be put behind a pair."""
    tokenizer = files.json(tokenizer_files.at(folder, "tokenizer.json"))
    told = files.json(tokenizer_files.at(folder, "tokenizer_config.json"))
    end = config.get("eos_token_id") if told.get("add_eos_token") else None
    return {*tokenizer_files.ends(tokenizer), *(end if isinstance(end, list) else [end])}


def check_adapter(files: Files, folder: str, *, alone: bool) -> None:
    """Raise `ModelRefused` if there is an adapter, `alone` or beside the weights of a model."""
    for place in (tokenizer_files.at(folder, _ADAPTER), _ADAPTER):
        if files.path(place):
            raise _adapter(files, place, alone=alone)


def _adapter(files: Files, place: str, *, alone: bool) -> ModelRefused:
    base = files.json(place).get("base_model_name_or_path") or "a model that it does not name"
    if alone:
        return ModelRefused(
            f"there is no config.json but {place}: it is an adapter (LoRA) of {base}; merge it "
            "into that model first (merge_and_unload of peft) and serve the result"
        )
    return ModelRefused(
        f"{place} is an adapter (LoRA) of {base}, which would not be loaded beside the weights; "
        "merge the adapter first (merge_and_unload of peft), or take its files out in a folder of "
        "your own and set model_path"
    )

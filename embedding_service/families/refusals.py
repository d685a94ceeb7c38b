"""Values in a checkpoint's files that vLLM's class of its architecture passes over.

Each is refused with the file and the value, since the numbers would be others.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from embedding_service.families import architectures, tokenizer_files, weights
from embedding_service.families.checkpoint import ModelRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from embedding_service.families.checkpoint import Files, Json

_ADAPTER: Final = "adapter_config.json"
_VOCABULARIES: Final = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_COLBERT: Final = "artifact.metadata"  # a file of ColBERT's own
_OTHERS: Final = "choose one of docs/models.md"
_POSITIONS: Final = frozenset({None, "absolute", "rope", "rotary"})
_Value = tuple[str, Any, str]


def check_architecture(files: Files, architecture: str) -> None:
    """Raise `ModelRefused` for what gives no vector or score of a text."""
    if reason := architectures.REFUSED.get(architecture):
        raise ModelRefused(f"config.json says {architecture}: {reason}; {_OTHERS}")
    if files.path(_COLBERT):
        raise ModelRefused(f"{_COLBERT}: {architectures.REFUSED['HF_ColBERT']}")


def check_class(architecture: str, model_type: str, *, scores: bool = False) -> None:
    """Raise `ModelRefused` if vLLM's class of this name wraps one that nobody has compared.

    `model_type` is that of config.json; `scores` tells that it is to score pairs.
    """
    compared = architectures.WRAPPED_PAIRS if scores else architectures.WRAPPED
    if architecture.startswith("Transformers") and model_type not in compared:
        raise ModelRefused(
            f"config.json says model_type: {model_type}, which vLLM has no class for; it would run "
            "transformers' own in a wrapper, which is wrong for some, and nobody has compared this "
            "one"
        )


def check_compared(architecture: str, *, scores: bool = False) -> None:
    """Raise `ModelRefused` if nobody has compared what vLLM's class of this name computes."""
    compared = architectures.COMPARED_PAIRS if scores else architectures.COMPARED
    name = re.sub(r"(LMHead)?Model$|For[A-Z]\w*$", "", architecture)
    if name in compared or architecture.startswith("EmbeddingService"):
        return
    what, task = ("scores", "rerank") if scores else ("vectors", "embed")
    raise ModelRefused(
        f"config.json says {architecture or 'no architectures'}: nobody has compared {what} that "
        f"vLLM's class for it gives with those of its authors; if you have, set task: {task}"
    )


def check_config(config: Json, architecture: str) -> None:
    """Raise `ModelRefused` about a model that is to compute otherwise than vLLM's class."""
    _check_adapters(config)
    _check_code(config, architecture)
    _check_direction(config, architecture)
    for key, value, reason in _passed_over(config, architecture):
        raise ModelRefused(f"config.json says {key}: {value!r}, {reason}")


def _check_adapters(config: Json) -> None:
    """Raise `ModelRefused` if there are adapters and nobody chose the one that vLLM merges."""
    task = architectures.MERGED_TASK
    if config.get("lora_adaptations") not in (None, [], [task]):
        raise ModelRefused(
            "config.json says lora_adaptations: it has an adapter for each task, and vLLM "
            f"merges that of {task} into the weights; to serve this one alone set "
            f"engine_args: {{hf_overrides: {{lora_adaptations: [{task}]}}}}"
        )


def _check_code(config: Json, architecture: str) -> None:
    """Raise `ModelRefused` if Python code of the repository's replaces a class of vLLM's."""
    code = architectures.own_class(config)
    ours = architecture.startswith("EmbeddingService")
    written = architecture in architectures.WRITTEN_AFTER_CODE
    if code is None or ours or written or code in architectures.KNOWN_CODE:
        return
    raise ModelRefused(
        f"config.json says auto_map: {code}, code of the repository's own that replaces "
        f"{architecture}; vLLM would take its own class and maybe compute something else. If you "
        "know that both compute the same, set engine_args: {hf_overrides: {auto_map: {}}}"
    )


def _check_direction(config: Json, architecture: str) -> None:
    """Raise `ModelRefused` if tokens are to see others than those that vLLM's class shows them."""
    if _is_encoder(architecture) and config.get("is_decoder"):
        raise ModelRefused(
            f"config.json says is_decoder: {config['is_decoder']}: tokens see those before them "
            f"only, and vLLM's {architecture} lets every token see every other"
        )
    wanted = config.get("is_causal") is False or config.get("use_bidirectional_attention")
    if wanted and not re.fullmatch(architectures.BIDIRECTIONAL, architecture):
        key = "is_causal" if config.get("is_causal") is False else "use_bidirectional_attention"
        raise ModelRefused(
            f"config.json says {key}: {config[key]}, and vLLM's {architecture} lets tokens see "
            "those before them only"
        )


def _passed_over(config: Json, architecture: str) -> Iterator[_Value]:
    """Yield keys and values that vLLM's class passes over, and what it does."""
    positions = config.get("position_embedding_type")
    if positions not in _POSITIONS:
        yield "position_embedding_type", positions, "which vLLM does not have"
    if name := config.get("transformers_weights"):
        yield "transformers_weights", name, "and vLLM looks for model.safetensors"
    if config.get("logn_attention_scale"):
        yield "logn_attention_scale", True, "which vLLM's class does not compute"
    for start, values in _BY_CLASS.items():
        if re.match(start, architecture):
            yield from values(config)


def _of_gte(config: Json) -> Iterator[_Value]:
    norm = config.get("layer_norm_type") or "layer_norm"
    if norm != "layer_norm":
        yield "layer_norm_type", norm, "which vLLM's class does not compute"


def _of_electra(config: Json) -> Iterator[_Value]:
    width = config.get("embedding_size", 128)  # transformers' defaults
    if width != config.get("hidden_size", 256):
        yield "embedding_size", width, "and vLLM loads no layer from there to hidden_size"


def _of_decoders(config: Json) -> Iterator[_Value]:
    newer = config.get("rope_parameters") or {}
    share = newer.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if share not in (None, 1):
        yield "partial_rotary_factor", share, "which transformers passes over and vLLM does not"


def _of_nomic(config: Json) -> Iterator[_Value]:
    if "n_embd" not in config:  # transformers' layout
        yield from _of_native_nomic(config)
    for key, usual in _NOMIC.items():
        if config.get(key, usual) not in (usual, None):
            yield key, config[key], "which vLLM's class does not compute"


def _of_native_nomic(config: Json) -> Iterator[_Value]:
    if (activation := config.get("hidden_act", "silu")) != "silu":
        yield "hidden_act", activation, "and vLLM's class takes silu"
    yield from _head_width(config, hidden=768, heads=12)


def _of_qwen2(config: Json) -> Iterator[_Value]:
    yield from _head_width(config, hidden=4096, heads=32)


def _head_width(config: Json, *, hidden: int, heads: int) -> Iterator[_Value]:
    """Yield a width that is no equal share of each head; the defaults are transformers'."""
    taken = config.get("hidden_size", hidden) // config.get("num_attention_heads", heads)
    if config.get("head_dim") not in (None, taken):
        yield "head_dim", config["head_dim"], f"and vLLM's class takes {taken}"


def _of_qwen3(config: Json) -> Iterator[_Value]:
    if config.get("attention_bias"):
        yield "attention_bias", True, "and vLLM's class leaves one of these biases out"


# Of the authors' code, https://huggingface.co/nomic-ai/nomic-bert-2048, and what vLLM computes.
_NOMIC: Final[Mapping[str, Any]] = {
    "causal": False,
    "parallel_block": False,
    "prenorm": False,
    "rotary_emb_fraction": 1,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "use_rms_norm": False,
}
# By the beginning of an architecture.
_BY_CLASS: Final[Mapping[str, Callable[[Json], Iterator[_Value]]]] = {
    "New|Gte": _of_gte,
    "Electra": _of_electra,
    # Of these transformers turns the whole heads, whatever the files say.
    "Llama|Mistral|Qwen2|Qwen3|Gemma": _of_decoders,
    "NomicBert": _of_nomic,
    "Qwen2": _of_qwen2,
    "Qwen3": _of_qwen3,
}


def _is_encoder(architecture: str) -> bool:
    return re.match(architectures.ENCODER, architecture) is not None


def check_weights(folder: Path) -> None:
    """Raise `ModelRefused` if vLLM could not load the weights that transformers does."""
    if not folder.is_dir():  # a name on the Hub, which is fetched later
        return
    names = weights.chosen(folder)
    if not names:
        raise ModelRefused(
            f"{folder} has no weights (model.safetensors or pytorch_model.bin); the download may "
            "be incomplete"
        )
    if missing := sorted(name for name in names if not (folder / name).is_file()):
        raise ModelRefused(
            f"{folder} has no {missing[0]}, which the index of its weights names; the download "
            "may be incomplete"
        )
    if part := weights.absent_part([folder / name for name in names]):
        raise ModelRefused(
            f"the weights in {folder} have no {part}; transformers would make it up, and vLLM take "
            "what is in the memory"
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others and not any(name.endswith(".safetensors") for name in names):
        raise ModelRefused(
            f"{folder} has {others[0]} beside pytorch_model.bin: transformers loads the one, and "
            "vLLM would load the other; take the one that is wrong out"
        )


def check_vocabulary(folder: Path) -> None:
    """Raise `ModelRefused` if there is no tokenizer: transformers would make an empty one."""
    if folder.is_dir() and not any(any(folder.glob(place)) for place in _VOCABULARIES):
        raise ModelRefused(
            f"{folder} has no tokenizer ({', '.join(_VOCABULARIES)}); the download may be "
            "incomplete"
        )


def check_tokenizer(files: Files, folder: str) -> None:
    """Raise `ModelRefused` about a tokenizer that reads special tokens in a text as plain text."""
    place = tokenizer_files.at(folder, "tokenizer_config.json")
    if files.json(place).get("split_special_tokens"):
        raise ModelRefused(
            f"{place} says split_special_tokens: true, and a special token that is written in a "
            "text is one here; if your texts have none, take it out in a folder of your own and "
            "set model_path"
        )


def check_segments(files: Files, folder: str, config: Json, architecture: str) -> None:
    """Raise `ModelRefused` if texts are of another segment than the first, which vLLM takes."""
    place = tokenizer_files.at(folder, "tokenizer.json")
    several = _is_encoder(architecture) and config.get("type_vocab_size", 2) > 1
    if several and tokenizer_files.numbers_segments(files.json(place)):
        raise ModelRefused(
            f"{place} says post_processor: tokens of a single text have a type_id that is not 0, "
            "and vLLM gives the model 0 for all"
        )


def check_pairs(config: Json, architecture: str) -> None:
    """Raise `ModelRefused` about a classifier whose head vLLM computes otherwise."""
    if reason := architectures.REFUSED_PAIRS.get(architecture):
        raise ModelRefused(f"config.json says {architecture}: {reason}; {_OTHERS}")
    activation = config.get("classifier_activation", "gelu")
    if architecture == "ModernBertForSequenceClassification" and activation != "gelu":
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
    options = files.json(tokenizer_files.at(folder, "tokenizer_config.json"))
    end = config.get("eos_token_id") if options.get("add_eos_token") else None
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

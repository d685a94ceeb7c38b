"""Architectures that vLLM has no class for, runs as transformers' own, or cannot run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from tests.acceptance import tokenizers_ as toks
from tests.acceptance.nets import ENC, PADDED, XLMR, net
from tests.acceptance.steps import ST, H, dense, listed, patch, st, write
from tests.acceptance.table import example, family

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.steps import Step

# A row is a line or two: a table, and not code.
# fmt: off

example("bf16-saved-bert", XLMR.but(dtype=torch.bfloat16, says={"torch_dtype": "bfloat16"}), st(),
    args=("--dtype", "auto"), tolerance=0.999)
T5 = net("T5", toks.saved(toks.unigram, toks.ANGLES), "EncoderModel", d_model=H, d_kv=32, d_ff=128,
    num_layers=2, num_heads=2)
T5_ST = st(include_prompt=False, layers=(dense("2_Dense", bias=False),))
family("instructor", "hkunlp/instructor-large", T5, T5_ST, kind="refuse")
family("gtr-t5", "sentence-transformers/gtr-t5-base", T5, T5_ST, kind="refuse")
STATIC, WORDS = ST + "StaticEmbedding", toks.saved(toks.wordpiece, toks.MARKS)


def table_of_words(folder: str, name: str) -> Step:
    """Write a vector for each token, which is the whole model."""

    def make(path: Path) -> None:
        size = WORDS(path / folder).get_vocab_size()
        save_file({name: torch.randn(size, H)}, str(path / folder / "model.safetensors"))

    return make


POTION = {"model_type": "model2vec", "architectures": ["StaticModel"],
    "tokenizer_name": "baai/bge-base-en-v1.5", "apply_pca": 256, "apply_zipf": True,
    "hidden_dim": H, "seq_length": 1000000, "normalize": True}
family("potion", "minishlab/potion-base-8M", table_of_words("", "embeddings"),
    patch("tokenizer_config.json", tokenizer_class="BertTokenizer"), write("config.json", POTION),
    write("modules.json", listed((".", STATIC), ("1_Normalize", ST + "Normalize"))), kind="refuse")
family("static-st", "sentence-transformers/static-retrieval-mrl-en-v1",
    table_of_words("0_StaticEmbedding", "embedding.weight"),
    write("modules.json", listed(("0_StaticEmbedding", STATIC))), kind="refuse")
# Encoders that vLLM has no class for, and runs transformers' own; the first two must be right.
TYPED, NARROW = {"type_vocab_size": 1}, {"embedding_size": H}
XMOD = {"languages": ["en_XX"], "default_language": "en_XX", "adapter_reduction_factor": 2}
WRAPPED = {"ernie": ("Ernie", {}),
    "eurobert": ("EuroBert", {"num_key_value_heads": 2, "head_dim": 32}),
    "albert": ("Albert", NARROW), "megatron-bert": ("MegatronBert", {}),
    "convbert": ("ConvBert", NARROW), "roformer": ("RoFormer", NARROW),
    "squeezebert": ("SqueezeBert", NARROW),
    "mobilebert": ("MobileBert", {**NARROW, "intra_bottleneck_size": H, "true_hidden_size": H}),
    "nystromformer": ("Nystromformer", {}), "roberta-prelayernorm": ("RobertaPreLayerNorm", TYPED),
    "xlm-roberta-xl": ("XLMRobertaXL", TYPED), "data2vec-text": ("Data2VecText", TYPED),
    "xmod": ("Xmod", {**TYPED, **XMOD}), "mpnet": ("MPNet", {}), "deberta-v2": ("DebertaV2", {})}
IDS = {key: value for key, value in PADDED.items() if key != "type_vocab_size"}
for name, (prefix, options) in WRAPPED.items():
    unsure = name not in {"ernie", "eurobert"}
    tiny = net(prefix, toks.xlmr(), **{**ENC, **IDS, **options})
    example(f"wrapped-{name}", tiny, st(max_len=500), may_refuse=unsure)

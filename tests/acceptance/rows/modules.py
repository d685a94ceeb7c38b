"""All that modules' files can say on a plain BERT, heads that nobody needs, and sparse models."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from tests.acceptance import tokenizers_ as toks
from tests.acceptance.nets import (
    BERT,
    CAMEMBERT,
    DISTIL,
    MODERN,
    QWEN2_CAUSAL,
    ROBERTA,
    SAYS,
    XLMR,
    decoder,
    encoder,
)
from tests.acceptance.steps import (
    ACTIVATION,
    ST,
    H,
    dense,
    dump,
    layer_norm,
    listed,
    modules,
    patch,
    remove,
    st,
    tensors,
    write,
)
from tests.acceptance.table import ask, example, family

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.steps import State, Step

# A row is a line or two: a table, and not code.
# fmt: off

POOLING = "1_Pooling/config.json"
DENSE = "2_Dense/config.json"
MAIN = "config_sentence_transformers.json"
PROMPTS = ask("query: ", "passage: ")

# --- pooling ---

for mode in ("max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"):
    example(f"pooling-{mode}", BERT, st(mode))
THREE = ("max_tokens", "weightedmean_tokens", "cls_token")
NEW_KEYS = {"pooling_mode": ["lasttoken", "mean_sqrt_len_tokens"], "include_prompt": True}
example("pooling-cls-and-mean", BERT, st("cls_token", "mean_tokens"))
example("pooling-three-modes", BERT, st(*THREE, normalize=False))
example("pooling-new-keys", BERT, st(), write(POOLING, {"embedding_dimension": H, **NEW_KEYS}))
example("weightedmean-without-prompt", BERT,
    st("weightedmean_tokens", include_prompt=False, prompts=PROMPTS, normalize=False))
example("cls-and-max-without-prompt", BERT,
    st("cls_token", "max_tokens", include_prompt=False, prompts=ask("query: ")))

# --- modules behind it ---


def binary(folder: str) -> Step:
    """Save weights as older versions did."""

    def make(path: Path) -> None:
        file = path / folder / "model.safetensors"
        torch.save(load_file(file), path / folder / "pytorch_model.bin")
        file.unlink()

    return make


def st6_types(path: Path) -> None:
    """Name modules as sentence-transformers 6 does."""
    base, own = "sentence_transformers.base.modules.", "sentence_transformers.sentence_transformer."
    kinds = (
        base + "transformer.Transformer",
        own + "modules.pooling.Pooling",
        base + "dense.Dense",
        base + "normalize.Normalize",
    )
    found = json.loads((path / "modules.json").read_text())
    rows = [row | {"type": kind} for row, kind in zip(found, kinds, strict=True)]
    dump(path / "modules.json", rows)


def prelu_residual(path: Path) -> None:
    """Give a Dense module weights of its own beside the product's."""
    patch(DENSE, use_residual=True)(path)
    file = str(path / "2_Dense/model.safetensors")
    slope, residual = torch.tensor([0.1]), torch.randn(32, H)
    more = {"activation_function.weight": slope, "residual.weight": residual}
    save_file(load_file(file) | more, file)


def narrow(name: str) -> tuple[Step, ...]:
    """Return a Dense module of 32 numbers with an activation."""
    return (dense("2_Dense", H, 32, act=ACTIVATION + name),)


UNSAID = {"in_features": H, "out_features": H, "bias": True}
MANY = (dense("2_Dense", act=ACTIVATION + "Mish"), dense("5_Dense", H, 96, bias=False))
DROPOUT = (modules("2_Dropout", "3_Normalize"), write("2_Dropout/config.json", {"dropout": 0.1}))
example("no-normalize", BERT, st(normalize=False))
example("dense-relu-bin", BERT, st(normalize=False, layers=narrow("ReLU")), binary("2_Dense"))
example("dense-leakyrelu", BERT, st(normalize=False, layers=narrow("LeakyReLU")))
example("dense-gelu-st6-types", BERT, st(layers=narrow("GELU")), st6_types)
example("dense-prelu-residual", BERT, st(layers=narrow("PReLU")), prelu_residual)
example("dense-tanh-unsaid", BERT, st(normalize=False, layers=(dense("2_Dense"),)),
    write(DENSE, UNSAID))
example("dense-normalize-layer-norm-dense", BERT, st(layers=MANY), layer_norm("4_LayerNorm"),
    modules("2_Dense", "3_Normalize", "4_LayerNorm", "5_Dense"))
example("dropout-module", BERT, st(), *DROPOUT)
example("layer-norm", BERT, st(), layer_norm("2_LayerNorm"), modules("2_LayerNorm"))
example("truncate-dim", BERT, st(normalize=False, truncate_dim=32))
example("scaled-and-cut", BERT, st(truncate_dim=32))

# --- no modules ---

example("no-modules-bert", BERT)
example("no-modules-qwen2", QWEN2_CAUSAL)
example("no-modules-camembert-mlm", CAMEMBERT.but(says={"architectures": ["CamembertForMaskedLM"]}))

# --- what cannot be computed ---

LINEAR = st(layers=(dense("2_Dense"),))
GELU = "transformers.activations.GELUActivation"
OTHER_DEFAULT = {"prompts": {"query": "q: "}, "default_prompt_name": "other"}
PYLATE = "pylate.models.Dense.Dense"
PLAIN = (("", ST + "Transformer"), ("1_Pooling", ST + "Pooling"))
NORMALIZE = ("2_Normalize", ST + "Normalize")
REFUSED = {
    "unknown-module": [modules("2_WordWeights")],
    "unknown-module-of-others": [write("modules.json", listed(*PLAIN, ("2_Dense", PYLATE)))],
    "unknown-pooling-mode": [patch(POOLING, pooling_mode_median_tokens=True)],
    "unknown-pooling-key": [patch(POOLING, temperature=2.0)],
    "unknown-activation": [st(layers=(dense("2_Dense", act=GELU),))],
    "unknown-dense-input": [LINEAR, patch(DENSE, module_input_name="token_embeddings")],
    "unknown-transformer-key": [patch("sentence_bert_config.json", query_length=32)],
    "unknown-main-key": [write(MAIN, {"query_prefix": "[Q] "})],
    "unknown-default-prompt": [write(MAIN, OTHER_DEFAULT)],
    "unknown-positions": [patch("config.json", position_embedding_type="relative_key")],
    "unknown-code": [patch("config.json", auto_map={"AutoModel": "modeling_mine.MyBertModel"})],
    "no-pooling": [write("modules.json", listed(PLAIN[0]))],
    "pooling-before-transformer": [write("modules.json", listed(*PLAIN, NORMALIZE)[::-1])],
    "weights-missing": [LINEAR, remove("2_Dense/model.safetensors")],
    "weights-of-another-size": [LINEAR, patch(DENSE, out_features=H - 1)],
}  # fmt: skip
for name, changes in REFUSED.items():
    example(name, BERT, st(), *changes, kind="refuse")

# --- heads of other tasks: what is under them embeds, as `AutoModel` loads it ---

example("saved-with-mlm-head", BERT.but("ForMaskedLM"), st())
example("saved-with-roberta-mlm-head", XLMR.but("ForMaskedLM"), st())
example("named-for-sequences", BERT.but("ForSequenceClassification"), st())
example("named-for-sequences-modernbert", MODERN.but("ForMaskedLM"), st(), may_refuse=True)
example("distilbert-with-mlm-head", DISTIL.but("ForMaskedLM"),
    st("cls_token", layers=narrow("Tanh")))
LM, TOKENS, LABELS = "ForMaskedLM", "ForTokenClassification", "ForSequenceClassification"
CAUSAL, ANSWERS, PRETRAINED = "ForCausalLM", "ForQuestionAnswering", "ForPreTraining"
ENCODERS = {"Bert": (PRETRAINED, "ForNextSentencePrediction", TOKENS), "Camembert": (TOKENS,),
    "DistilBert": (ANSWERS, LABELS), "Electra": (PRETRAINED, LM, TOKENS),
    "Ernie": (PRETRAINED, LM, TOKENS), "EuroBert": (LM, TOKENS), "Gte": (LM, TOKENS),
    "JinaEmbeddingsV3": (LM, TOKENS), "ModernBert": (TOKENS,), "NomicBert": (LM, TOKENS),
    "Roberta": (CAUSAL, TOKENS), "XLMRoberta": (ANSWERS, TOKENS)}
DECODERS = {"Gemma": (LABELS, TOKENS), "Llama": (CAUSAL, LABELS, TOKENS),
    "Mistral": (CAUSAL, LABELS), "Qwen2": (LABELS, TOKENS), "Qwen3": (CAUSAL, LABELS, TOKENS)}
# Of these vLLM loads the encoder under another name than the head has it.
OTHER_NAMES = {"Gte", "JinaEmbeddingsV3", "NomicBert"}
for prefix, heads in ENCODERS.items():
    for head in heads:
        unsure = prefix in OTHER_NAMES or head == CAUSAL
        example(f"head-{prefix}{head}", encoder(prefix, head), st(), may_refuse=unsure)
for prefix, heads in DECODERS.items():
    for head in heads:
        tiny = decoder(prefix, head)
        example(f"head-{prefix}{head}", tiny, st("lasttoken", max_len=4096),
            may_refuse=head != CAUSAL)

# --- ColBERT and SPLADE ---


def colbert_head(state: State) -> State:
    """Put the projection of tokens beside the encoder."""
    encoder = {"bert." + name: weight for name, weight in state.items()}
    return encoder | {"linear.weight": torch.randn(96, H)}


PYLATE_MAIN = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "MaxSim",
    "query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 32, "document_length": 300,
    "attend_to_expansion_tokens": False}
family("answerai-colbert", "answerdotai/answerai-colbert-small-v1",
    BERT.but(says={"architectures": ["HF_ColBERT"]}), tensors(colbert_head), kind="refuse")
family("gte-moderncolbert", "lightonai/GTE-ModernColBERT-v1", MODERN,
    write("modules.json", listed(PLAIN[0], ("1_Dense", PYLATE))),
    dense("1_Dense", H, 32, bias=False), write(MAIN, PYLATE_MAIN),
    write("sentence_bert_config.json", {"max_seq_length": 299, "do_lower_case": False}),
    kind="refuse")
SPARSE = "sentence_transformers.sparse_encoder.models."
SPARSE_MODULES = listed(("", SPARSE + "MLMTransformer"),
    ("1_SpladePooling", SPARSE + "SpladePooling"))
SPARSE_MAIN = {"model_type": "SparseEncoder", "prompts": {"query": "", "document": ""},
    "default_prompt_name": None, "similarity_fn_name": "dot"}


def splade(strategy: str = "max", activation: str = "relu") -> tuple[Step, ...]:
    """Return the steps that write a sparse model's modules."""
    pooling = {"pooling_strategy": strategy, "activation_function": activation}
    return (
        write("modules.json", SPARSE_MODULES),
        write("1_SpladePooling/config.json", {**pooling, "word_embedding_dimension": None}),
        write("sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False}),
        write(MAIN, SPARSE_MAIN),
    )


sparse = partial(family, kind="sparse")
MLM, DISTIL_MLM = BERT.but(LM), DISTIL.but(LM)
OPENSEARCH = "opensearch-project/opensearch-neural-sparse-encoding-doc-v2-distill"
sparse("splade-v3", "naver/splade-v3", MLM, *splade())
sparse("splade-pp-en", "prithivida/Splade_PP_en_v1", MLM, *splade())
sparse("sparse-no-splade-name", "example/inference-free-sparse", MLM, *splade())
sparse("opensearch-doc-v2-distill", OPENSEARCH, DISTIL_MLM, *splade())
sparse("splade-distil", "naver/splade-v3-distilbert", DISTIL_MLM, *splade())
sparse("splade-sum-log1p", "example/splade-sum-log1p", MLM, *splade("sum", "log1p_relu"))
example("splade-roberta", ROBERTA.but(LM, layer_norm_eps=1e-12), *splade(), kind="refuse")
for act in ("relu", "silu"):
    tiny = encoder("Bert", LM, hidden_act=act).but(says=SAYS)
    sparse(f"value-splade-{act}", f"example/value-splade-{act}", tiny, *splade())
    tiny = DISTIL.but(LM, tok=toks.bert(), activation=act, initializer_range=0.02)
    sparse(f"value-splade-distil-{act}", f"example/value-splade-distil-{act}", tiny, *splade())

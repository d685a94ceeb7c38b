"""Files as the authors' own code has them, which transformers' own classes lay out otherwise.

A row writes what transformers reads, keeps a copy of it for the reference (`keep_native`), and then
rewrites its files as the repository has them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from tests.acceptance import tokenizers_ as toks
from tests.acceptance.nets import BERT, GTE, GTE_EN, NOMIC, XLMR, rope
from tests.acceptance.rows import nomic_moe
from tests.acceptance.steps import H, dump, keep_native, patch, renamed, st, stand_in, tensors
from tests.acceptance.table import TRUST, ask, example, family, like, overriding, reranker

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.steps import State, Step

# A row is a line or two: a table, and not code.
# fmt: off

ONE = "ForSequenceClassification"


# --- GTE: Alibaba-NLP/new-impl ---

NEW_CODE = "Alibaba-NLP/new-impl--"
NEW_KEYS = {"attention_probs_dropout_prob": 0.0,
    "auto_map": {"AutoConfig": "configuration.NewConfig"}, "classifier_dropout": None,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": H, "initializer_range": 0.02,
    "intermediate_size": 128, "layer_norm_eps": 1e-12, "layer_norm_type": "layer_norm",
    "logn_attention_clip1": False, "logn_attention_scale": False, "max_position_embeddings": 8192,
    "model_type": "new", "num_attention_heads": 2, "num_hidden_layers": 2, "pack_qkv": True,
    "position_embedding_type": "rope", "rope_scaling": None, "rope_theta": 160000,
    "torch_dtype": "float32", "unpad_inputs": False, "use_memory_efficient_attention": False}


def new_impl(arch: str = "NewModel", **says: Any) -> Step:
    """Give GTE's files the keys and the names of its authors' code."""

    def name(weight: str) -> str:
        return weight if arch.endswith("Model") else weight.replace("gte.", "new.", 1)

    def make(path: Path) -> None:
        keep_native(path)
        found = json.loads((path / "config.json").read_text())
        same = {key: found[key] for key in ("pad_token_id", "type_vocab_size", "vocab_size")}
        dump(path / "config.json", {"architectures": [arch], **NEW_KEYS, **same, **says})
        renamed(name)(path)
        stand_in("new", "configuration.py")(path)

    return make


GTE_ST = st("cls_token", max_len=8192)
GTE_EN_ST = st("cls_token", normalize=False, max_len=8192)
NEW = (*TRUST, *overriding('{"architectures": ["GteNewModel"]}'))
GTE_LARGE = "Alibaba-NLP/gte-large-en-v1.5"
MULTILINGUAL = "Alibaba-NLP/gte-multilingual-base"
family("gte-large-en", GTE_LARGE, GTE_EN.but(type_vocab_size=2), new_impl(), GTE_EN_ST)
like("gte-large-en-trust", "gte-large-en", args=TRUST)
like("gte-large-en-override", "gte-large-en", args=NEW)
family("gte-base-en-override", "Alibaba-NLP/gte-base-en-v1.5", GTE_EN.but(type_vocab_size=0),
    new_impl(), GTE_EN_ST, args=NEW)
family("gte-multilingual-override", MULTILINGUAL, GTE, new_impl(), GTE_ST, args=NEW)
family("gte-multilingual-native", "alibaba-nlp-community/gte-multilingual-base", GTE, GTE_ST)
like("gte-multilingual-native-override", "gte-multilingual-native",
    args=overriding('{"position_embedding_type": "rope"}'))
OWN_CODE = {"AutoConfig": NEW_CODE + "configuration.NewConfig",
    "AutoModel": NEW_CODE + "modeling.NewModel"}
# With a head that weighs tokens, which only its own code reads.
family("head-gte-multilingual", MULTILINGUAL, GTE.but("ForTokenClassification"),
    new_impl("NewForTokenClassification", auto_map=OWN_CODE), GTE_ST)
ARCTIC = "configuration_hf_alibaba_nlp_gte.GteConfig", "modeling_hf_alibaba_nlp_gte.GteModel"
family("arctic-m-v2", "Snowflake/snowflake-arctic-embed-m-v2.0", GTE,
    new_impl("GteModel", model_type="gte",
        auto_map=dict(zip(("AutoConfig", "AutoModel"), ARCTIC, strict=True)),
        matryoshka_dimensions=[32]), st("cls_token", max_len=8192, prompts={"query": "query: "}),
    card=ask("query: "))
reranker("gte-multilingual-reranker", "Alibaba-NLP/gte-multilingual-reranker-base", GTE.but(ONE),
    new_impl(f"New{ONE}", id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}))

# --- nomic-embed-text: nomic-bert-2048 ---

NOMIC_CARD = ask("search_query: ", "search_document: ")
NOMIC_CODE = "nomic-ai/nomic-bert-2048--"
# The rest of the real config.json.
NOMIC_REST = {"attn_pdrop": 0.0,
    "auto_map": {"AutoConfig": NOMIC_CODE + "configuration_hf_nomic_bert.NomicBertConfig",
        "AutoModel": NOMIC_CODE + "modeling_hf_nomic_bert.NomicBertModel",
        "AutoModelForMaskedLM": NOMIC_CODE + "modeling_hf_nomic_bert.NomicBertForPreTraining"},
    "bos_token_id": None, "causal": False, "dense_seq_output": True, "embd_pdrop": 0.0,
    "eos_token_id": None, "fused_bias_fc": True, "fused_dropout_add_ln": True,
    "initializer_range": 0.02, "pad_vocab_size_multiple": 64, "parallel_block": False,
    "parallel_block_tied_norm": False, "prenorm": False, "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.0, "rotary_scaling_factor": None, "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True, "summary_activation": None, "summary_first_dropout": 0.0,
    "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True,
    "torch_dtype": "float32", "use_cache": True, "use_flash_attn": True, "use_rms_norm": False,
    "use_xentropy": True}


def nomic_bert(positions: int, **rest: Any) -> Step:
    """Give the configuration the authors' keys; the weights have the same names."""

    def make(path: Path) -> None:
        keep_native(path)
        found = json.loads((path / "config.json").read_text())
        own = {
            "activation_function": "swiglu",
            "architectures": ["NomicBertModel"],
            "layer_norm_epsilon": 1e-12,
            "max_trained_positions": 2048,
            "mlp_fc1_bias": False,
            "mlp_fc2_bias": False,
            "model_type": "nomic_bert",
            "n_embd": found["hidden_size"],
            "n_head": found["num_attention_heads"],
            "n_inner": found["intermediate_size"],
            "n_layer": found["num_hidden_layers"],
            "n_positions": positions,
            "qkv_proj_bias": False,
            "rotary_emb_base": int(found["rope_parameters"]["rope_theta"]),
            "rotary_emb_fraction": 1.0,
            "rotary_emb_interleaved": False,
            "rotary_emb_scale_base": None,
            "type_vocab_size": 2,
            "vocab_size": found["vocab_size"],
        }
        dump(path / "config.json", own | rest)

    return make


# At the real width: transformers' own NomicBertConfig does not read n_embd and n_head, and its
# defaults are these.
WIDE = NOMIC.but(hidden_size=768, num_attention_heads=12)
NOMIC_LOCAL = {"AutoConfig": "configuration_hf_nomic_bert.NomicBertConfig"}
NOMIC_TRUST = (patch("config.json", auto_map=NOMIC_LOCAL),
    stand_in("nomic", "configuration_hf_nomic_bert.py"))
family("nomic-v1.5", "nomic-ai/nomic-embed-text-v1.5", WIDE, nomic_bert(8192, **NOMIC_REST),
    st(normalize=False, max_len=8192, dim=768), card=NOMIC_CARD)
like("nomic-v1.5-trust", "nomic-v1.5", *NOMIC_TRUST, args=TRUST, layer_norm=[256])
family("nomic-native", "someone/nomic-embed-text-v1.5-native", WIDE,
    st(normalize=False, max_len=2048, dim=768), card=NOMIC_CARD)
# Another width and another base than transformers' defaults.
family("nomic-narrow", "someone/nomic-narrow",
    NOMIC.but(tok=toks.bert(max_length=2048), **rope(20000.0)), nomic_bert(2048),
    st(max_len=2048), card=NOMIC_CARD)
family("nomic-v2-moe", "nomic-ai/nomic-embed-text-v2-moe", nomic_moe.make,
    st(dim=nomic_moe.WIDTH, prompts=nomic_moe.PROMPTS), kind="nomic-moe", may_refuse=True)
like("nomic-v2-moe-trust", "nomic-v2-moe", *NOMIC_TRUST, args=TRUST)

# --- jina-reranker-v2 ---

# How jina-reranker-v2's code calls what XLM-RoBERTa has.
FLASH_NAMES = (("embeddings.LayerNorm", "emb_ln"), ("encoder.layer.", "encoder.layers."),
    ("attention.output.dense", "mixer.out_proj"), ("attention.output.LayerNorm", "norm1"),
    ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2"), ("output.LayerNorm", "norm2"))


def flash_name(name: str) -> str:
    """Return what a weight is called."""
    for old, new in FLASH_NAMES:
        name = name.replace(old, new)
    return name


def flash_names(state: State) -> State:
    """Rename all weights, queries, keys and values in one."""
    out: State = {}
    for layer in range(2):
        for kind in ("weight", "bias"):
            attention = f"roberta.encoder.layer.{layer}.attention.self."
            three = [state.pop(f"{attention}{p}.{kind}") for p in ("query", "key", "value")]
            out[f"roberta.encoder.layers.{layer}.mixer.Wqkv.{kind}"] = torch.cat(three)
    return out | {flash_name(name): weight for name, weight in state.items()}


FLASH_CODE = {"AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig",
    f"AutoModel{ONE}": f"modeling_xlm_roberta.XLMRoberta{ONE}"}
reranker("jina-reranker-v2", "jinaai/jina-reranker-v2-base-multilingual",
    XLMR.but(ONE, tok=toks.xlmr(1024), max_position_embeddings=1026, num_labels=1), keep_native,
    tensors(flash_names),
    patch("config.json", auto_map=FLASH_CODE, use_flash_attn=True, num_loras=1),
    stand_in("jina_reranker", "configuration_xlm_roberta.py"))
like("jina-reranker-v2-trust", "jina-reranker-v2", args=TRUST)

# --- other folders ---


def in_folder(path: Path) -> None:
    """Move the transformer's settings to where it lies, as old versions have it."""
    found = json.loads((path / "modules.json").read_text())
    dump(path / "modules.json", [found[0] | {"path": "0_Transformer"}, *found[1:]])
    name = "sentence_bert_config.json"
    (path / name).rename(path / "0_Transformer" / name)


example("transformer-in-subfolder", lambda path: BERT(path / "0_Transformer"), st(), in_folder)

"""Make a tiny random-weight checkpoint of every family in `FAMILIES`, and what the reference computes from it.

    python -m tests.acceptance build OUT [NAME ...]

Every folder has the files of the real repository (named in `hub`): config.json with the same keys, tokenizer, weights
with the same names, modules.json and what it names. `OUT/NAME/` is the checkpoint, `OUT/NAME.reference.json` its cases.
"""

from __future__ import annotations

import json
import shutil
import traceback
from typing import TYPE_CHECKING

import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from tests.acceptance import reference
from tests.acceptance import tokenizers_ as toks

if TYPE_CHECKING:
    from pathlib import Path

tf.utils.logging.set_verbosity_error()
tf.utils.logging.disable_progress_bar()
FAMILIES: dict[str, tuple] = {}
H = 64
ENC = dict(
    hidden_size=H,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=128,
    initializer_range=0.2,
)
DEC = dict(
    hidden_size=H,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=128,
    initializer_range=0.2,
)
ST = "sentence_transformers.models."
WEB = "Given a web search query, retrieve relevant passages that answer the query"


def family(name, hub, kind="embed", **more):
    def keep(make):
        FAMILIES[name] = (make, hub, kind, more)
        return make

    return keep


def dump(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False))


def weights(path: Path, model, *, config=None, drop=(), rename=None, dtype=None, raw=None) -> None:
    """Save a model with random norms and biases; `config` patches config.json (None deletes a key)."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(std=0.1)
            elif p.dim() == 1:
                p.uniform_(0.5, 1.5)
    model = model.eval()
    if dtype:
        model = model.to(dtype)
    model.save_pretrained(path)
    file = path / "model.safetensors"
    if rename or raw:
        state = raw(model) if raw else load_file(file)
        state = {
            new: t.contiguous()
            for old, t in state.items()
            if (new := rename(old) if rename else old)
        }
        save_file(state, str(file), {"format": "pt"})
    data = json.loads((path / "config.json").read_text())
    for key in drop:
        data.pop(key, None)
    for key, value in (config or {}).items():
        data[key] = value
    dump(path / "config.json", data)


def st(
    path: Path,
    pooling: str | dict = "mean_tokens",
    *,
    normalize=True,
    dense=(),
    prompts=None,
    default=None,
    max_len=512,
    lower=False,
    include_prompt=True,
    dim=H,
    more=(),
    config=None,
) -> None:
    """Write sentence-transformers' files as they are on the hub."""
    modules = [("", ST + "Transformer")]
    modules.append(("1_Pooling", ST + "Pooling"))
    modes = (
        "cls_token",
        "mean_tokens",
        "max_tokens",
        "mean_sqrt_len_tokens",
        "weightedmean_tokens",
        "lasttoken",
    )
    on = pooling if isinstance(pooling, (list, tuple)) else [pooling]
    dump(
        path / "1_Pooling/config.json",
        {
            "word_embedding_dimension": dim,
            **{f"pooling_mode_{m}": m in on for m in modes},
            "include_prompt": include_prompt,
        },
    )
    for n, (folder, inner, outer, bias, act) in enumerate(dense, 2):
        folder = folder or f"{n}_Dense"
        modules.append((folder, ST + "Dense"))
        dump(
            path / folder / "config.json",
            {"in_features": inner, "out_features": outer, "bias": bias, "activation_function": act},
        )
        state = {"linear.weight": torch.randn(outer, inner) * 0.3}
        if bias:
            state["linear.bias"] = torch.randn(outer) * 0.3
        save_file(state, str(path / folder / "model.safetensors"))
    modules += more
    if normalize:
        modules.append((f"{len(modules)}_Normalize", ST + "Normalize"))
    dump(
        path / "modules.json",
        [{"idx": i, "name": str(i), "path": f, "type": t} for i, (f, t) in enumerate(modules)],
    )
    dump(path / "sentence_bert_config.json", {"max_seq_length": max_len, "do_lower_case": lower})
    if prompts is not None or default or config:
        dump(
            path / "config_sentence_transformers.json",
            {
                "__version__": {
                    "sentence_transformers": "3.4.1",
                    "transformers": "4.48.0",
                    "pytorch": "2.5.1",
                },
                "prompts": prompts or {},
                "default_prompt_name": default,
                "similarity_fn_name": "cosine",
                **(config or {}),
            },
        )


def bert_tok(path, lower=True, max_length=512, cls="BertTokenizer", **more):
    tok, names = toks.wordpiece(lower)
    toks.save(
        path,
        tok,
        names=names,
        cls=cls,
        max_length=max_length,
        do_lower_case=lower,
        tokenize_chinese_chars=True,
        strip_accents=None,
        **more,
    )
    return tok


def xlmr_tok(path, max_length=512):
    tok, names = toks.unigram()
    toks.save(path, tok, names=names, cls="XLMRobertaTokenizer", max_length=max_length)
    return tok


def roberta_tok(path, max_length=512):
    tok = toks.byte_bpe(
        ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
    )
    names = dict(
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
    toks.save(
        path,
        tok,
        names=names,
        cls="RobertaTokenizer",
        max_length=max_length,
        add_prefix_space=False,
        trim_offsets=True,
    )
    return tok


def modernbert_tok(path, max_length=8192):
    tok = toks.byte_bpe(
        ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"],
        first=False,
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
    )
    names = dict(
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )
    toks.save(
        path,
        tok,
        names=names,
        max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )
    return tok


def qwen_tok(path, *, append: bool, cls="Qwen2Tokenizer", max_length=131072, **more):
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    single, pair = (
        ("$A <|endoftext|>", "$A <|endoftext|> $B <|endoftext|>") if append else (None, None)
    )
    tok = toks.byte_bpe(specials, first=False, single=single, pair=pair)
    toks.save(
        path,
        tok,
        names=dict(eos_token="<|endoftext|>", pad_token="<|endoftext|>"),
        cls=cls,
        max_length=max_length,
        padding_side="left",
        add_prefix_space=False,
        **more,
    )
    return tok


def yes_no(tok):
    tok.add_tokens(["Yes", "yes", "No", "no"])
    return tok


def bert_config(tok, cls=tf.BertConfig, **more):
    return cls(
        vocab_size=tok.get_vocab_size(),
        **{"max_position_embeddings": 512, "type_vocab_size": 2, **ENC, **more},
    )


BERT = {"position_embedding_type": "absolute", "torch_dtype": "float32"}


def bert(path, *, tok=None, arch="BertModel", config=None, **more):
    tok = tok or bert_tok(path)
    weights(
        path,
        tf.BertModel(bert_config(tok, **more)),
        config={**BERT, "architectures": [arch], **(config or {})},
        drop=["dtype"],
    )


def xlmr(path, *, positions=514, max_length=512, config=None, dtype=None):
    tok = xlmr_tok(path, max_length)
    c = tf.XLMRobertaConfig(
        vocab_size=tok.get_vocab_size(),
        max_position_embeddings=positions,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        **ENC,
    )
    weights(
        path,
        tf.XLMRobertaModel(c),
        config={**BERT, "architectures": ["XLMRobertaModel"], **(config or {})},
        drop=["dtype"],
        dtype=dtype,
    )
    return tok


def modernbert_config(tok, **more):
    ids = {
        k: tok.token_to_id(t)
        for k, t in dict(
            pad_token_id="[PAD]",
            bos_token_id="[CLS]",
            eos_token_id="[SEP]",
            cls_token_id="[CLS]",
            sep_token_id="[SEP]",
        ).items()
    }
    return tf.ModernBertConfig(
        vocab_size=tok.get_vocab_size(),
        max_position_embeddings=8192,
        local_attention=16,
        **{**ENC, "num_hidden_layers": 4},
        **ids,
        **more,
    )


MODERN = {
    "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
    "global_attn_every_n_layers": 3,
    "position_embedding_type": "absolute",
    "layer_norm_eps": 1e-5,
}


def modern(path, config=None):
    tok = modernbert_tok(path)
    weights(
        path,
        tf.ModernBertModel(modernbert_config(tok)),
        config={**MODERN, "architectures": ["ModernBertModel"], **(config or {})},
        drop=["rope_parameters", "layer_types"],
    )


def qwen2(path, tok, *, arch="Qwen2ForCausalLM", config=None, prefix=""):
    c = tf.Qwen2Config(
        vocab_size=tok.get_vocab_size(),
        max_position_embeddings=8192,
        rope_theta=1e6,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        **{
            k: v
            for k, v in DEC.items()
            if k not in ("head_dim", "hidden_size", "num_attention_heads")
        },
        hidden_size=128,
        num_attention_heads=4,
    )
    weights(
        path,
        tf.Qwen2Model(c),
        config={"architectures": [arch], "rope_theta": 1e6, **(config or {})},
        drop=["rope_parameters", "layer_types"],
        rename=lambda n: prefix + n,
    )


# --- dense embeddings ---------------------------------------------------------------------------------------------------


@family(
    "qwen3-embedding",
    "Qwen/Qwen3-Embedding-0.6B",
    dims=[32],
    card={"query": f"Instruct: {WEB}\nQuery:", "document": ""},
)
def _(path):
    tok = qwen_tok(path, append=True)
    c = tf.Qwen3Config(
        vocab_size=tok.get_vocab_size(),
        max_position_embeddings=32768,
        rope_theta=1e6,
        tie_word_embeddings=True,
        **DEC,
    )
    weights(
        path,
        tf.Qwen3Model(c),
        config={"architectures": ["Qwen3ForCausalLM"], "rope_theta": 1000000, "rope_scaling": None},
        drop=["rope_parameters", "layer_types"],
    )
    st(path, "lasttoken", prompts={"query": f"Instruct: {WEB}\nQuery:", "document": ""})
    (path / "sentence_bert_config.json").unlink()


@family(
    "qwen3-embedding-bf16", "Qwen/Qwen3-Embedding-4B", args=["--dtype", "bfloat16"], tolerance=0.999
)
def _(path):
    tok = qwen_tok(path, append=True)
    c = tf.Qwen3Config(
        vocab_size=tok.get_vocab_size(),
        max_position_embeddings=32768,
        rope_theta=1e6,
        tie_word_embeddings=True,
        **DEC,
    )
    weights(
        path,
        tf.Qwen3Model(c),
        dtype=torch.bfloat16,
        config={
            "architectures": ["Qwen3ForCausalLM"],
            "rope_theta": 1000000,
            "torch_dtype": "bfloat16",
        },
        drop=["rope_parameters", "layer_types", "dtype"],
    )
    st(path, "lasttoken", prompts={"query": f"Instruct: {WEB}\nQuery:", "document": ""})


@family("bge-m3", "BAAI/bge-m3")
def _(path):
    xlmr(path, positions=8194, max_length=8192)
    torch.save(torch.nn.Linear(H, 1).state_dict(), path / "sparse_linear.pt")
    torch.save(torch.nn.Linear(H, H).state_dict(), path / "colbert_linear.pt")
    st(path, "cls_token", max_len=8192)


@family(
    "bge-small-en",
    "BAAI/bge-small-en-v1.5",
    card={"query": "Represent this sentence for searching relevant passages: ", "document": ""},
)
def _(path):
    bert(path)
    st(path, "cls_token", lower=True)


@family(
    "bge-small-zh",
    "BAAI/bge-small-zh-v1.5",
    card={"query": "为这个句子生成表示以用于检索相关文章：", "document": ""},
)
def _(path):
    bert(path)
    st(path, "cls_token", lower=True)


@family(
    "bge-multilingual-gemma2",
    "BAAI/bge-multilingual-gemma2",
    attention="eager",
    card={"query": f"<instruct>{WEB}.\n<query>", "document": ""},
)
def _(path):
    tok = toks.piece_bpe(
        style="gemma", eos=True, specials=("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    )
    toks.save(
        path,
        tok,
        names=dict(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"),
        cls="GemmaTokenizer",
        max_length=8192,
        add_bos_token=True,
        add_eos_token=True,
    )
    c = tf.Gemma2Config(
        vocab_size=tok.get_vocab_size(),
        max_position_embeddings=8192,
        query_pre_attn_scalar=32,
        sliding_window=4096,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        **DEC,
    )
    weights(
        path,
        tf.Gemma2Model(c),
        config={"architectures": ["Gemma2Model"], "rope_theta": 10000.0},
        drop=["rope_parameters", "layer_types"],
    )
    st(path, "lasttoken", max_len=8192, prompts={"web_search_query": f"<instruct>{WEB}.\n<query>"})


@family("e5-base", "intfloat/e5-base-v2", card={"query": "query: ", "document": "passage: "})
def _(path):
    bert(path)
    st(path, "mean_tokens")


@family(
    "multilingual-e5-large",
    "intfloat/multilingual-e5-large",
    card={"query": "query: ", "document": "passage: "},
)
def _(path):
    xlmr(path)
    st(path, "mean_tokens")


@family(
    "e5-mistral",
    "intfloat/e5-mistral-7b-instruct",
    card={"query": f"Instruct: {WEB}\nQuery: ", "document": ""},
)
def _(path):
    tok = toks.piece_bpe(style="llama", eos=True)
    toks.save(
        path,
        tok,
        names=dict(bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"),
        cls="LlamaTokenizer",
        max_length=1000000000000000019884624838656,
        add_bos_token=True,
        add_eos_token=True,
        padding_side="left",
        legacy=True,
        use_default_system_prompt=False,
    )
    c = tf.MistralConfig(
        vocab_size=tok.get_vocab_size(),
        max_position_embeddings=32768,
        sliding_window=4096,
        bos_token_id=1,
        eos_token_id=2,
        **DEC,
    )
    weights(
        path,
        tf.MistralModel(c),
        config={"architectures": ["MistralModel"], "rope_theta": 10000.0},
        drop=["rope_parameters"],
    )
    st(
        path,
        "lasttoken",
        max_len=4096,
        prompts={
            "web_search_query": f"Instruct: {WEB}\nQuery: ",
            "sts_query": "Instruct: Retrieve semantically similar text\nQuery: ",
        },
    )


def new_impl(
    path, *, types=1, tok="bert", config=None, arch="NewModel", model=None, max_length=8192
):
    """Alibaba-NLP/new-impl: the weights' names and config keys of the remote code, from transformers' own `gte`."""
    t = bert_tok(path, max_length=max_length) if tok == "bert" else xlmr_tok(path, max_length)
    c = tf.GteConfig(
        vocab_size=t.get_vocab_size(),
        type_vocab_size=types,
        pad_token_id=0 if tok == "bert" else 1,
        rope_parameters={"rope_type": "default", "rope_theta": 160000},
        num_labels=1,
        **ENC,
    )
    m = (model or tf.GteModel)(c)
    weights(path, m)
    plain = path.with_name(path.name + ".native")
    shutil.rmtree(plain, ignore_errors=True)
    shutil.copytree(path, plain)
    data = {
        "architectures": [arch],
        "attention_probs_dropout_prob": 0.0,
        "auto_map": {"AutoConfig": "configuration.NewConfig"},
        "classifier_dropout": None,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": H,
        "initializer_range": 0.02,
        "intermediate_size": 128,
        "layer_norm_eps": 1e-12,
        "layer_norm_type": "layer_norm",
        "logn_attention_clip1": False,
        "logn_attention_scale": False,
        "max_position_embeddings": 8192,
        "model_type": "new",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "pack_qkv": True,
        "pad_token_id": c.pad_token_id,
        "position_embedding_type": "rope",
        "rope_scaling": None,
        "rope_theta": 160000,
        "torch_dtype": "float32",
        "type_vocab_size": types,
        "unpad_inputs": False,
        "use_memory_efficient_attention": False,
        "vocab_size": c.vocab_size,
        **(config or {}),
    }
    dump(path / "config.json", data)
    (path / "configuration.py").write_text(
        "# In place of the repository's own: the same class name and keys.\n"
        "from transformers import PretrainedConfig\n\n\nclass NewConfig(PretrainedConfig):\n    model_type = 'new'\n"
    )
    return plain


NEW = [
    "--trust-remote-code",
    "true",
    "--engine-args",
    '{"hf_overrides": {"architectures": ["GteNewModel"]}}',
]


@family("gte-large-en", "Alibaba-NLP/gte-large-en-v1.5", native=True)
def _(path):
    plain = new_impl(path, types=2)
    for p in (path, plain):
        st(p, "cls_token", normalize=False, max_len=8192)


@family(
    "gte-large-en-trust",
    "Alibaba-NLP/gte-large-en-v1.5",
    native=True,
    args=["--trust-remote-code", "true"],
)
def _(path):
    FAMILIES["gte-large-en"][0](path)


@family("gte-large-en-override", "Alibaba-NLP/gte-large-en-v1.5", native=True, args=NEW)
def _(path):
    FAMILIES["gte-large-en"][0](path)


@family("gte-base-en-override", "Alibaba-NLP/gte-base-en-v1.5", native=True, args=NEW)
def _(path):
    plain = new_impl(path, types=0)
    for p in (path, plain):
        st(p, "cls_token", normalize=False, max_len=8192)


@family("gte-multilingual-override", "Alibaba-NLP/gte-multilingual-base", native=True, args=NEW)
def _(path):
    plain = new_impl(path, types=1, tok="xlmr")
    for p in (path, plain):
        st(p, "cls_token", max_len=8192)


@family("gte-multilingual-native", "alibaba-nlp-community/gte-multilingual-base")
def _(path):
    plain = new_impl(path, types=1, tok="xlmr")
    st(plain, "cls_token", max_len=8192)
    shutil.rmtree(path)
    plain.rename(path)


@family(
    "gte-multilingual-native-override",
    "alibaba-nlp-community/gte-multilingual-base",
    args=["--engine-args", '{"hf_overrides": {"position_embedding_type": "rope"}}'],
)
def _(path):
    FAMILIES["gte-multilingual-native"][0](path)


@family(
    "arctic-m-v2",
    "Snowflake/snowflake-arctic-embed-m-v2.0",
    native=True,
    card={"query": "query: ", "document": ""},
)
def _(path):
    auto = {
        "AutoConfig": "configuration_hf_alibaba_nlp_gte.GteConfig",
        "AutoModel": "modeling_hf_alibaba_nlp_gte.GteModel",
    }
    plain = new_impl(
        path,
        types=1,
        tok="xlmr",
        arch="GteModel",
        config={"model_type": "gte", "auto_map": auto, "matryoshka_dimensions": [32]},
    )
    for p in (path, plain):
        st(p, "cls_token", max_len=8192, prompts={"query": "query: "})


@family(
    "arctic-m-v1.5",
    "Snowflake/snowflake-arctic-embed-m-v1.5",
    card={"query": "Represent this sentence for searching relevant passages: ", "document": ""},
)
def _(path):
    bert(path)
    st(
        path,
        "cls_token",
        prompts={"query": "Represent this sentence for searching relevant passages: "},
    )


@family("gte-base", "thenlper/gte-base")
def _(path):
    bert(path)
    st(path, "mean_tokens")


@family(
    "gte-qwen2",
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct",
    card={"query": f"Instruct: {WEB}\nQuery: ", "document": ""},
    bidirectional=True,
)
def _(path):
    tok = qwen_tok(
        path,
        append=True,
        cls="Qwen2Tokenizer",
        max_length=32768,
        add_eos_token=True,
        auto_map={
            "AutoTokenizer": [
                "tokenization_qwen.Qwen2Tokenizer",
                "tokenization_qwen.Qwen2TokenizerFast",
            ]
        },
    )
    auto = {
        "AutoModel": "modeling_qwen.Qwen2Model",
        "AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM",
        "AutoModelForSequenceClassification": "modeling_qwen.Qwen2ForSequenceClassification",
    }
    qwen2(
        path,
        tok,
        config={
            "auto_map": auto,
            "is_causal": False,
            "sliding_window": 131072,
            "use_sliding_window": False,
        },
        prefix="model.",
    )
    st(path, "lasttoken", dim=128, max_len=8192, prompts={"query": f"Instruct: {WEB}\nQuery: "})


@family(
    "stella-1.5b",
    "NovaSearch/stella_en_1.5B_v5",
    bidirectional=True,
    card={"query": f"Instruct: {WEB}.\nQuery: ", "document": ""},
)
def _(path):
    tok = qwen_tok(
        path,
        append=True,
        cls="Qwen2Tokenizer",
        add_eos_token=True,
        auto_map={
            "AutoTokenizer": [
                "tokenization_qwen.Qwen2Tokenizer",
                "tokenization_qwen.Qwen2TokenizerFast",
            ]
        },
    )
    auto = {
        "AutoModel": "modeling_qwen.Qwen2Model",
        "AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM",
        "AutoModelForSequenceClassification": "modeling_qwen.Qwen2ForSequenceClassification",
    }
    qwen2(
        path,
        tok,
        config={"auto_map": auto, "sliding_window": 131072, "use_sliding_window": False},
        prefix="model.",
    )
    st(
        path,
        "mean_tokens",
        dim=128,
        normalize=False,
        max_len=512,
        dense=[("2_Dense", 128, 96, True, "torch.nn.modules.linear.Identity")],
        prompts={
            "s2p_query": f"Instruct: {WEB}.\nQuery: ",
            "s2s_query": "Instruct: Retrieve semantically similar text.\nQuery: ",
        },
    )


@family(
    "stella-1.5b-override",
    "NovaSearch/stella_en_1.5B_v5",
    bidirectional=True,
    args=["--engine-args", '{"hf_overrides": {"is_causal": false}}'],
    card={"query": f"Instruct: {WEB}.\nQuery: ", "document": ""},
)
def _(path):
    FAMILIES["stella-1.5b"][0](path)


@family("gte-modernbert", "Alibaba-NLP/gte-modernbert-base")
def _(path):
    modern(path)
    st(path, "cls_token", normalize=False, max_len=8192)


@family("granite-r2", "ibm-granite/granite-embedding-english-r2")
def _(path):
    modern(path)
    st(path, "cls_token", max_len=8192)


@family("granite-125m", "ibm-granite/granite-embedding-125m-english")
def _(path):
    roberta(path)
    st(path, "cls_token")


def roberta(path, arch="RobertaModel"):
    tok = roberta_tok(path)
    c = tf.RobertaConfig(
        vocab_size=tok.get_vocab_size(),
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        **ENC,
    )
    weights(path, tf.RobertaModel(c), config={**BERT, "architectures": [arch]}, drop=["dtype"])


@family(
    "ru-en-rosberta",
    "ai-forever/ru-en-RoSBERTa",
    card={"query": "search_query: ", "document": "search_document: "},
)
def _(path):
    roberta(path)
    st(
        path,
        "cls_token",
        prompts={
            "classification": "classification: ",
            "clustering": "clustering: ",
            "search_query": "search_query: ",
            "search_document": "search_document: ",
        },
    )


@family("all-distilroberta", "sentence-transformers/all-distilroberta-v1")
def _(path):
    roberta(path, "RobertaForMaskedLM")
    st(path, "mean_tokens")


def nomic(path):
    """At the real width: transformers' own NomicBertConfig does not read n_embd and n_head, and its defaults are these."""
    tok = bert_tok(path, max_length=8192)
    ENC = {**globals()["ENC"], "hidden_size": 768, "num_attention_heads": 12}
    H = 768
    c = tf.NomicBertConfig(
        vocab_size=tok.get_vocab_size(),
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        **ENC,
    )
    weights(path, tf.NomicBertModel(c))
    plain = path.with_name(path.name + ".native")
    shutil.rmtree(plain, ignore_errors=True)
    shutil.copytree(path, plain)
    hub = {
        "activation_function": "swiglu",
        "architectures": ["NomicBertModel"],
        "attn_pdrop": 0.0,
        "auto_map": {
            "AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig",
            "AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel",
            "AutoModelForMaskedLM": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertForPreTraining",
        },
        "bos_token_id": None,
        "causal": False,
        "dense_seq_output": True,
        "embd_pdrop": 0.0,
        "eos_token_id": None,
        "fused_bias_fc": True,
        "fused_dropout_add_ln": True,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-12,
        "max_trained_positions": 2048,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "model_type": "nomic_bert",
        "n_embd": H,
        "n_head": 12,
        "n_inner": 128,
        "n_layer": 2,
        "n_positions": 8192,
        "pad_vocab_size_multiple": 64,
        "parallel_block": False,
        "parallel_block_tied_norm": False,
        "prenorm": False,
        "qkv_proj_bias": False,
        "reorder_and_upcast_attn": False,
        "resid_pdrop": 0.0,
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": None,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
        "summary_activation": None,
        "summary_first_dropout": 0.0,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "torch_dtype": "float32",
        "type_vocab_size": 2,
        "use_cache": True,
        "use_flash_attn": True,
        "use_rms_norm": False,
        "use_xentropy": True,
        "vocab_size": c.vocab_size,
    }
    dump(path / "config.json", hub)
    return plain


@family(
    "nomic-v1.5",
    "nomic-ai/nomic-embed-text-v1.5",
    native=True,
    card={"query": "search_query: ", "document": "search_document: "},
)
def _(path):
    plain = nomic(path)
    for p in (path, plain):
        st(p, "mean_tokens", normalize=False, max_len=8192, dim=768)


def nomic_moe(path):
    tok = xlmr_tok(path)
    n, inner, experts, layers = 768, 128, 4, 2
    r = lambda *shape: torch.randn(*shape) * 0.05  # noqa: E731
    w = {
        "embeddings.word_embeddings.weight": torch.randn(tok.get_vocab_size(), n) * 0.2,
        "embeddings.token_type_embeddings.weight": r(1, n),
        "emb_ln.weight": torch.rand(n) + 0.5,
        "emb_ln.bias": r(n),
    }
    for i in range(layers):
        p = f"encoder.layers.{i}."
        w |= {
            p + "attn.Wqkv.weight": r(3 * n, n),
            p + "attn.Wqkv.bias": r(3 * n),
            p + "attn.out_proj.weight": r(n, n),
            p + "attn.out_proj.bias": r(n),
        }
        for norm in ("norm1", "norm2"):
            w |= {f"{p}{norm}.weight": torch.rand(n) + 0.5, f"{p}{norm}.bias": r(n)}
        if i % 2 == 1:
            w |= {
                p + "mlp.router.layer.weight": r(experts, n),
                p + "mlp.experts.mlp.w1": r(experts * inner, n),
                p + "mlp.experts.mlp.w2": r(experts * inner, n),
                p + "mlp.experts.bias": r(n),
            }
        else:
            w |= {
                p + "mlp.fc1.weight": r(inner, n),
                p + "mlp.fc1.bias": r(inner),
                p + "mlp.fc2.weight": r(n, inner),
                p + "mlp.fc2.bias": r(n),
            }
    save_file(w, str(path / "model.safetensors"), {"format": "pt"})
    dump(
        path / "config.json",
        {
            "activation_function": "gelu",
            "architectures": ["NomicBertModel"],
            "attn_pdrop": 0.0,
            "bos_token_id": None,
            "causal": False,
            "dense_seq_output": True,
            "embd_pdrop": 0.1,
            "eos_token_id": None,
            "expert_choice_router": False,
            "ffn_div": 1,
            "fused_bias_fc": True,
            "fused_dropout_add_ln": True,
            "auto_map": {
                "AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig",
                "AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel",
            },
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-5,
            "max_trained_positions": 2048,
            "mlp_fc1_bias": True,
            "mlp_fc2_bias": True,
            "model_type": "nomic_bert",
            "moe_every_n_layers": 2,
            "moe_impl": "megablocks",
            "moe_normalize_expert_weights": False,
            "moe_resid_pdrop": 0.0,
            "moe_top_k": 2,
            "n_embd": n,
            "n_head": 12,
            "n_inner": inner,
            "n_layer": layers,
            "n_positions": 2048,
            "num_experts": experts,
            "num_shared_experts": 0,
            "pad_token_id": 1,
            "pad_vocab_size_multiple": 64,
            "parallel_block": False,
            "prenorm": False,
            "qkv_proj_bias": True,
            "resid_pdrop": 0.0,
            "rotary_emb_base": 10000,
            "rotary_emb_fraction": 1.0,
            "rotary_emb_interleaved": False,
            "rotary_emb_scale_base": None,
            "rotary_scaling_factor": None,
            "router_aux_loss_coef": 0.1,
            "scale_attn_weights": True,
            "torch_dtype": "float32",
            "type_vocab_size": 1,
            "use_flash_attn": True,
            "use_rms_norm": None,
            "vocab_size": tok.get_vocab_size(),
        },
    )
    st(
        path,
        "mean_tokens",
        max_len=512,
        dim=n,
        prompts={
            "query": "search_query: ",
            "passage": "search_document: ",
            "Classification": "classification: ",
        },
    )


@family("nomic-v2-moe", "nomic-ai/nomic-embed-text-v2-moe", kind="nomic-moe", may_refuse=True)
def _(path):
    nomic_moe(path)


@family(
    "nomic-v2-moe-trust",
    "nomic-ai/nomic-embed-text-v2-moe",
    kind="nomic-moe",
    args=["--trust-remote-code", "true"],
    may_refuse=True,
)
def _(path):
    nomic_moe(path)
    FAMILIES["nomic-v1.5-trust"][0](path.with_name("nomic-config"))
    shutil.copy(path.with_name("nomic-config") / "configuration_hf_nomic_bert.py", path)
    for rest in ("nomic-config", "nomic-config.native"):
        shutil.rmtree(path.with_name(rest))
    data = json.loads((path / "config.json").read_text())
    dump(
        path / "config.json",
        data | {"auto_map": {"AutoConfig": "configuration_hf_nomic_bert.NomicBertConfig"}},
    )


@family(
    "mxbai-large",
    "mixedbread-ai/mxbai-embed-large-v1",
    card={"query": "Represent this sentence for searching relevant passages: ", "document": ""},
)
def _(path):
    bert(path)
    st(
        path,
        "cls_token",
        normalize=False,
        prompts={
            "query": "Represent this sentence for searching relevant passages: ",
            "passage": "",
        },
    )


@family("all-mpnet", "sentence-transformers/all-mpnet-base-v2", may_refuse=True)
def _(path):
    tok, names = toks.wordpiece(
        True, marks=("<s>", "</s>"), unk="[UNK]", pad="<pad>", mask="<mask>"
    )
    names |= dict(bos_token="<s>", eos_token="</s>")
    toks.save(path, tok, names=names, cls="MPNetTokenizer", max_length=512, do_lower_case=True)
    c = tf.MPNetConfig(
        vocab_size=tok.get_vocab_size(),
        max_position_embeddings=514,
        layer_norm_eps=1e-5,
        pad_token_id=0,
        **ENC,
    )
    weights(path, tf.MPNetModel(c), config={"architectures": ["MPNetForMaskedLM"]})
    st(path, "mean_tokens", max_len=384)


@family("multi-qa-distilbert", "sentence-transformers/multi-qa-distilbert-cos-v1")
def _(path):
    distil(path, "DistilBertModel")
    st(path, "mean_tokens")


def distil(path, arch, model=None):
    tok = bert_tok(path, cls="DistilBertTokenizer")
    c = tf.DistilBertConfig(
        vocab_size=tok.get_vocab_size(),
        dim=H,
        n_layers=2,
        n_heads=2,
        hidden_dim=128,
        initializer_range=0.2,
    )
    weights(path, (model or tf.DistilBertModel)(c), config={"architectures": [arch]})


@family("all-minilm", "sentence-transformers/all-MiniLM-L12-v2")
def _(path):
    bert(path)
    st(path, "mean_tokens", max_len=128)


@family(
    "paraphrase-multilingual-minilm", "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
)
def _(path):
    tok = xlmr_tok(path)
    bert(path, tok=tok)
    st(path, "mean_tokens", normalize=False, max_len=128)


GEMMA_PROMPTS = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "BitextMining": "task: search result | query: ",
    "Clustering": "task: clustering | query: ",
    "Classification": "task: classification | query: ",
    "InstructionRetrieval": "task: code retrieval | query: ",
    "Retrieval-query": "task: search result | query: ",
    "Retrieval-document": "title: none | text: ",
    "STS": "task: sentence similarity | query: ",
    "Summarization": "task: summarization | query: ",
}


@family(
    "embeddinggemma",
    "google/embeddinggemma-300m",
    card={"query": GEMMA_PROMPTS["query"], "document": GEMMA_PROMPTS["document"]},
    dims=[32],
)
def _(path):
    tok = toks.piece_bpe(
        style="gemma", eos=True, specials=("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    )
    toks.save(
        path,
        tok,
        names=dict(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"),
        cls="GemmaTokenizer",
        max_length=2048,
        add_bos_token=True,
        add_eos_token=True,
    )
    c = tf.Gemma3TextConfig(
        vocab_size=tok.get_vocab_size(),
        max_position_embeddings=2048,
        query_pre_attn_scalar=32,
        sliding_window=24,
        use_bidirectional_attention=True,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        **{**DEC, "num_hidden_layers": 3},
    )
    weights(
        path,
        tf.Gemma3TextModel(c),
        config={
            "architectures": ["Gemma3TextModel"],
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
            "sliding_window": c.sliding_window,
            "torch_dtype": "float32",
            "use_bidirectional_attention": True,
        },
        drop=["rope_parameters"],
    )
    st(
        path,
        "mean_tokens",
        max_len=2048,
        dense=[
            ("2_Dense", H, 256, False, "torch.nn.modules.linear.Identity"),
            ("3_Dense", 256, H, False, "torch.nn.modules.linear.Identity"),
        ],
        prompts=GEMMA_PROMPTS,
    )


def jina_v3(path):
    tok = xlmr_tok(path, 8194)
    c = tf.JinaEmbeddingsV3Config(
        vocab_size=tok.get_vocab_size(),
        rope_parameters={"rope_type": "default", "rope_theta": 20000.0},
        **ENC,
    )
    weights(path, tf.JinaEmbeddingsV3Model(c))
    plain = path.with_name(path.name + ".native")
    shutil.rmtree(plain, ignore_errors=True)
    shutil.copytree(path, plain)
    state, r = load_file(path / "model.safetensors"), 4
    out = {}
    for name, w in state.items():
        name = "roberta." + name
        if any(
            k in name
            for k in (
                "Wqkv.weight",
                "out_proj.weight",
                "fc1.weight",
                "fc2.weight",
                "word_embeddings.weight",
                "token_type_embeddings.weight",
                "pooler.dense.weight",
            )
        ):
            base, kind = name.rsplit(".", 1)
            a, b = torch.randn(5, r, w.shape[1]) * 0.2, torch.randn(5, w.shape[0], r) * 0.2
            if "embeddings" in name:
                a, b = torch.randn(5, w.shape[0], r) * 0.2, torch.randn(5, r, w.shape[1]) * 0.2
            out[f"{base}.parametrizations.{kind}.original"] = w
            out[f"{base}.parametrizations.{kind}.0.lora_A"] = a
            out[f"{base}.parametrizations.{kind}.0.lora_B"] = b
        else:
            out[name] = w
    save_file(
        {k: v.contiguous() for k, v in out.items()},
        str(path / "model.safetensors"),
        {"format": "pt"},
    )
    tasks = [
        "retrieval.query",
        "retrieval.passage",
        "separation",
        "classification",
        "text-matching",
    ]
    instructions = {
        "retrieval.query": "Represent the query for retrieving evidence documents: ",
        "retrieval.passage": "Represent the document for retrieval: ",
        "separation": "",
        "classification": "",
        "text-matching": "",
    }
    dump(
        path / "config.json",
        {
            "architectures": ["XLMRobertaModel"],
            "attention_probs_dropout_prob": 0.1,
            "auto_map": {"AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig"},
            "bos_token_id": 0,
            "classifier_dropout": None,
            "emb_pooler": None,
            "eos_token_id": 2,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "hidden_size": H,
            "initializer_range": 0.02,
            "intermediate_size": 128,
            "layer_norm_eps": 1e-5,
            "load_trained_adapters": True,
            "lora_adaptations": tasks,
            "lora_alpha": 1,
            "lora_dropout_p": 0.0,
            "lora_main_params_trainable": False,
            "lora_rank": r,
            "matryoshka_dimensions": [32, 64],
            "max_position_embeddings": 8194,
            "model_type": "xlm-roberta",
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "output_past": True,
            "pad_token_id": 1,
            "position_embedding_type": "rotary",
            "rotary_emb_base": 20000.0,
            "task_instructions": instructions,
            "torch_dtype": "float32",
            "truncate_dim": None,
            "type_vocab_size": 1,
            "use_cache": True,
            "use_flash_attn": True,
            "use_reentrant": False,
            "vocab_size": c.vocab_size,
        },
    )
    (path / "configuration_xlm_roberta.py").write_text(
        "# In place of the repository's own: the same class name and keys.\n"
        "from transformers import PretrainedConfig\n\n\nclass XLMRobertaFlashConfig(PretrainedConfig):\n    model_type = 'xlm-roberta'\n"
    )
    for p in (path, plain):
        st(p, "mean_tokens", max_len=8194, prompts=instructions)


@family("jina-v3", "jinaai/jina-embeddings-v3", native=True, may_refuse=True)
def _(path):
    jina_v3(path)


@family(
    "jina-v3-trust",
    "jinaai/jina-embeddings-v3",
    native=True,
    loras=True,
    args=["--trust-remote-code", "true"],
    may_refuse=True,
)
def _(path):
    jina_v3(path)


@family("jina-v3-hf", "jinaai/jina-embeddings-v3-hf", unprompted=["query", "document"])
def _(path):
    jina_v3(path)
    shutil.rmtree(path)
    path.with_name(path.name + ".native").rename(path)


@family("jina-v2", "jinaai/jina-embeddings-v2-base-en", kind="refuse")
def _(path):
    auto = {
        "AutoConfig": "jinaai/jina-bert-implementation--configuration_bert.JinaBertConfig",
        "AutoModelForMaskedLM": "jinaai/jina-bert-implementation--modeling_bert.JinaBertForMaskedLM",
        "AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel",
    }
    tok = bert_tok(path, max_length=8192)
    bert(
        path,
        tok=tok,
        arch="JinaBertForMaskedLM",
        config={
            "position_embedding_type": "alibi",
            "max_position_embeddings": 8192,
            "feed_forward_type": "geglu",
            "auto_map": auto,
            "emb_pooler": "mean",
        },
    )
    st(path, "mean_tokens", normalize=False, max_len=8192)


@family(
    "llama-nemotron-embed",
    "nvidia/llama-nemotron-embed-1b-v2",
    bidirectional=True,
    args=["--trust-remote-code", "true"],
    card={"query": "query: ", "document": "passage: "},
)
def _(path):
    llama_bi(path)


@family("llama-nemotron-embed-notrust", "nvidia/llama-3.2-nv-embedqa-1b-v2", kind="refuse")
def _(path):
    llama_bi(path)


def llama_bi(path):
    tok = toks.byte_bpe(
        ["<|begin_of_text|>", "<|end_of_text|>"],
        first=False,
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|> $B:1",
    )
    toks.save(
        path,
        tok,
        names=dict(
            bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", pad_token="<|end_of_text|>"
        ),
        max_length=131072,
        model_input_names=["input_ids", "attention_mask"],
    )
    c = tf.LlamaConfig(
        vocab_size=tok.get_vocab_size(), max_position_embeddings=131072, rope_theta=500000.0, **DEC
    )
    weights(
        path,
        tf.LlamaModel(c),
        config={
            "architectures": ["LlamaBidirectionalModel"],
            "model_type": "llama_bidirec",
            "pooling": "avg",
            "temperature": 1.0,
            "rope_theta": 500000.0,
            "auto_map": {
                "AutoConfig": "llama_bidirectional_model.LlamaBidirectionalConfig",
                "AutoModel": "llama_bidirectional_model.LlamaBidirectionalModel",
            },
        },
        drop=["rope_parameters"],
    )
    (path / "llama_bidirectional_model.py").write_text(
        "# In place of the repository's own: the same class names; bidirectional as transformers 5 does it.\n"
        "from transformers.models.llama.configuration_llama import LlamaConfig\nfrom transformers.models.llama.modeling_llama import LlamaModel\n\n\n"
        "class LlamaBidirectionalConfig(LlamaConfig):\n    model_type = 'llama_bidirec'\n\n"
        "    def __init__(self, pooling='avg', temperature=1.0, **kwargs):\n        super().__init__(**kwargs)\n        self.pooling = pooling\n        self.temperature = temperature\n        self.is_causal = False\n\n\n"
        "class LlamaBidirectionalModel(LlamaModel):\n    config_class = LlamaBidirectionalConfig\n"
    )
    st(path, "mean_tokens", max_len=8192, prompts={"query": "query: ", "document": "passage: "})


@family("potion", "minishlab/potion-base-8M", kind="refuse")
def _(path):
    tok, names = toks.wordpiece(True)
    toks.save(path, tok, names=names, cls="BertTokenizer")
    save_file({"embeddings": torch.randn(tok.get_vocab_size(), H)}, str(path / "model.safetensors"))
    dump(
        path / "config.json",
        {
            "model_type": "model2vec",
            "architectures": ["StaticModel"],
            "tokenizer_name": "baai/bge-base-en-v1.5",
            "apply_pca": 256,
            "apply_zipf": True,
            "hidden_dim": H,
            "seq_length": 1000000,
            "normalize": True,
        },
    )
    dump(
        path / "modules.json",
        [
            {
                "idx": 0,
                "name": "0",
                "path": ".",
                "type": "sentence_transformers.models.StaticEmbedding",
            },
            {
                "idx": 1,
                "name": "1",
                "path": "1_Normalize",
                "type": "sentence_transformers.models.Normalize",
            },
        ],
    )


@family("static-st", "sentence-transformers/static-retrieval-mrl-en-v1", kind="refuse")
def _(path):
    tok, names = toks.wordpiece(True)
    toks.save(path / "0_StaticEmbedding", tok, names=names)
    save_file(
        {"embedding.weight": torch.randn(tok.get_vocab_size(), H)},
        str(path / "0_StaticEmbedding/model.safetensors"),
    )
    dump(
        path / "modules.json",
        [
            {
                "idx": 0,
                "name": "0",
                "path": "0_StaticEmbedding",
                "type": "sentence_transformers.models.StaticEmbedding",
            }
        ],
    )


@family("instructor", "hkunlp/instructor-large", kind="refuse")
def _(path):
    tok, names = toks.unigram()
    toks.save(path, tok, names=names)
    c = tf.T5Config(
        vocab_size=tok.get_vocab_size(), d_model=H, d_kv=32, d_ff=128, num_layers=2, num_heads=2
    )
    weights(path, tf.T5EncoderModel(c), config={"architectures": ["T5EncoderModel"]})
    st(
        path,
        "mean_tokens",
        include_prompt=False,
        dense=[("2_Dense", H, H, False, "torch.nn.modules.linear.Identity")],
    )


# --- what sentence-transformers' files can say, on a plain BERT -------------------------------------------------------


def variant(name, hub=None, **more):
    def keep(make):
        FAMILIES[name] = (make, hub or f"example/{name}", more.pop("kind", "embed"), more)
        return make

    return keep


for mode in ("max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"):

    @variant(f"pooling-{mode}")
    def _(path, mode=mode):
        bert(path)
        st(path, mode)


@variant("pooling-cls-and-mean")
def _(path):
    bert(path)
    st(path, ["cls_token", "mean_tokens"], dim=H)


@variant("no-normalize")
def _(path):
    bert(path)
    st(path, "mean_tokens", normalize=False)


@variant("default-prompt-shape", card={"query": "query: ", "document": "passage: "})
def _(path):
    bert(path)
    st(
        path,
        "mean_tokens",
        prompts={"query": "query: ", "passage": "passage: ", "corpus": "corpus: "},
        default="passage",
    )


@variant("include-prompt-false")
def _(path):
    bert(path)
    st(
        path,
        "mean_tokens",
        include_prompt=False,
        prompts={"query": "query: ", "document": "passage: "},
    )


@variant("do-lower-case")
def _(path):
    tok = bert_tok(path, lower=False)
    bert(path, tok=tok)
    st(path, "mean_tokens", lower=True)


@variant("dense-relu-bin")
def _(path):
    bert(path)
    st(
        path,
        "mean_tokens",
        normalize=False,
        dense=[("2_Dense", H, 32, True, "torch.nn.modules.activation.ReLU")],
    )
    folder = path / "2_Dense"
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@variant("dense-leakyrelu")
def _(path):
    bert(path)
    st(
        path,
        "mean_tokens",
        normalize=False,
        dense=[("2_Dense", H, 32, True, "torch.nn.modules.activation.LeakyReLU")],
    )


@variant("dense-gelu-st6-types")
def _(path):
    bert(path)
    st(path, "mean_tokens", dense=[("2_Dense", H, 32, True, "torch.nn.modules.activation.GELU")])
    data = json.loads((path / "modules.json").read_text())
    new = {
        "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
        "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        "Dense": "sentence_transformers.base.modules.dense.Dense",
        "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    }
    dump(path / "modules.json", [m | {"type": new[m["type"].rsplit(".", 1)[1]]} for m in data])


@variant("transformer-in-subfolder")
def _(path):
    bert(path / "0_Transformer")
    st(path, "mean_tokens")
    data = json.loads((path / "modules.json").read_text())
    data[0]["path"] = "0_Transformer"
    dump(path / "modules.json", data)
    (path / "sentence_bert_config.json").rename(path / "0_Transformer/sentence_bert_config.json")


@variant("bf16-saved-bert", args=["--dtype", "auto"], tolerance=0.999)
def _(path):
    xlmr(path, dtype=torch.bfloat16, config={"torch_dtype": "bfloat16"})
    st(path, "mean_tokens")


@family(
    "nomic-v1.5-trust",
    "nomic-ai/nomic-embed-text-v1.5",
    native=True,
    args=["--trust-remote-code", "true"],
    card={"query": "search_query: ", "document": "search_document: "},
    layer_norm=[256],
)
def _(path):
    FAMILIES["nomic-v1.5"][0](path)
    data = json.loads((path / "config.json").read_text())
    dump(
        path / "config.json",
        data | {"auto_map": {"AutoConfig": "configuration_hf_nomic_bert.NomicBertConfig"}},
    )
    (path / "configuration_hf_nomic_bert.py").write_text(
        "# In place of the repository's own: a GPT2Config, as that is.\n"
        "from transformers import GPT2Config\n\n\nclass NomicBertConfig(GPT2Config):\n    model_type = 'nomic_bert'\n\n"
        "    def __init__(self, prenorm=False, mlp_fc1_bias=True, mlp_fc2_bias=True, qkv_proj_bias=True, rotary_emb_fraction=0.0, rotary_emb_base=1000.0, rotary_emb_scale_base=None, rotary_emb_interleaved=False, type_vocab_size=2, max_trained_positions=2048, **kwargs):\n"
        "        super().__init__(**kwargs)\n        self.prenorm, self.mlp_fc1_bias, self.mlp_fc2_bias, self.qkv_proj_bias = prenorm, mlp_fc1_bias, mlp_fc2_bias, qkv_proj_bias\n"
        "        self.rotary_emb_fraction, self.rotary_emb_base, self.rotary_emb_scale_base, self.rotary_emb_interleaved = rotary_emb_fraction, rotary_emb_base, rotary_emb_scale_base, rotary_emb_interleaved\n"
        "        self.type_vocab_size, self.max_trained_positions = type_vocab_size, max_trained_positions\n"
    )


@family(
    "bge-code",
    "BAAI/bge-code-v1",
    card={
        "query": "<instruct>Given a question in text, retrieve SQL queries that are appropriate responses to the question.\n<query>",
        "document": "",
    },
)
def _(path):
    tok = qwen_tok(path, append=True, cls="Qwen2Tokenizer")
    qwen2(path, tok, arch="Qwen2Model")
    st(path, "lasttoken", dim=128, max_len=4096)


@family(
    "jina-v5-small",
    "jinaai/jina-embeddings-v5-text-small",
    native=True,
    args=["--trust-remote-code", "true"],
    card={"query": "Query: ", "document": "Document: "},
)
def _(path):
    tok = qwen_tok(path, append=True)
    c = tf.Qwen3Config(
        vocab_size=tok.get_vocab_size(),
        max_position_embeddings=32768,
        rope_theta=1e6,
        tie_word_embeddings=True,
        **DEC,
    )
    weights(path, tf.Qwen3Model(c), drop=["layer_types"])
    plain = path.with_name(path.name + ".native")
    shutil.rmtree(plain, ignore_errors=True)
    shutil.copytree(path, plain)
    base = load_file(path / "model.safetensors")
    for task in ("retrieval", "text-matching", "classification", "clustering"):
        adapter, merged = {}, dict(base)
        for name, w in base.items():
            if "_proj.weight" in name:
                a, b = torch.randn(4, w.shape[1]) * 0.2, torch.randn(w.shape[0], 4) * 0.2
                key = "base_model.model." + name.removesuffix(".weight")
                adapter |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
                merged[name] = w + (b @ a) * (8 / 4)
        dump(
            path / f"adapters/{task}/adapter_config.json",
            {"peft_type": "LORA", "r": 4, "lora_alpha": 8},
        )
        save_file(adapter, str(path / f"adapters/{task}/adapter_model.safetensors"))
        if task == "retrieval":
            save_file(merged, str(plain / "model.safetensors"), {"format": "pt"})
    data = json.loads((path / "config.json").read_text())
    dump(
        path / "config.json",
        data
        | {
            "architectures": ["JinaEmbeddingsV5Model"],
            "model_type": "jina_embeddings_v5",
            "task_names": ["retrieval", "text-matching", "clustering", "classification"],
            "auto_map": {"AutoConfig": "configuration_jina_embeddings_v5.JinaEmbeddingsV5Config"},
        },
    )
    (path / "configuration_jina_embeddings_v5.py").write_text(
        "# In place of the repository's own: the same class name.\nfrom transformers import Qwen3Config\n\n\nclass JinaEmbeddingsV5Config(Qwen3Config):\n    model_type = 'jina_embeddings_v5'\n"
    )
    for p in (path, plain):
        st(p, "lasttoken", max_len=4096, prompts={"query": "Query: ", "document": "Document: "})


@variant("max-seq-above-positions", kind="positions")
def _(path):
    bert(path)
    st(path, "mean_tokens", max_len=1024)


@variant("default-prompt-encode-query")
def _(path):
    bert(path)
    st(
        path,
        "mean_tokens",
        prompts={"retrieval": "retrieve: ", "corpus": "corpus: "},
        default="retrieval",
    )


@variant("dropout-module")
def _(path):
    bert(path)
    st(path, "mean_tokens", more=[("2_Dropout", ST + "Dropout")])
    dump(path / "2_Dropout/config.json", {"dropout": 0.1})


@family("sentence-camembert", "dangvantuan/sentence-camembert-base")
def _(path):
    tok = xlmr_tok(path)
    c = tf.CamembertConfig(
        vocab_size=tok.get_vocab_size(),
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        **ENC,
    )
    weights(
        path,
        tf.CamembertModel(c),
        config={**BERT, "architectures": ["CamembertModel"]},
        drop=["dtype"],
    )
    st(path, "mean_tokens", normalize=False, max_len=128)


@family(
    "sentence-camembert-override",
    "dangvantuan/sentence-camembert-base",
    args=["--engine-args", '{"hf_overrides": {"architectures": ["EmbeddingServiceRobertaModel"]}}'],
)
def _(path):
    FAMILIES["sentence-camembert"][0](path)


@family("gtr-t5", "sentence-transformers/gtr-t5-base", kind="refuse")
def _(path):
    FAMILIES["instructor"][0](path)


@family(
    "e5-named-otherwise",
    "my-company/search-embedder",
    unprompted=["query", "document"],  # no file says that they are E5's
)
def _(path):
    FAMILIES["e5-base"][0](path)


# --- ColBERT, SPLADE ---------------------------------------------------------------------------------------------------


@family("answerai-colbert", "answerdotai/answerai-colbert-small-v1", kind="refuse")
def _(path):
    bert(path, arch="HF_ColBERT")
    state = {"bert." + k: v for k, v in load_file(path / "model.safetensors").items()}
    state["linear.weight"] = torch.randn(96, H)
    save_file(state, str(path / "model.safetensors"), {"format": "pt"})


@family("gte-moderncolbert", "lightonai/GTE-ModernColBERT-v1", kind="refuse")
def _(path):
    modern(path)
    dump(
        path / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": ST + "Transformer"},
            {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
        ],
    )
    dump(
        path / "1_Dense/config.json",
        {
            "in_features": H,
            "out_features": 32,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    save_file({"linear.weight": torch.randn(32, H)}, str(path / "1_Dense/model.safetensors"))
    dump(
        path / "config_sentence_transformers.json",
        {
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "MaxSim",
            "query_prefix": "[Q] ",
            "document_prefix": "[D] ",
            "query_length": 32,
            "document_length": 300,
            "attend_to_expansion_tokens": False,
        },
    )
    dump(path / "sentence_bert_config.json", {"max_seq_length": 299, "do_lower_case": False})


def mlm_bert(path):
    tok = bert_tok(path)
    weights(
        path,
        tf.BertForMaskedLM(bert_config(tok)),
        config={**BERT, "architectures": ["BertForMaskedLM"]},
        drop=["dtype"],
    )


def sparse_modules(path, doc=False):
    dump(
        path / "modules.json",
        [
            {
                "idx": 0,
                "name": "0",
                "path": "",
                "type": "sentence_transformers.sparse_encoder.models.MLMTransformer",
            },
            {
                "idx": 1,
                "name": "1",
                "path": "1_SpladePooling",
                "type": "sentence_transformers.sparse_encoder.models.SpladePooling",
            },
        ],
    )
    dump(
        path / "1_SpladePooling/config.json",
        {
            "pooling_strategy": "max",
            "activation_function": "relu",
            "word_embedding_dimension": None,
        },
    )
    dump(path / "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False})
    dump(
        path / "config_sentence_transformers.json",
        {
            "model_type": "SparseEncoder",
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "dot",
        },
    )


@family("splade-v3", "naver/splade-v3", kind="sparse")
def _(path):
    mlm_bert(path)
    sparse_modules(path)


@family("splade-pp-en", "prithivida/Splade_PP_en_v1", kind="sparse")
def _(path):
    mlm_bert(path)
    sparse_modules(path)


@family("sparse-no-splade-name", "example/inference-free-sparse", kind="sparse")
def _(path):
    mlm_bert(path)
    sparse_modules(path)


@family(
    "opensearch-doc-v2-distill",
    "opensearch-project/opensearch-neural-sparse-encoding-doc-v2-distill",
    kind="sparse",
)
def _(path):
    distil(path, "DistilBertForMaskedLM", tf.DistilBertForMaskedLM)
    sparse_modules(path)


@family("splade-distil", "naver/splade-v3-distilbert", kind="sparse")
def _(path):
    distil(path, "DistilBertForMaskedLM", tf.DistilBertForMaskedLM)
    sparse_modules(path)


# --- rerankers ---------------------------------------------------------------------------------------------------------


def xlmr_pairs(path, positions, max_length, **config):
    tok = xlmr_tok(path, max_length)
    c = tf.XLMRobertaConfig(
        vocab_size=tok.get_vocab_size(),
        max_position_embeddings=positions,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        num_labels=1,
        **ENC,
    )
    weights(
        path, tf.XLMRobertaForSequenceClassification(c), config={**BERT, **config}, drop=["dtype"]
    )


@family("bge-reranker-base", "BAAI/bge-reranker-base", kind="rerank")
def _(path):
    xlmr_pairs(path, 514, 512)


@family("bge-reranker-v2-m3", "BAAI/bge-reranker-v2-m3", kind="rerank")
def _(path):
    xlmr_pairs(path, 8194, 8192)


@family("ms-marco-minilm", "cross-encoder/ms-marco-MiniLM-L6-v2", kind="rerank")
def _(path):
    tok = bert_tok(path)
    weights(
        path,
        tf.BertForSequenceClassification(bert_config(tok, num_labels=1)),
        config={
            **BERT,
            "sentence_transformers": {
                "activation_fn": "torch.nn.modules.linear.Identity",
                "version": "4.1.0.dev0",
            },
            "architectures": ["BertForSequenceClassification"],
        },
        drop=["dtype"],
    )


@family("nli-3-labels", "cross-encoder/nli-roberta-base", kind="rerank", may_refuse=True)
def _(path):
    tok = roberta_tok(path)
    c = tf.RobertaConfig(
        vocab_size=tok.get_vocab_size(),
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        num_labels=3,
        **ENC,
    )
    weights(path, tf.RobertaForSequenceClassification(c), config={**BERT}, drop=["dtype"])


@family("gte-reranker-modernbert", "Alibaba-NLP/gte-reranker-modernbert-base", kind="rerank")
def _(path):
    tok = modernbert_tok(path)
    weights(
        path,
        tf.ModernBertForSequenceClassification(
            modernbert_config(tok, num_labels=1, classifier_pooling="mean")
        ),
        config={
            **MODERN,
            "architectures": ["ModernBertForSequenceClassification"],
            "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"},
        },
        drop=["rope_parameters", "layer_types"],
    )


@family(
    "gte-multilingual-reranker",
    "Alibaba-NLP/gte-multilingual-reranker-base",
    kind="rerank",
    native=True,
)
def _(path):
    gte_pairs(path)


def gte_pairs(path):
    new_impl(
        path,
        types=1,
        tok="xlmr",
        arch="NewForSequenceClassification",
        model=tf.GteForSequenceClassification,
        config={"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}},
    )
    state = load_file(path / "model.safetensors")
    save_file(
        {
            (k if k.startswith(("new.", "classifier")) else "new." + k).replace(
                "new.gte.", "new."
            ): v
            for k, v in state.items()
        },
        str(path / "model.safetensors"),
        {"format": "pt"},
    )


@family("jina-reranker-v2", "jinaai/jina-reranker-v2-base-multilingual", kind="rerank", native=True)
def _(path):
    jina_pairs(path)


@family(
    "jina-reranker-v2-trust",
    "jinaai/jina-reranker-v2-base-multilingual",
    kind="rerank",
    native=True,
    args=["--trust-remote-code", "true"],
)
def _(path):
    jina_pairs(path)


def jina_pairs(path):
    xlmr_pairs(path, 1026, 1024)
    plain = path.with_name(path.name + ".native")
    shutil.rmtree(plain, ignore_errors=True)
    shutil.copytree(path, plain)
    state, out = load_file(path / "model.safetensors"), {}
    for i in range(2):
        for kind in ("weight", "bias"):
            out[f"roberta.encoder.layers.{i}.mixer.Wqkv.{kind}"] = torch.cat(
                [
                    state.pop(f"roberta.encoder.layer.{i}.attention.self.{p}.{kind}")
                    for p in ("query", "key", "value")
                ]
            )
    for name, w in state.items():
        for a, b in (
            ("embeddings.LayerNorm", "emb_ln"),
            ("encoder.layer.", "encoder.layers."),
            ("attention.output.dense", "mixer.out_proj"),
            ("attention.output.LayerNorm", "norm1"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
            ("output.LayerNorm", "norm2"),
        ):
            name = name.replace(a, b)
        out[name] = w
    save_file(out, str(path / "model.safetensors"), {"format": "pt"})
    data = json.loads((path / "config.json").read_text())
    dump(
        path / "config.json",
        data
        | {
            "auto_map": {
                "AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig",
                "AutoModelForSequenceClassification": "modeling_xlm_roberta.XLMRobertaForSequenceClassification",
            },
            "use_flash_attn": True,
            "num_loras": 1,
        },
    )
    (path / "configuration_xlm_roberta.py").write_text(
        "# In place of the repository's own: the same class name and keys.\n"
        "from transformers import XLMRobertaConfig\n\n\nclass XLMRobertaFlashConfig(XLMRobertaConfig):\n    pass\n"
    )


@family("mxbai-rerank-v1", "mixedbread-ai/mxbai-rerank-base-v1", kind="refuse")
def _(path):
    tok, names = toks.wordpiece(True)
    toks.save(path, tok, names=names)
    c = tf.DebertaV2Config(
        vocab_size=tok.get_vocab_size(),
        num_labels=1,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        **ENC,
    )
    weights(path, tf.DebertaV2ForSequenceClassification(c))


@family("ms-marco-electra", "cross-encoder/ms-marco-electra-base", kind="rerank")
def _(path):
    tok = bert_tok(path, cls="ElectraTokenizer")
    c = tf.ElectraConfig(
        vocab_size=tok.get_vocab_size(),
        embedding_size=H,
        num_labels=1,
        max_position_embeddings=512,
        **ENC,
    )
    weights(path, tf.ElectraForSequenceClassification(c), config=BERT)


def qwen_causal(path, tok, cls=tf.Qwen2ForCausalLM, tie=True, **config):
    names = ("head_dim", "hidden_size", "num_attention_heads")
    c = tf.Qwen2Config(
        vocab_size=tok.get_vocab_size(),
        max_position_embeddings=32768,
        rope_theta=1e6,
        tie_word_embeddings=tie,
        hidden_size=128,
        num_attention_heads=4,
        **{k: v for k, v in DEC.items() if k not in names},
    )
    weights(
        path,
        cls(c),
        config={"architectures": [cls.__name__], "rope_theta": 1e6, **config},
        drop=["rope_parameters", "layer_types"],
    )


@family("qwen3-reranker", "Qwen/Qwen3-Reranker-0.6B", kind="rerank-yes-no")
def _(path):
    tok = qwen_tok(path, append=False)
    yes_no(tok)
    toks.save(
        path,
        tok,
        names=dict(eos_token="<|im_end|>", pad_token="<|endoftext|>"),
        cls="Qwen2Tokenizer",
        max_length=131072,
        padding_side="left",
        add_prefix_space=False,
    )
    c = tf.Qwen3Config(
        vocab_size=tok.get_vocab_size(),
        max_position_embeddings=40960,
        rope_theta=1e6,
        tie_word_embeddings=True,
        **DEC,
    )
    weights(
        path,
        tf.Qwen3ForCausalLM(c),
        config={"rope_theta": 1000000, "rope_scaling": None},
        drop=["rope_parameters", "layer_types"],
    )


@family("qwen3-reranker-renamed", "my-company/reranker", kind="rerank-yes-no")
def _(path):
    FAMILIES["qwen3-reranker"][0](path)


def qwen3_seq_cls(path, converted):
    """`converted`: the head is the difference of two rows of the embeddings, as in the conversions on the hub."""
    tok = qwen_tok(path, append=False)
    yes_no(tok)
    toks.save(
        path,
        tok,
        names=dict(eos_token="<|im_end|>", pad_token="<|endoftext|>"),
        cls="Qwen2Tokenizer",
        max_length=131072,
        padding_side="left",
        add_prefix_space=False,
    )
    c = tf.Qwen3Config(
        vocab_size=tok.get_vocab_size(),
        max_position_embeddings=40960,
        rope_theta=1e6,
        tie_word_embeddings=True,
        num_labels=1,
        pad_token_id=tok.token_to_id("<|endoftext|>"),
        **DEC,
    )
    model = tf.Qwen3ForSequenceClassification(c)
    if converted:
        with torch.no_grad():
            rows = model.model.embed_tokens.weight
            model.score.weight.copy_(
                (rows[tok.token_to_id("yes")] - rows[tok.token_to_id("no")])[None]
            )
    weights(
        path,
        model,
        config={
            "rope_theta": 1000000,
            "rope_scaling": None,
            "architectures": ["Qwen3ForSequenceClassification"],
            "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"},
        },
        drop=["rope_parameters", "layer_types"],
    )


@family("qwen3-reranker-seq-cls", "tomaarsen/Qwen3-Reranker-0.6B-seq-cls", kind="rerank-template")
def _(path):
    qwen3_seq_cls(path, True)


@family(
    "qwen3-reranker-finetuned",
    "someone/Qwen3-Reranker-0.6B-finetuned-seq-cls",
    kind="rerank-template",
)
def _(path):
    qwen3_seq_cls(path, False)


@family("bge-reranker-v2-gemma", "BAAI/bge-reranker-v2-gemma", kind="rerank-gemma")
def _(path):
    tok = toks.piece_bpe(
        style="gemma", eos=False, specials=("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    )
    toks.save(
        path,
        tok,
        names=dict(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"),
        cls="GemmaTokenizer",
        max_length=8192,
        add_bos_token=True,
        add_eos_token=False,
    )
    c = tf.GemmaConfig(vocab_size=tok.get_vocab_size(), max_position_embeddings=8192, **DEC)
    weights(path, tf.GemmaForCausalLM(c), config={"rope_theta": 10000.0}, drop=["rope_parameters"])


def build(out: Path, names: list[str]) -> None:
    """Make checkpoints and references; without names, all."""
    for name in names or list(FAMILIES):
        make, hub, kind, more = FAMILIES[name]
        path = out / name
        shutil.rmtree(path, ignore_errors=True)
        torch.manual_seed(20240205)
        try:
            path.mkdir(parents=True)
            make(path)
            data = {
                "name": name,
                "hub": hub,
                "kind": kind,
                "args": more.get("args", []),
                "tolerance": more.get("tolerance", 0.99999),
                "may_refuse": bool(more.get("may_refuse")) or kind == "refuse",
                **reference.compute(path, hub, kind, more),
            }
            (out / f"{name}.reference.json").write_text(json.dumps(data))
            print(f"{name:36} {hub:60} {len(data.get('cases', []))} cases", flush=True)
        except Exception:  # noqa: BLE001 - the others are made all the same
            print(f"{name:36} FAILED", flush=True)
            traceback.print_exc()

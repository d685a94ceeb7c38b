"""Checkpoints whose config.json or tokenizer says one thing otherwise than most do."""

from __future__ import annotations

import transformers as tf

from tests.acceptance import make as m
from tests.acceptance.heads import PAD, ROBERTA
from tests.acceptance.kinds import patch
from tests.acceptance.make import BERT, DEC, ENC, H, variant, weights

MODERN = dict(local_attention=16, global_attn_every_n_layers=2, **PAD)
DISTIL = dict(dim=H, n_layers=2, n_heads=2, hidden_dim=128)
SLIDING = dict(sliding_window=8)
# By the prefix of its class: what its configuration has, and one value otherwise.
ENCODERS = {
    "Bert": (
        {},
        {
            "relu": dict(hidden_act="relu"),
            "gelu-new": dict(hidden_act="gelu_new"),
            "silu": dict(hidden_act="silu"),
            "gelu-tanh": dict(hidden_act="gelu_pytorch_tanh"),
            "eps": dict(layer_norm_eps=1e-2),
            "one-type": dict(type_vocab_size=1),
            "four-types": dict(type_vocab_size=4),
            "padding": dict(pad_token_id=5),
        },
    ),
    "Roberta": (
        ROBERTA,
        {
            "relu": dict(hidden_act="relu"),
            "padding": dict(pad_token_id=0),
            "types": dict(type_vocab_size=2),
            "eps": dict(layer_norm_eps=1e-2),
        },
    ),
    "DistilBert": (
        DISTIL,
        {"relu": dict(activation="relu"), "sines": dict(sinusoidal_pos_embds=True)},
    ),
    "ModernBert": (
        MODERN,
        {
            "silu": dict(hidden_activation="silu"),
            "relu": dict(hidden_activation="relu"),
            "norm-bias": dict(norm_bias=True),
            "attention-bias": dict(attention_bias=True),
            "mlp-bias": dict(mlp_bias=True),
            "eps": dict(norm_eps=1e-2),
            "all-global": dict(global_attn_every_n_layers=1),
            "narrow-window": dict(local_attention=4),
        },
    ),
    "Electra": (
        dict(embedding_size=H),
        {"narrow": dict(embedding_size=32), "relu": dict(hidden_act="relu")},
    ),
    "Ernie": ({}, {"tasks": dict(use_task_id=True, task_type_vocab_size=3)}),
    "EuroBert": (
        dict(num_key_value_heads=2, head_dim=32, **PAD),
        {
            "gelu": dict(hidden_act="gelu"),
            "attention-bias": dict(attention_bias=True),
            "mlp-bias": dict(mlp_bias=True),
            "eps": dict(rms_norm_eps=1e-2),
        },
    ),
}
DECODERS = {
    "Llama": {
        "attention-bias": dict(attention_bias=True),
        "mlp-bias": dict(mlp_bias=True),
        "gelu": dict(hidden_act="gelu"),
        "eps": dict(rms_norm_eps=1e-2),
        "wide-heads": dict(head_dim=64),
        "bidirectional": dict(is_causal=False),
        "partly-rotary": dict(
            rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5)
        ),
    },
    "Mistral": {
        "window": SLIDING,
        "gelu": dict(hidden_act="gelu"),
        "bidirectional-window": dict(is_causal=False, **SLIDING),
    },
    "Qwen2": {
        "window": dict(use_sliding_window=True, max_window_layers=0, **SLIDING),
        "window-in-half": dict(use_sliding_window=True, max_window_layers=1, **SLIDING),
        "bidirectional-window": dict(
            use_sliding_window=True, max_window_layers=0, is_causal=False, **SLIDING
        ),
        "bidirectional": dict(is_causal=False),
        "wide-heads": dict(head_dim=64),
    },
    "Qwen3": {
        "window": dict(use_sliding_window=True, max_window_layers=0, **SLIDING),
        "attention-bias": dict(attention_bias=True),
        "bidirectional": dict(is_causal=False),
        "bidirectional-window": dict(
            use_sliding_window=True, max_window_layers=0, is_causal=False, **SLIDING
        ),
    },
    "Gemma": {
        "gelu": dict(hidden_act="gelu"),
        "gelu-tanh": dict(hidden_act="gelu_pytorch_tanh"),
        "bidirectional": dict(is_causal=False),
    },
    "Gemma2": {
        "window": SLIDING,
        "uncapped": dict(attn_logit_softcapping=None),
        "scalar": dict(query_pre_attn_scalar=16),
        "gelu": dict(hidden_activation="gelu"),
    },
    "Gemma3Text": {
        "window": SLIDING,
        "causal": dict(use_bidirectional_attention=False),
        "bidirectional": dict(use_bidirectional_attention=True),
        "bidirectional-window": dict(use_bidirectional_attention=True, **SLIDING),
        "scalar": dict(query_pre_attn_scalar=16),
    },
}

for prefix, (options, values) in ENCODERS.items():
    for name, value in values.items():

        @variant(f"value-{prefix}-{name}", may_refuse=True)
        def _(path, prefix=prefix, options=options, value=value):
            padded = options is ROBERTA
            tok = m.xlmr_tok(path) if padded else m.bert_tok(path)
            usual = {"vocab_size": tok.get_vocab_size(), "max_position_embeddings": 512, **ENC}
            c = getattr(tf, f"{prefix}Config")(**usual | options | value)
            weights(path, getattr(tf, f"{prefix}Model")(c), config=BERT if padded else None)
            m.st(path, "mean_tokens", max_len=500)


for prefix, values in DECODERS.items():
    # transformers' sdpa leaves Gemma 2's cap out.
    more = {"attention": "eager"} if prefix == "Gemma2" else {}
    for name, value in values.items():

        @variant(f"value-{prefix}-{name}", may_refuse=True, **more)
        def _(path, prefix=prefix, value=value):
            tok = m.qwen_tok(path, append=True)
            end = tok.token_to_id("<|endoftext|>")
            usual = {"vocab_size": tok.get_vocab_size(), "max_position_embeddings": 4096, **DEC}
            if prefix == "Qwen2":
                usual["hidden_size"] = 128  # what vLLM's class divides
            c = getattr(tf, f"{prefix}Config")(
                **usual | {"pad_token_id": end, "eos_token_id": end} | value
            )
            weights(path, getattr(tf, f"{prefix}Model")(c))
            m.st(path, "mean_tokens" if "idirectional" in str(value) else "lasttoken", max_len=4096)


PAIRS = {
    "ModernBert-mean": ("ModernBert", MODERN | dict(classifier_pooling="mean")),
    "ModernBert-bias": ("ModernBert", MODERN | dict(classifier_bias=True)),
    "ModernBert-norm-bias": ("ModernBert", MODERN | dict(norm_bias=True)),
    "ModernBert-silu": ("ModernBert", MODERN | dict(hidden_activation="silu")),
    "Bert-relu": ("Bert", dict(hidden_act="relu")),
    "Roberta-relu": ("Roberta", ROBERTA | dict(hidden_act="relu")),
    "Electra-narrow": ("Electra", dict(embedding_size=32)),
    "Electra-relu": ("Electra", dict(embedding_size=H, hidden_act="relu")),
    "DistilBert": ("DistilBert", DISTIL),
}
for name, (prefix, options) in PAIRS.items():

    @variant(f"value-pairs-{name}", kind="rerank", may_refuse=True)
    def _(path, prefix=prefix, options=options):
        padded = prefix == "Roberta"
        tok = m.xlmr_tok(path) if padded else m.bert_tok(path)
        usual = {"vocab_size": tok.get_vocab_size(), "max_position_embeddings": 512, **ENC}
        c = getattr(tf, f"{prefix}Config")(**usual | {"num_labels": 1} | options)
        model = getattr(tf, f"{prefix}ForSequenceClassification")(c)
        weights(path, model, config=BERT if padded else None)


@variant("value-pairs-without-types", kind="rerank")
def _(path):
    m.FAMILIES["ms-marco-minilm"][0](path)
    patch(path / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])


@variant("value-pairs-special-tokens-split", kind="rerank", may_refuse=True)
def _(path):
    m.FAMILIES["ms-marco-minilm"][0](path)
    patch(path / "tokenizer_config.json", split_special_tokens=True)


@variant("value-special-tokens-split", may_refuse=True)
def _(path):
    m.bert(path)
    m.st(path, "mean_tokens")
    patch(path / "tokenizer_config.json", split_special_tokens=True)


for activation in ("relu", "silu"):

    @variant(f"value-splade-{activation}", kind="sparse")
    def _(path, activation=activation):
        tok = m.bert_tok(path)
        weights(path, tf.BertForMaskedLM(m.bert_config(tok, hidden_act=activation)), config=BERT)
        m.sparse_modules(path)

    @variant(f"value-splade-distil-{activation}", kind="sparse")
    def _(path, activation=activation):
        tok = m.bert_tok(path)
        c = tf.DistilBertConfig(vocab_size=tok.get_vocab_size(), activation=activation, **DISTIL)
        weights(path, tf.DistilBertForMaskedLM(c))
        m.sparse_modules(path)

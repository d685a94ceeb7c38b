"""Values in config.json that most checkpoints of an architecture do not have."""

from __future__ import annotations

from tests.acceptance.nets import decoder, encoder
from tests.acceptance.steps import st
from tests.acceptance.table import example

# A row is a line or two: a table, and not code.
# fmt: off

SLIDING = {"sliding_window": 8}
QWEN_SLIDING = {"use_sliding_window": True, "max_window_layers": 0, **SLIDING}
BOTH_WAYS = {"is_causal": False}
HALF_ROTARY = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
GELU, RELU, TANH = ({"hidden_act": act} for act in ("gelu", "relu", "gelu_pytorch_tanh"))
# By the prefix of its class and a name, the values.
ENCODERS = {
    "Bert": {"relu": RELU, "gelu-new": {"hidden_act": "gelu_new"}, "silu": {"hidden_act": "silu"},
        "gelu-tanh": TANH, "eps": {"layer_norm_eps": 1e-2}, "one-type": {"type_vocab_size": 1},
        "four-types": {"type_vocab_size": 4}, "padding": {"pad_token_id": 5}},
    "Roberta": {"relu": RELU, "padding": {"pad_token_id": 0}, "types": {"type_vocab_size": 2},
        "eps": {"layer_norm_eps": 1e-2}},
    "DistilBert": {"relu": {"activation": "relu"}, "sines": {"sinusoidal_pos_embds": True}},
    "ModernBert": {"silu": {"hidden_activation": "silu"}, "relu": {"hidden_activation": "relu"},
        "norm-bias": {"norm_bias": True}, "attention-bias": {"attention_bias": True},
        "mlp-bias": {"mlp_bias": True}, "eps": {"norm_eps": 1e-2},
        "all-global": {"global_attn_every_n_layers": 1}, "narrow-window": {"local_attention": 4}},
    "Electra": {"narrow": {"embedding_size": 32}, "relu": RELU},
    "Ernie": {"tasks": {"use_task_id": True, "task_type_vocab_size": 3}},
    "EuroBert": {"gelu": GELU, "attention-bias": {"attention_bias": True},
        "mlp-bias": {"mlp_bias": True}, "eps": {"rms_norm_eps": 1e-2}}}
DECODERS = {
    "Llama": {"attention-bias": {"attention_bias": True}, "mlp-bias": {"mlp_bias": True},
        "gelu": GELU, "eps": {"rms_norm_eps": 1e-2}, "wide-heads": {"head_dim": 64},
        "bidirectional": BOTH_WAYS, "partly-rotary": {"rope_parameters": HALF_ROTARY}},
    "Mistral": {"window": SLIDING, "gelu": GELU, "bidirectional-window": {**BOTH_WAYS, **SLIDING}},
    "Qwen2": {"window": QWEN_SLIDING, "window-in-half": {**QWEN_SLIDING, "max_window_layers": 1},
        "bidirectional-window": {**BOTH_WAYS, **QWEN_SLIDING}, "bidirectional": BOTH_WAYS,
        "wide-heads": {"head_dim": 64}},
    "Qwen3": {"window": QWEN_SLIDING, "attention-bias": {"attention_bias": True},
        "bidirectional": BOTH_WAYS, "bidirectional-window": {**BOTH_WAYS, **QWEN_SLIDING}},
    "Gemma": {"gelu": GELU, "gelu-tanh": TANH, "bidirectional": BOTH_WAYS},
    "Gemma2": {"window": SLIDING, "uncapped": {"attn_logit_softcapping": None},
        "scalar": {"query_pre_attn_scalar": 16}, "gelu": {"hidden_activation": "gelu"}},
    "Gemma3Text": {"window": SLIDING, "causal": {"use_bidirectional_attention": False},
        "bidirectional": {"use_bidirectional_attention": True},
        "bidirectional-window": {"use_bidirectional_attention": True, **SLIDING},
        "scalar": {"query_pre_attn_scalar": 16}}}
PAIRS = {"ModernBert-mean": {"classifier_pooling": "mean"},
    "ModernBert-bias": {"classifier_bias": True}, "ModernBert-norm-bias": {"norm_bias": True},
    "ModernBert-silu": {"hidden_activation": "silu"}, "Bert-relu": RELU, "Roberta-relu": RELU,
    "Electra-narrow": {"embedding_size": 32}, "Electra-relu": RELU, "DistilBert": {}}
# A value that all of a class have here: vLLM's Qwen2 divides 128 numbers, and of two layers of
# ModernBERT one is global.
ALL = {"Qwen2": {"hidden_size": 128}, "ModernBert": {"global_attn_every_n_layers": 2}}

for prefix, values in ENCODERS.items():
    for name, value in values.items():
        tiny = encoder(prefix, **ALL.get(prefix, {}) | value)
        example(f"value-{prefix}-{name}", tiny, st(max_len=500), may_refuse=True)
for prefix, values in DECODERS.items():
    # transformers' sdpa leaves Gemma 2's cap out.
    about = {"attention": "eager"} if prefix == "Gemma2" else {}
    for name, value in values.items():
        tiny = decoder(prefix, **ALL.get(prefix, {}) | value)
        pooling = "mean_tokens" if "use_bidirectional_attention" in value else "lasttoken"
        modules = st(pooling, max_len=4096)
        example(f"value-{prefix}-{name}", tiny, modules, may_refuse=True, **about)
for name, value in PAIRS.items():
    prefix = name.partition("-")[0]
    options = ALL.get(prefix, {}) | {"num_labels": 1} | value
    tiny = encoder(prefix, "ForSequenceClassification", **options)
    example(f"value-pairs-{name}", tiny, kind="rerank", may_refuse=True)

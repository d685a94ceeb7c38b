"""Checkpoints by how a text reaches the model: lengths, ends that are cut, cases, chat templates."""

from __future__ import annotations

import json

import transformers as tf

from tests.acceptance import make as m
from tests.acceptance.kinds import patch
from tests.acceptance.make import BERT, DEC, dump, family, variant, weights

NO_LIMIT = 10**30
# https://huggingface.co/Qwen/Qwen3-Reranker-0.6B, tokenizer_config.json.
QUERY, DOCUMENT = (
    f'messages | selectattr("role", "eq", "{role}") | map(attribute="content") | first'
    for role in ("query", "document")
)
JUDGE = (
    '{%- set instruction = messages | selectattr("role", "eq", "system") '
    '| map(attribute="content") | first '
    '| default("Given a web search query, retrieve relevant passages that answer the query") -%}\n'
    f"{{%- set query_text = {QUERY} -%}}\n{{%- set document_text = {DOCUMENT} -%}}\n"
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: {{ instruction }}\n<Query>: {{ query_text }}\n"
    "<Document>: {{ document_text }}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n\n"
)


def drop(path, *keys: str) -> None:
    """Take keys out of a JSON file."""
    found = json.loads(path.read_text())
    dump(path, {key: value for key, value in found.items() if key not in keys})


# --- where a text is cut ---

# max_seq_length of the files, model_max_length of the tokenizer, max_position_embeddings; None for
# no such key.
LENGTHS = {
    "length-of-tokenizer": (None, 24, 512),
    "length-of-positions": (None, NO_LIMIT, 40),
    "length-of-positions-without-key": (None, None, 40),
    "length-of-modules": (20, 512, 512),
    "length-of-modules-above-tokenizer": (200, 24, 512),
}
for name, (most, limit, positions) in LENGTHS.items():

    @variant(name)
    def _(path, most=most, limit=limit, positions=positions):
        m.bert(path, max_position_embeddings=positions)
        m.st(path, "mean_tokens", max_len=most)
        if most is None:
            drop(path / "sentence_bert_config.json", "max_seq_length")
        if limit is None:
            drop(path / "tokenizer_config.json", "model_max_length")
        else:
            patch(path / "tokenizer_config.json", model_max_length=limit)


SCALED = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}
for kind, told in SCALED.items():

    @variant(f"length-of-positions-{kind}")
    def _(path, told=told):
        tok = m.qwen_tok(path, append=True, max_length=NO_LIMIT)
        most = 256 if told["rope_type"] == "yarn" else 64
        c = tf.Qwen2Config(
            vocab_size=tok.get_vocab_size(),
            max_position_embeddings=most,
            rope_parameters={"rope_theta": 10000.0, **told},
            **{**DEC, "hidden_size": 128},
        )
        weights(path, tf.Qwen2Model(c))
        m.st(path, "lasttoken")
        drop(path / "sentence_bert_config.json", "max_seq_length")


# Positions that are computed otherwise than by default, at lengths that no scaling reaches.
ROTARY = {
    "dynamic": SCALED["dynamic"],
    "linear": SCALED["linear"],
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0 + i / 16 for i in range(16)],
        "long_factor": [2.0 + i / 8 for i in range(16)],
        "original_max_position_embeddings": 256,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
}
for kind, told in ROTARY.items():
    for prefix in ("Llama", "Qwen3"):

        @variant(f"rotary-{kind}-{prefix.lower()}")
        def _(path, told=told, prefix=prefix):
            tok = m.qwen_tok(path, append=True)
            c = getattr(tf, f"{prefix}Config")(
                vocab_size=tok.get_vocab_size(),
                max_position_embeddings=1024 if "original_max_position_embeddings" in told else 256,
                rope_parameters={"rope_theta": 10000.0, **told},
                **DEC,
            )
            weights(path, getattr(tf, f"{prefix}Model")(c))
            m.st(path, "lasttoken", max_len=250)


for kind, told in ROTARY.items():

    @variant(f"rotary-beyond-{kind}", may_refuse=True)
    def _(path, told=told):
        """A text may be longer than the positions before scaling."""
        tok = m.qwen_tok(path, append=True)
        told = told | ({"original_max_position_embeddings": 64} if len(told) > 2 else {})
        c = tf.LlamaConfig(
            vocab_size=tok.get_vocab_size(),
            max_position_embeddings=1024 if "original_max_position_embeddings" in told else 64,
            rope_parameters={"rope_theta": 10000.0, **told},
            **DEC,
        )
        weights(path, tf.LlamaModel(c))
        m.st(path, "lasttoken", max_len=250)


@variant("length-of-a-decoder")
def _(path):
    tok = m.qwen_tok(path, append=True, max_length=40)
    m.qwen_causal(path, tok)
    m.st(path, "lasttoken")
    drop(path / "sentence_bert_config.json", "max_seq_length")


@variant("length-of-roberta-positions", kind="positions")
def _(path):
    m.roberta(path)
    m.st(path, "mean_tokens")
    drop(path / "sentence_bert_config.json", "max_seq_length")
    patch(path / "tokenizer_config.json", model_max_length=NO_LIMIT)


@variant("cut-at-the-left")
def _(path):
    m.bert(path)
    m.st(path, "mean_tokens", max_len=40)
    patch(path / "tokenizer_config.json", truncation_side="left")


@variant("cut-and-padded-in-tokenizer-json")
def _(path):
    m.bert(path)
    m.st(path, "mean_tokens", max_len=64)
    cut = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
    pad = {
        "strategy": {"Fixed": 128},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    patch(path / "tokenizer.json", truncation=cut, padding=pad)


# --- cases ---


@variant("lower-case-in-tokenizer-config-only")
def _(path):
    m.bert(path, tok=m.bert_tok(path, lower=False))
    m.st(path, "mean_tokens")
    patch(path / "tokenizer_config.json", do_lower_case=True)


@variant("cased-in-tokenizer-config-only")
def _(path):
    m.bert(path)
    m.st(path, "mean_tokens")
    patch(path / "tokenizer_config.json", do_lower_case=False)


@variant("lower-case-in-both")
def _(path):
    m.bert(path)
    m.st(path, "mean_tokens", lower=True)


# --- lengths of vectors ---


@variant("scaled-and-cut")
def _(path):
    m.bert(path)
    m.st(path, "mean_tokens", config={"truncate_dim": 32})


# --- pairs ---


@variant("length-of-pairs", kind="rerank")
def _(path):
    m.FAMILIES["ms-marco-minilm"][0](path)
    patch(path / "tokenizer_config.json", model_max_length=48)


@variant("length-of-pairs-positions", kind="rerank")
def _(path):
    tok = m.bert_tok(path, max_length=NO_LIMIT)
    c = m.bert_config(tok, num_labels=1, max_position_embeddings=64)
    weights(path, tf.BertForSequenceClassification(c), config=BERT)


@variant("pairs-in-float32", kind="rerank")
def _(path):
    """As `CrossEncoder.set_keep_in_fp32_modules` is saved."""
    m.FAMILIES["ms-marco-minilm"][0](path)
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    dump(path / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": kind}])
    dump(path / "sentence_bert_config.json", {"transformer_task": "sequence-classification"})
    told = {"model_type": "CrossEncoder", "keep_in_fp32_modules": ["0.model.classifier"]}
    dump(path / "config_sentence_transformers.json", told)


def logit_score(path, template: str, true: str, false: str | None, **chat) -> None:
    """Write sentence-transformers' files for a language model that answers about pairs."""
    tok = json.loads((path / "tokenizer.json").read_text())
    ids = tok["model"]["vocab"] | {t["content"]: t["id"] for t in tok["added_tokens"]}
    patch(path / "tokenizer_config.json", chat_template=template)
    kinds = {
        "": "sentence_transformers.base.modules.transformer.Transformer",
        "1_LogitScore": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
    }
    rows = [
        {"idx": i, "name": str(i), "path": p, "type": t} for i, (p, t) in enumerate(kinds.items())
    ]
    dump(path / "modules.json", rows)
    dump(
        path / "1_LogitScore/config.json",
        {"true_token_id": ids[true], "false_token_id": None if false is None else ids[false]},
    )
    forward = {"method": "forward", "method_output_name": "logits"}
    dump(
        path / "sentence_bert_config.json",
        {
            "transformer_task": "text-generation",
            "modality_config": {"text": forward, "message": {**forward, "format": "flat"}},
            "module_output_name": "causal_logits",
            **({"processing_kwargs": {"chat_template": chat}} if chat else {}),
        },
    )
    dump(
        path / "config_sentence_transformers.json",
        {
            "__version__": {"sentence_transformers": "5.4.0"},
            "activation_fn": "torch.nn.modules.linear.Identity",
            "default_prompt_name": None,
            "model_type": "CrossEncoder",
            "prompts": {},
        },
    )


@family("qwen3-reranker-st", "Qwen/Qwen3-Reranker-4B", kind="rerank-predict")
def _(path):
    """As its repository has had it since sentence-transformers 5.4."""
    m.FAMILIES["qwen3-reranker"][0](path)
    logit_score(path, JUDGE, "yes", "no")

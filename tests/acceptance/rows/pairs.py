"""Rerankers: classifiers, and language models that answer a question about a pair."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.acceptance import tokenizers_ as toks
from tests.acceptance.nets import (
    BERT,
    CAMEMBERT,
    DEC,
    ELECTRA,
    ENC,
    GEMMA,
    GTE,
    MODERN,
    QWEN2_CAUSAL,
    QWEN3,
    ROBERTA,
    SAYS,
    XLMR,
    encoder,
    net,
)
from tests.acceptance.steps import IDENTITY, dump, listed, patch, tensors, write
from tests.acceptance.table import WEB, family, like, pair, reranker

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.steps import State, Step

# A row is a line or two: a table, and not code.
# fmt: off

TOKENIZER = "tokenizer_config.json"
ONE = "ForSequenceClassification"
SIGMOID = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}

# --- classifiers ---

MINILM = BERT.but(ONE, num_labels=1,
    says={"sentence_transformers": {"activation_fn": IDENTITY, "version": "4.1.0.dev0"}})
BGE = XLMR.but(ONE, num_labels=1)
BGE_M3 = BGE.but(tok=toks.xlmr(8192), max_position_embeddings=8194)
TWO = {"id2label": {0: "irrelevant", 1: "relevant"}, "label2id": {"irrelevant": 0, "relevant": 1}}
DEBERTA = net("DebertaV2", toks.saved(toks.wordpiece, toks.MARKS), ONE, num_labels=1,
    relative_attention=True, pos_att_type=["p2c", "c2p"], **ENC)
reranker("bge-reranker-base", "BAAI/bge-reranker-base", BGE)
reranker("bge-reranker-v2-m3", "BAAI/bge-reranker-v2-m3", BGE_M3)
reranker("ms-marco-minilm", "cross-encoder/ms-marco-MiniLM-L6-v2", MINILM)
reranker("ms-marco-electra", "cross-encoder/ms-marco-electra-base", ELECTRA.but(ONE, num_labels=1))
reranker("gte-reranker-modernbert", "Alibaba-NLP/gte-reranker-modernbert-base",
    MODERN.but(ONE, num_labels=1, classifier_pooling="mean", says=SIGMOID))
family("mxbai-rerank-v1", "mixedbread-ai/mxbai-rerank-base-v1", DEBERTA, kind="refuse")
reranker("camembert-reranker", "someone/crossencoder-camembert-base",
    CAMEMBERT.but(ONE, num_labels=1))
reranker("gte-multilingual-reranker-native", "alibaba-nlp-community/gte-multilingual-reranker-base",
    GTE.but(ONE))

# --- labels and scores ---


def certain(state: State) -> State:
    """Make all sigmoids 1 in float32."""
    return state | {"classifier.bias": state["classifier.bias"] + 19.0}


reranker("certain-reranker", "someone/certain-reranker", MINILM, tensors(certain))
reranker("two-labels", "someone/two-labels", BERT.but(ONE, **TWO),
    args=("--score-label", "relevant"), label=1)
reranker("nli-3-labels", "cross-encoder/nli-roberta-base", ROBERTA.but(ONE, num_labels=3),
    may_refuse=True)

# --- what a pair becomes ---


def second_numbered(path: Path) -> None:
    """Have the tokenizer number the second text of a pair."""
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    pieces = tokenizer["post_processor"]["pair"]
    second = [piece.get("Sequence", {}).get("id") for piece in pieces].index("B")
    for piece in pieces[second:]:
        next(iter(piece.values()))["type_id"] = 1
    dump(path / "tokenizer.json", tokenizer)


def cross_encoder(transformer: dict, **main: object) -> tuple[Step, ...]:
    """Return the steps that write the files of a cross-encoder's one module."""
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    task = {"transformer_task": "sequence-classification"}
    return (
        write("modules.json", listed(("", kind))),
        write("sentence_bert_config.json", task | transformer),
        write("config_sentence_transformers.json", {"model_type": "CrossEncoder", **main}),
    )


PLAIN_TOKENIZER = {"tokenizer_class": "PreTrainedTokenizerFast",
    "model_input_names": toks.TWO_INPUTS}
reranker("modernbert-types", "someone/modernbert-reranker",
    MODERN.but(ONE, num_labels=1, classifier_pooling="cls"), second_numbered)
reranker("roberta-types", "someone/roberta-reranker", BGE, second_numbered,
    patch(TOKENIZER, **PLAIN_TOKENIZER))
reranker("llama-types", "someone/llama-reranker",
    net("Llama", toks.llama3(4096), ONE, max_position_embeddings=4096, num_labels=1, **DEC,
        ids={"pad_token_id": "<|end_of_text|>"}, says={"rope_theta": 10000.0},
        drop=("rope_parameters",)))
family("lower-case-pairs", "someone/lower-case-pairs",
    BERT.but(ONE, tok=toks.bert(lower=False), num_labels=1),
    *cross_encoder({"do_lower_case": True}), kind="rerank-lower")
# As `CrossEncoder.set_keep_in_fp32_modules` is saved.
pair("pairs-in-float32", MINILM, *cross_encoder({}, keep_in_fp32_modules=["0.model.classifier"]))
pair("length-of-pairs", MINILM, patch(TOKENIZER, model_max_length=48))
SHORT = encoder("Bert", ONE, num_labels=1, max_position_embeddings=64)
pair("length-of-pairs-positions", SHORT.but(tok=toks.bert(max_length=10**30), says=SAYS))
pair("value-pairs-without-types", MINILM, patch(TOKENIZER, model_input_names=toks.TWO_INPUTS))
pair("value-pairs-special-tokens-split", MINILM, patch(TOKENIZER, split_special_tokens=True),
    may_refuse=True)

# --- language models ---

ASKED = toks.qwen(append=False, eos="<|im_end|>", words=("Yes", "yes", "No", "no"))
RERANKER = QWEN3.but("ForCausalLM", tok=ASKED, max_position_embeddings=40960)
HEADED = RERANKER.but(ONE, num_labels=1, ids={"pad_token_id": "<|endoftext|>"},
    says={"architectures": [f"Qwen3{ONE}"], **SIGMOID})


def converted(path: Path) -> None:
    """Make the head the difference of two rows of the embeddings, as conversions on the hub do."""
    vocab = {
        token["content"]: token["id"]
        for token in json.loads((path / "tokenizer.json").read_text())["added_tokens"]
    }

    def edit(state: State) -> State:
        rows = state["model.embed_tokens.weight"]
        return state | {"score.weight": (rows[vocab["yes"]] - rows[vocab["no"]])[None]}

    tensors(edit)(path)


family("qwen3-reranker", "Qwen/Qwen3-Reranker-0.6B", RERANKER, kind="rerank-yes-no")
like("qwen3-reranker-renamed", "qwen3-reranker", hub="my-company/reranker")
family("qwen3-reranker-seq-cls", "tomaarsen/Qwen3-Reranker-0.6B-seq-cls", HEADED, converted,
    kind="rerank-template")
family("qwen3-reranker-finetuned", "someone/Qwen3-Reranker-0.6B-finetuned-seq-cls", HEADED,
    kind="rerank-template")
family("bge-reranker-v2-gemma", "BAAI/bge-reranker-v2-gemma", GEMMA.but("ForCausalLM"),
    kind="rerank-gemma")
family("mxbai-rerank-v2", "mixedbread-ai/mxbai-rerank-base-v2",
    QWEN2_CAUSAL.but(tok=toks.qwen(append=False, max_length=32768)), kind="rerank-mxbai")
family("causal-reranker-unknown", "someone/causal-reranker",
    QWEN2_CAUSAL.but(tok=toks.qwen(append=False)), kind="refuse")
# https://huggingface.co/Qwen/Qwen3-Reranker-0.6B, tokenizer_config.json.
QUERY, DOCUMENT = (
    f'messages | selectattr("role", "eq", "{role}") | map(attribute="content") | first'
    for role in ("query", "document")
)
JUDGE = (
    '{%- set instruction = messages | selectattr("role", "eq", "system") '
    f'| map(attribute="content") | first | default("{WEB}") -%}}\n'
    f"{{%- set query_text = {QUERY} -%}}\n{{%- set document_text = {DOCUMENT} -%}}\n"
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: {{ instruction }}\n<Query>: {{ query_text }}\n"
    "<Document>: {{ document_text }}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n\n"
)
LOGIT_SCORE = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"


def logit_score(path: Path) -> None:
    """Write the files that Qwen3-Reranker's repository has had since sentence-transformers 5.4."""
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    forward = {"method": "forward", "method_output_name": "logits"}
    transformer = {
        "transformer_task": "text-generation",
        "modality_config": {"text": forward, "message": {**forward, "format": "flat"}},
        "module_output_name": "causal_logits",
    }
    main = {
        "__version__": {"sentence_transformers": "5.4.0"},
        "activation_fn": IDENTITY,
        "default_prompt_name": None,
        "prompts": {},
    }
    for step in cross_encoder(transformer, **main):
        step(path)
    found = json.loads((path / "modules.json").read_text())
    second = {"idx": 1, "name": "1", "path": "1_LogitScore", "type": LOGIT_SCORE}
    dump(path / "modules.json", [*found, second])
    answers = {"true_token_id": ids["yes"], "false_token_id": ids["no"]}
    dump(path / "1_LogitScore/config.json", answers)


family("qwen3-reranker-st", "Qwen/Qwen3-Reranker-4B", RERANKER, logit_score,
    patch(TOKENIZER, chat_template=JUDGE), kind="rerank-predict")

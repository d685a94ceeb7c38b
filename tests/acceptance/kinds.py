"""More checkpoints of the kinds that `make.py` has: what files can say, one difference each."""

from __future__ import annotations

import json
import shutil

import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from tests.acceptance import make as m
from tests.acceptance import tokenizers_ as toks
from tests.acceptance.make import BERT, DEC, ENC, ST, H, dump, family, variant, weights

IDENTITY = "torch.nn.modules.linear.Identity"
ACTIVATION = "torch.nn.modules.activation."


def patch(path, **changes) -> None:
    """Change keys of a JSON file."""
    dump(path, json.loads(path.read_text()) | changes)


def bert(path, pooling="mean_tokens", **more) -> None:
    m.bert(path)
    m.st(path, pooling, **more)


def then(path, *modules: tuple[str, str]) -> None:
    """Write modules.json anew: transformer, pooling, and these (folder, type)."""
    all_modules = [("", ST + "Transformer"), ("1_Pooling", ST + "Pooling"), *modules]
    rows = [
        {"idx": i, "name": str(i), "path": f, "type": t} for i, (f, t) in enumerate(all_modules)
    ]
    dump(path / "modules.json", rows)


def layer_norm(path, folder: str) -> None:
    dump(path / folder / "config.json", {"dimension": H})
    state = {"norm.weight": torch.rand(H) + 0.5, "norm.bias": torch.randn(H) * 0.3}
    save_file(state, str(path / folder / "model.safetensors"))


# --- modules ---


@variant("pooling-three-modes")
def _(path):
    bert(path, ["max_tokens", "weightedmean_tokens", "cls_token"], normalize=False)


@variant("pooling-new-keys")
def _(path):
    bert(path)
    new = {"embedding_dimension": H, "pooling_mode": ["lasttoken", "mean_sqrt_len_tokens"]}
    dump(path / "1_Pooling/config.json", {**new, "include_prompt": True})


@variant("weightedmean-without-prompt")
def _(path):
    prompts = {"query": "query: ", "document": "passage: "}
    bert(path, "weightedmean_tokens", include_prompt=False, prompts=prompts, normalize=False)


@variant("cls-and-max-without-prompt")
def _(path):
    prompts = {"query": "query: ", "document": ""}
    bert(path, ["cls_token", "max_tokens"], include_prompt=False, prompts=prompts)


@variant("layer-norm")
def _(path):
    bert(path)
    layer_norm(path, "2_LayerNorm")
    then(path, ("2_LayerNorm", ST + "LayerNorm"))


@variant("dense-normalize-layer-norm-dense")
def _(path):
    dense = [("2_Dense", H, H, True, ACTIVATION + "Mish"), ("5_Dense", H, 96, False, IDENTITY)]
    bert(path, dense=dense)
    layer_norm(path, "4_LayerNorm")
    order = ("2_Dense", "3_Normalize", "4_LayerNorm", "5_Dense")
    then(path, *((folder, ST + folder.partition("_")[2]) for folder in order))


@variant("dense-tanh-unsaid")
def _(path):
    bert(path, normalize=False, dense=[("2_Dense", H, H, True, IDENTITY)])
    dump(path / "2_Dense/config.json", {"in_features": H, "out_features": H, "bias": True})


@variant("dense-prelu-residual")
def _(path):
    bert(path, dense=[("2_Dense", H, 32, True, ACTIVATION + "PReLU")])
    patch(path / "2_Dense/config.json", use_residual=True)
    file = path / "2_Dense/model.safetensors"
    more = {
        "activation_function.weight": torch.tensor([0.1]),
        "residual.weight": torch.randn(32, H),
    }
    save_file(load_file(file) | more, str(file))


@variant("truncate-dim")
def _(path):
    bert(path, normalize=False, config={"truncate_dim": 32})


@variant("no-modules-bert")
def _(path):
    m.bert(path)


@variant("no-modules-qwen2")
def _(path):
    m.qwen_causal(path, m.qwen_tok(path, append=True))


@variant("no-modules-camembert-mlm")
def _(path):
    m.FAMILIES["sentence-camembert"][0](path)
    shutil.rmtree(path / "1_Pooling")
    (path / "modules.json").unlink()
    (path / "sentence_bert_config.json").unlink()  # nobody reads it without modules.json
    patch(path / "config.json", architectures=["CamembertForMaskedLM"])


@variant("saved-with-mlm-head")
def _(path):
    m.mlm_bert(path)
    m.st(path, "mean_tokens")


@variant("saved-with-roberta-mlm-head")
def _(path):
    tok = m.xlmr_tok(path)
    c = tf.XLMRobertaConfig(
        vocab_size=tok.get_vocab_size(),
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        **ENC,
    )
    weights(path, tf.XLMRobertaForMaskedLM(c), config=BERT, drop=["dtype"])
    m.st(path, "mean_tokens")


@variant("named-for-sequences")
def _(path):
    tok = m.bert_tok(path)
    weights(path, tf.BertForSequenceClassification(m.bert_config(tok)), config=BERT, drop=["dtype"])
    m.st(path, "mean_tokens")


@variant("named-for-sequences-modernbert", may_refuse=True)
def _(path):
    tok = m.modernbert_tok(path)
    weights(
        path,
        tf.ModernBertForMaskedLM(m.modernbert_config(tok)),
        config=m.MODERN,
        drop=["rope_parameters", "layer_types"],
    )
    m.st(path, "mean_tokens")


@variant("bidirectional-mistral", card={"query": f"Instruct: {m.WEB}\nQuery: ", "document": ""})
def _(path):
    m.FAMILIES["e5-mistral"][0](path)
    patch(path / "config.json", is_causal=False)


@variant("bidirectional-gemma2", may_refuse=True)
def _(path):
    m.FAMILIES["bge-multilingual-gemma2"][0](path)
    patch(path / "config.json", is_causal=False)


@variant("no-max-seq-length", kind="refuse")
def _(path):
    bert(path, max_len=None)


@variant("do-lower-case-roberta")
def _(path):
    m.roberta(path)
    m.st(path, "mean_tokens", lower=True)


@variant("distilbert-with-mlm-head")
def _(path):
    m.distil(path, "DistilBertForMaskedLM", tf.DistilBertForMaskedLM)
    m.st(path, "cls_token", dense=[("2_Dense", H, 32, True, ACTIVATION + "Tanh")])


REFUSED = {
    "unknown-module": lambda path: then(path, ("2_WordWeights", ST + "WordWeights")),
    "unknown-module-of-others": lambda path: then(path, ("2_Dense", "pylate.models.Dense.Dense")),
    "unknown-pooling-mode": lambda path: patch(path / "1_Pooling/config.json", pooling_mode_median_tokens=True),
    "unknown-pooling-key": lambda path: patch(path / "1_Pooling/config.json", temperature=2.0),
    "unknown-activation": lambda path: m.st(path, dense=[("2_Dense", H, H, True, "transformers.activations.GELUActivation")]),
    "unknown-dense-input": lambda path: (m.st(path, dense=[("2_Dense", H, H, True, IDENTITY)]), patch(path / "2_Dense/config.json", module_input_name="token_embeddings")),
    "unknown-transformer-key": lambda path: patch(path / "sentence_bert_config.json", query_length=32),
    "unknown-main-key": lambda path: dump(path / "config_sentence_transformers.json", {"query_prefix": "[Q] "}),
    "unknown-default-prompt": lambda path: dump(path / "config_sentence_transformers.json", {"prompts": {"query": "q: "}, "default_prompt_name": "other"}),
    "unknown-positions": lambda path: patch(path / "config.json", position_embedding_type="relative_key"),
    "unknown-code": lambda path: patch(path / "config.json", auto_map={"AutoModel": "modeling_mine.MyBertModel"}),
    "no-pooling": lambda path: dump(path / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": ST + "Transformer"}]),
    "pooling-before-transformer": lambda path: dump(path / "modules.json", list(reversed(json.loads((path / "modules.json").read_text())))),
    "weights-missing": lambda path: (m.st(path, dense=[("2_Dense", H, H, True, IDENTITY)]), (path / "2_Dense/model.safetensors").unlink()),
    "weights-of-another-size": lambda path: (m.st(path, dense=[("2_Dense", H, H, True, IDENTITY)]), patch(path / "2_Dense/config.json", out_features=H - 1)),
}  # fmt: skip
for name, change in REFUSED.items():

    @variant(name, kind="refuse")
    def _(path, change=change):
        bert(path)
        change(path)


# --- positions and prompts ---


@variant("max-seq-above-positions-roberta", kind="positions")
def _(path):
    m.roberta(path)
    m.st(path, "mean_tokens", max_len=2048)


@variant("max-seq-above-positions-distilbert", kind="positions")
def _(path):
    m.distil(path, "DistilBertModel")
    m.st(path, "mean_tokens", max_len=1024)


@variant("max-seq-above-positions-electra", kind="positions")
def _(path):
    tok = m.bert_tok(path, cls="ElectraTokenizer", max_length=2048)
    c = tf.ElectraConfig(
        vocab_size=tok.get_vocab_size(), embedding_size=H, max_position_embeddings=512, **ENC
    )
    weights(path, tf.ElectraModel(c), config=BERT)
    m.st(path, "mean_tokens", max_len=2048)


for number, names in enumerate(
    [
        ("search_query", "search_document"),
        ("retrieval.query", "retrieval.passage"),
        ("Retrieval-query", "Retrieval-document"),
        ("query", "corpus"),
    ]
):

    @variant(f"prompt-names-{number}", card={"query": "ask: ", "document": "tell: "})
    def _(path, names=names):
        bert(path, prompts=dict(zip(names, ("ask: ", "tell: "), strict=True)) | {"other": "o: "})


@variant("files-before-profile", "intfloat/e5-mine", card={"query": "ask: ", "document": ""})
def _(path):
    bert(path, prompts={"s2p_query": "ask: "})


# --- architectures ---


@family(
    "nomic-native",
    "someone/nomic-embed-text-v1.5-native",
    card={"query": "search_query: ", "document": "search_document: "},
)
def _(path):
    """As transformers' own class writes its configuration; the weights keep their names."""
    plain = m.nomic(path)
    shutil.rmtree(path)
    plain.rename(path)
    patch(path / "config.json", architectures=["NomicBertModel"])
    m.st(path, "mean_tokens", normalize=False, max_len=2048, dim=768)


@family(
    "jina-v3-one-adapter",
    "jinaai/jina-embeddings-v3",
    kind="one-adapter",
    native=True,
    args=[
        "--trust-remote-code",
        "true",
        "--engine-args",
        '{"hf_overrides": {"lora_adaptations": ["text-matching"]}}',
    ],
)
def _(path):
    m.jina_v3(path)


@family(
    "nomic-narrow",
    "someone/nomic-narrow",
    native=True,
    card={"query": "search_query: ", "document": "search_document: "},
)
def _(path):
    """Another width and another base of the rotary positions than transformers' defaults."""
    tok = m.bert_tok(path, max_length=2048)
    c = tf.NomicBertConfig(
        vocab_size=tok.get_vocab_size(),
        rope_parameters={"rope_type": "default", "rope_theta": 20000.0},
        **ENC,
    )
    weights(path, tf.NomicBertModel(c))
    plain = path.with_name(path.name + ".native")
    shutil.rmtree(plain, ignore_errors=True)
    shutil.copytree(path, plain)
    authors = {
        "activation_function": "swiglu",
        "architectures": ["NomicBertModel"],
        "layer_norm_epsilon": 1e-12,
        "max_trained_positions": 2048,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "model_type": "nomic_bert",
        "n_embd": H,
        "n_head": ENC["num_attention_heads"],
        "n_inner": ENC["intermediate_size"],
        "n_layer": ENC["num_hidden_layers"],
        "n_positions": 2048,
        "qkv_proj_bias": False,
        "rotary_emb_base": 20000,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "type_vocab_size": 2,
        "vocab_size": c.vocab_size,
    }
    dump(path / "config.json", authors)
    for p in (path, plain):
        m.st(p, "mean_tokens", max_len=2048)


def gte_native_pairs(path):
    t = m.xlmr_tok(path, 8192)
    c = tf.GteConfig(
        vocab_size=t.get_vocab_size(),
        pad_token_id=1,
        num_labels=1,
        rope_parameters={"rope_type": "default", "rope_theta": 160000},
        **ENC,
    )
    weights(path, tf.GteForSequenceClassification(c))


@family(
    "gte-multilingual-reranker-native",
    "alibaba-nlp-community/gte-multilingual-reranker-base",
    kind="rerank",
)
def _(path):
    gte_native_pairs(path)


@family("bge-m3-with-mean", "someone/bge-m3-legal")
def _(path):
    m.FAMILIES["bge-m3"][0](path)
    m.st(path, "mean_tokens", max_len=8192)


@family(
    "nemotron-pools-otherwise",
    "someone/llama-nemotron",
    kind="refuse",
    args=["--trust-remote-code", "true"],
)
def _(path):
    m.llama_bi(path)
    patch(path / "config.json", pooling="last")


@family("splade-sum-log1p", "example/splade-sum-log1p", kind="sparse")
def _(path):
    m.mlm_bert(path)
    m.sparse_modules(path)
    pooling = {"pooling_strategy": "sum", "activation_function": "log1p_relu"}
    dump(path / "1_SpladePooling/config.json", {**pooling, "word_embedding_dimension": None})


@family("splade-roberta", "example/splade-roberta", kind="refuse")
def _(path):
    tok = m.roberta_tok(path)
    c = tf.RobertaConfig(
        vocab_size=tok.get_vocab_size(),
        max_position_embeddings=514,
        type_vocab_size=1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        **ENC,
    )
    weights(path, tf.RobertaForMaskedLM(c), config=BERT, drop=["dtype"])
    m.sparse_modules(path)


# --- rerankers ---


@family("mxbai-rerank-v2", "mixedbread-ai/mxbai-rerank-base-v2", kind="rerank-mxbai")
def _(path):
    tok = m.qwen_tok(path, append=False)
    toks.save(
        path,
        tok,
        names=dict(eos_token="<|endoftext|>", pad_token="<|endoftext|>"),
        cls="Qwen2Tokenizer",
        max_length=32768,
        padding_side="left",
        add_prefix_space=False,
    )
    m.qwen_causal(path, tok)


@family("causal-reranker-unknown", "someone/causal-reranker", kind="refuse")
def _(path):
    m.qwen_causal(path, m.qwen_tok(path, append=False))


@family("camembert-reranker", "someone/crossencoder-camembert-base", kind="rerank")
def _(path):
    tok = m.xlmr_tok(path)
    c = tf.CamembertConfig(
        vocab_size=tok.get_vocab_size(),
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        num_labels=1,
        **ENC,
    )
    weights(path, tf.CamembertForSequenceClassification(c), config=BERT, drop=["dtype"])


@family(
    "two-labels", "someone/two-labels", kind="rerank", args=["--score-label", "relevant"], label=1
)
def _(path):
    tok = m.bert_tok(path)
    c = m.bert_config(
        tok, id2label={0: "irrelevant", 1: "relevant"}, label2id={"irrelevant": 0, "relevant": 1}
    )
    weights(path, tf.BertForSequenceClassification(c), config=BERT, drop=["dtype"])


@family("certain-reranker", "someone/certain-reranker", kind="rerank")
def _(path):
    """All of its sigmoids are 1 in float32."""
    m.FAMILIES["ms-marco-minilm"][0](path)
    file = path / "model.safetensors"
    state = load_file(file)
    state["classifier.bias"] = state["classifier.bias"] + 19.0
    save_file({k: v.contiguous() for k, v in state.items()}, str(file), {"format": "pt"})


def numbered(path, tok, names, **more):
    """Save a tokenizer that numbers the second text of a pair."""
    data = json.loads(tok.to_str())
    pair = data["post_processor"]["pair"]
    second = next(i for i, piece in enumerate(pair) if piece.get("Sequence", {}).get("id") == "B")
    for piece in pair[second:]:
        next(iter(piece.values()))["type_id"] = 1
    toks.save(path, toks.Tokenizer.from_str(json.dumps(data)), names=names, **more)


@family("lower-case-pairs", "someone/lower-case-pairs", kind="rerank-lower")
def _(path):
    tok = m.bert_tok(path, lower=False)
    c = m.bert_config(tok, num_labels=1)
    weights(path, tf.BertForSequenceClassification(c), config=BERT, drop=["dtype"])
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    dump(path / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": kind}])
    told = {"transformer_task": "sequence-classification", "do_lower_case": True}
    dump(path / "sentence_bert_config.json", told)
    dump(path / "config_sentence_transformers.json", {"model_type": "CrossEncoder"})


@family("modernbert-types", "someone/modernbert-reranker", kind="rerank")
def _(path):
    tok = m.modernbert_tok(path)
    names = dict(
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )
    numbered(path, tok, names, max_length=8192, model_input_names=["input_ids", "attention_mask"])
    weights(
        path,
        tf.ModernBertForSequenceClassification(
            m.modernbert_config(tok, num_labels=1, classifier_pooling="cls")
        ),
        config=m.MODERN,
        drop=["rope_parameters", "layer_types"],
    )


@family("roberta-types", "someone/roberta-reranker", kind="rerank")
def _(path):
    m.xlmr_pairs(path, 514, 512)
    tok, names = toks.unigram()
    numbered(path, tok, names, max_length=512, model_input_names=["input_ids", "attention_mask"])


@family("llama-types", "someone/llama-reranker", kind="rerank")
def _(path):
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
        max_length=4096,
        model_input_names=["input_ids", "attention_mask"],
    )
    c = tf.LlamaConfig(
        vocab_size=tok.get_vocab_size(),
        max_position_embeddings=4096,
        num_labels=1,
        pad_token_id=tok.token_to_id("<|end_of_text|>"),
        **DEC,
    )
    weights(
        path,
        tf.LlamaForSequenceClassification(c),
        config={"rope_theta": 10000.0},
        drop=["rope_parameters"],
    )


# --- encoders that vLLM has no class for, and runs transformers' own ---

WRAPPED = {
    "albert": ("Albert", dict(embedding_size=H)),
    "ernie": ("Ernie", {}),
    "megatron-bert": ("MegatronBert", {}),
    "convbert": ("ConvBert", dict(embedding_size=H)),
    "roformer": ("RoFormer", dict(embedding_size=H)),
    "squeezebert": ("SqueezeBert", dict(embedding_size=H)),
    "mobilebert": ("MobileBert", dict(embedding_size=H, intra_bottleneck_size=H, true_hidden_size=H)),
    "nystromformer": ("Nystromformer", {}),
    "roberta-prelayernorm": ("RobertaPreLayerNorm", dict(type_vocab_size=1)),
    "xlm-roberta-xl": ("XLMRobertaXL", dict(type_vocab_size=1)),
    "data2vec-text": ("Data2VecText", dict(type_vocab_size=1)),
    "eurobert": ("EuroBert", dict(num_key_value_heads=2, head_dim=32)),
    "xmod": ("Xmod", dict(type_vocab_size=1, languages=["en_XX"], default_language="en_XX", adapter_reduction_factor=2)),
    "mpnet": ("MPNet", {}),
    "deberta-v2": ("DebertaV2", {}),
}  # fmt: skip
for kind, (prefix, options) in WRAPPED.items():

    @variant(f"wrapped-{kind}", may_refuse=kind not in {"ernie", "eurobert"})
    def _(path, prefix=prefix, options=options):
        tok = m.xlmr_tok(path)
        ids = dict(bos_token_id=0, pad_token_id=1, eos_token_id=2)
        named = {**ENC, **ids, **options, "vocab_size": tok.get_vocab_size()}
        c = getattr(tf, f"{prefix}Config")(max_position_embeddings=514, **named)
        weights(path, getattr(tf, f"{prefix}Model")(c))
        m.st(path, "mean_tokens", max_len=500)

"""Repositories that people serve, and what is put before a text: who knows it, and what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tests.acceptance import tokenizers_ as toks
from tests.acceptance.nets import (
    BERT,
    CAMEMBERT,
    DEC,
    DISTIL,
    ENC,
    GEMMA2,
    GEMMA_IDS,
    LLAMA,
    MISTRAL,
    MODERN,
    QWEN2,
    QWEN3,
    ROBERTA,
    XLMR,
    net,
)
from tests.acceptance.steps import H, dense, drop, patch, remove, renamed, st, stand_in
from tests.acceptance.table import (
    TRUST,
    WEB,
    ask,
    example,
    family,
    instruct,
    like,
    overriding,
    steps,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.steps import Step

# A row is a line or two: a table, and not code.
# fmt: off

BGE = ask("Represent this sentence for searching relevant passages: ")
E5 = ask("query: ", "passage: ")
WEB_QUERY = instruct(WEB)

# --- encoders ---


def flag_heads(path: Path) -> None:
    """Write BGE-M3's two heads as FlagEmbedding saves them."""
    torch.save(torch.nn.Linear(H, 1).state_dict(), path / "sparse_linear.pt")
    torch.save(torch.nn.Linear(H, H).state_dict(), path / "colbert_linear.pt")


BGE_M3 = (XLMR.but(tok=toks.xlmr(8192), max_position_embeddings=8194), flag_heads)
family("bge-m3", "BAAI/bge-m3", *BGE_M3, st("cls_token", max_len=8192))
family("bge-m3-with-mean", "someone/bge-m3-legal", *BGE_M3, st(max_len=8192))
BGE_SMALL = (BERT, st("cls_token", lower=True))
family("bge-small-en", "BAAI/bge-small-en-v1.5", *BGE_SMALL, card=BGE)
family("bge-small-zh", "BAAI/bge-small-zh-v1.5", *BGE_SMALL,
    card=ask("为这个句子生成表示以用于检索相关文章："))
family("e5-base", "intfloat/e5-base-v2", BERT, st(), card=E5)
# No file says that its prompts are E5's.
family("e5-named-otherwise", "my-company/search-embedder", BERT, st(),
    unprompted=["query", "document"])
family("multilingual-e5-large", "intfloat/multilingual-e5-large", XLMR, st(), card=E5)
family("arctic-m-v1.5", "Snowflake/snowflake-arctic-embed-m-v1.5", BERT,
    st("cls_token", prompts={"query": BGE["query"]}), card=BGE)
family("mxbai-large", "mixedbread-ai/mxbai-embed-large-v1", BERT,
    st("cls_token", normalize=False, prompts={"query": BGE["query"], "passage": ""}), card=BGE)
family("gte-base", "thenlper/gte-base", BERT, st())
family("gte-modernbert", "Alibaba-NLP/gte-modernbert-base", MODERN,
    st("cls_token", normalize=False, max_len=8192))
family("granite-r2", "ibm-granite/granite-embedding-english-r2", MODERN,
    st("cls_token", max_len=8192))
family("granite-125m", "ibm-granite/granite-embedding-125m-english", ROBERTA, st("cls_token"))
TASKS = ("classification", "clustering", "search_query", "search_document")
family("ru-en-rosberta", "ai-forever/ru-en-RoSBERTa", ROBERTA,
    st("cls_token", prompts={task: f"{task}: " for task in TASKS}),
    card=ask("search_query: ", "search_document: "))
family("all-distilroberta", "sentence-transformers/all-distilroberta-v1",
    ROBERTA.but(says={"architectures": ["RobertaForMaskedLM"]}), st())
family("all-mpnet", "sentence-transformers/all-mpnet-base-v2",
    net("MPNet", toks.mpnet(), max_position_embeddings=514, layer_norm_eps=1e-5, pad_token_id=0,
        **ENC, says={"architectures": ["MPNetForMaskedLM"]}), st(max_len=384), may_refuse=True)
family("multi-qa-distilbert", "sentence-transformers/multi-qa-distilbert-cos-v1", DISTIL, st())
family("all-minilm", "sentence-transformers/all-MiniLM-L12-v2", BERT, st(max_len=128))
family("paraphrase-multilingual-minilm",
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2", BERT.but(tok=toks.xlmr()),
    st(normalize=False, max_len=128))
family("sentence-camembert", "dangvantuan/sentence-camembert-base", CAMEMBERT,
    st(normalize=False, max_len=128))
like("sentence-camembert-override", "sentence-camembert",
    args=overriding('{"architectures": ["EmbeddingServiceRobertaModel"]}'))
JINA_BERT = "jinaai/jina-bert-implementation--"
family("jina-v2", "jinaai/jina-embeddings-v2-base-en",
    BERT.but(tok=toks.bert(max_length=8192),
        says={"architectures": ["JinaBertForMaskedLM"], "position_embedding_type": "alibi",
            "max_position_embeddings": 8192, "feed_forward_type": "geglu",
            "auto_map": {"AutoConfig": JINA_BERT + "configuration_bert.JinaBertConfig",
                "AutoModelForMaskedLM": JINA_BERT + "modeling_bert.JinaBertForMaskedLM",
                "AutoModel": JINA_BERT + "modeling_bert.JinaBertModel"}, "emb_pooler": "mean"}),
    st(normalize=False, max_len=8192), kind="refuse")

# --- decoders ---

QWEN3_PROMPTS = ask(instruct(WEB, "\nQuery:"))
QWEN3_ST = (st("lasttoken", prompts=QWEN3_PROMPTS),)
family("qwen3-embedding", "Qwen/Qwen3-Embedding-0.6B", QWEN3, *QWEN3_ST,
    remove("sentence_bert_config.json"), dims=[32], card=QWEN3_PROMPTS)
family("qwen3-embedding-bf16", "Qwen/Qwen3-Embedding-4B",
    QWEN3.but(dtype=torch.bfloat16, says={"torch_dtype": "bfloat16"}, drop=("dtype",)),
    drop("config.json", "rope_scaling"), *QWEN3_ST, args=("--dtype", "bfloat16"), tolerance=0.999)
family("bge-multilingual-gemma2", "BAAI/bge-multilingual-gemma2", GEMMA2,
    st("lasttoken", max_len=8192, prompts={"web_search_query": f"<instruct>{WEB}.\n<query>"}),
    attention="eager", card=ask(f"<instruct>{WEB}.\n<query>"))
example("bidirectional-gemma2", *steps("bge-multilingual-gemma2"),
    patch("config.json", is_causal=False), may_refuse=True)
SIMILAR = "Retrieve semantically similar text"
E5_PROMPTS = {"web_search_query": WEB_QUERY, "sts_query": instruct(SIMILAR)}
family("e5-mistral", "intfloat/e5-mistral-7b-instruct", MISTRAL,
    st("lasttoken", max_len=4096, prompts=E5_PROMPTS), card=ask(WEB_QUERY))
example("bidirectional-mistral", *steps("e5-mistral"), patch("config.json", is_causal=False),
    card=ask(WEB_QUERY))
QWEN2_TOKENIZERS = ["tokenization_qwen.Qwen2Tokenizer", "tokenization_qwen.Qwen2TokenizerFast"]
QWEN2_CODE = {"AutoModel": "modeling_qwen.Qwen2Model",
    "AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM",
    "AutoModelForSequenceClassification": "modeling_qwen.Qwen2ForSequenceClassification"}


def gte_qwen2(max_length: int, **says: object) -> tuple[Step, ...]:
    """Return Qwen2 with code of its own, which attends in both directions."""
    own = {"add_eos_token": True, "auto_map": {"AutoTokenizer": QWEN2_TOKENIZERS}}
    said = {
        "architectures": ["Qwen2ForCausalLM"],
        "auto_map": QWEN2_CODE,
        "sliding_window": 131072,
        "use_sliding_window": False,
    }
    net = QWEN2.but(tok=toks.qwen(max_length=max_length, **own), says=said | says)
    return net, renamed("model.{}".format)


family("gte-qwen2", "Alibaba-NLP/gte-Qwen2-1.5B-instruct", *gte_qwen2(32768, is_causal=False),
    st("lasttoken", dim=128, max_len=8192, prompts={"query": WEB_QUERY}), card=ask(WEB_QUERY),
    bidirectional=True)
STELLA = {"s2p_query": instruct(f"{WEB}."), "s2s_query": instruct(f"{SIMILAR}.")}
family("stella-1.5b", "NovaSearch/stella_en_1.5B_v5", *gte_qwen2(131072),
    st(dim=128, normalize=False, layers=(dense("2_Dense", 128, 96),), prompts=STELLA),
    card=ask(STELLA["s2p_query"]), bidirectional=True)
like("stella-1.5b-override", "stella-1.5b", args=overriding('{"is_causal": false}'))
family(
    "bge-code",
    "BAAI/bge-code-v1",
    QWEN2,
    st("lasttoken", dim=128, max_len=4096),
    card=ask(
        "<instruct>Given a question in text, retrieve SQL queries that are appropriate "
        "responses to the question.\n<query>"
    ),
)
SEARCH, NO_TITLE = "task: search result | query: ", "title: none | text: "
GEMMA_PROMPTS = {"query": SEARCH, "document": NO_TITLE, "BitextMining": SEARCH,
    "Clustering": "task: clustering | query: ", "Classification": "task: classification | query: ",
    "InstructionRetrieval": "task: code retrieval | query: ", "Retrieval-query": SEARCH,
    "Retrieval-document": NO_TITLE, "STS": "task: sentence similarity | query: ",
    "Summarization": "task: summarization | query: "}
SLIDING = ["sliding_attention", "sliding_attention", "full_attention"]
EMBEDDING_GEMMA = net("Gemma3Text", toks.gemma(2048), **{**DEC, "num_hidden_layers": 3},
    **GEMMA_IDS, max_position_embeddings=2048, sliding_window=24, use_bidirectional_attention=True,
    layer_types=SLIDING,
    says={"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window": 13,
        "torch_dtype": "float32", "use_bidirectional_attention": True}, drop=("rope_parameters",))
family("embeddinggemma", "google/embeddinggemma-300m", EMBEDDING_GEMMA,
    st(max_len=2048,
        layers=(dense("2_Dense", H, 256, bias=False), dense("3_Dense", 256, H, bias=False)),
        prompts=GEMMA_PROMPTS), card=ask(SEARCH, NO_TITLE), dims=[32])
NEMOTRON_CODE = "llama_bidirectional_model"
NEMOTRON = (
    LLAMA.but(
        says={"architectures": ["LlamaBidirectionalModel"], "model_type": "llama_bidirec",
            "pooling": "avg", "temperature": 1.0,
            "auto_map": {"AutoConfig": f"{NEMOTRON_CODE}.LlamaBidirectionalConfig",
                "AutoModel": f"{NEMOTRON_CODE}.LlamaBidirectionalModel"}}),
    stand_in("nemotron", f"{NEMOTRON_CODE}.py"), st(max_len=8192, prompts=E5))
family("llama-nemotron-embed", "nvidia/llama-nemotron-embed-1b-v2", *NEMOTRON, bidirectional=True,
    args=TRUST, card=E5)
like("llama-nemotron-embed-notrust", "llama-nemotron-embed",
    hub="nvidia/llama-3.2-nv-embedqa-1b-v2", kind="refuse", args=())
like("nemotron-pools-otherwise", "llama-nemotron-embed", patch("config.json", pooling="last"),
    hub="someone/llama-nemotron", kind="refuse")

# --- what files can say of prompts ---

example("default-prompt-shape", BERT,
    st(prompts={"query": "query: ", "passage": "passage: ", "corpus": "corpus: "},
        default_prompt_name="passage"), card=E5)
example("include-prompt-false", BERT, st(include_prompt=False, prompts=E5))
example("default-prompt-encode-query", BERT,
    st(prompts={"retrieval": "retrieve: ", "corpus": "corpus: "}, default_prompt_name="retrieval"))
NAMES = (("search_query", "search_document"), ("retrieval.query", "retrieval.passage"),
    ("Retrieval-query", "Retrieval-document"), ("query", "corpus"))
for number, (query, document) in enumerate(NAMES):
    prompts = {query: "ask: ", document: "tell: ", "other": "o: "}
    example(f"prompt-names-{number}", BERT, st(prompts=prompts), card=ask("ask: ", "tell: "))
family("files-before-profile", "intfloat/e5-mine", BERT, st(prompts={"s2p_query": "ask: "}),
    card=ask("ask: "))

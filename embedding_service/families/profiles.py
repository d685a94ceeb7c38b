"""The needs of each model family beyond its files: prompts, Matryoshka sizes, vLLM overrides.

Plain data, found by what the files say, then by name. Used by the worker (to load) and by the
gateway (to prompt); imports neither vLLM nor a tokenizer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from embedding_service.families import architectures

if TYPE_CHECKING:
    from collections.abc import Collection

QWEN_TASK = "Given a web search query, retrieve relevant passages that answer the query"


@dataclass(frozen=True, slots=True)
class PairPrompt:
    """How a reranker that is asked in words wants its question.

    `head`, query, document and `tail` follow one another; the pieces of the tail are tokenised one
    by one. `query` is its form without an instruction, `instructed` with one (None: the model
    takes none), `instruction` the default one. `separator` stands between query and document,
    which are tokenised apart; None: they are tokenised as one text.
    """

    head: str
    tail: tuple[str, ...]
    query: str | None = None
    document: str = ""
    separator: str | None = None
    instructed: str | None = None
    instruction: str | None = None


# https://huggingface.co/Qwen/Qwen3-Reranker-0.6B, "Transformers Usage".
QWEN_PAIR = PairPrompt(
    head="<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
    'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n",
    instructed="<Instruct>: {instruction}\n<Query>: {query}\n<Document>: ",
    instruction=QWEN_TASK,
    tail=("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",),
)
# https://github.com/mixedbread-ai/mxbai-rerank, `MxbaiRerankV2`.
MXBAI_PAIR = PairPrompt(
    head="<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\n<|im_start|>user\n",
    query="query: {query}",
    instructed="instruction: {instruction}\nquery: {query}",
    separator="\n",
    document="document: ",
    tail=(
        "\n",
        (
            "You are a search relevance expert who evaluates how well documents match search "
            "queries. For each query-document pair, carefully analyze the semantic relationship "
            "between them, then provide your binary relevance judgment (0 for not relevant, 1 for "
            "relevant).\nRelevance:"
        ),
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
)
# FlagEmbedding, `inference/reranker/decoder_only/base.py`.
GEMMA_PAIR = PairPrompt(
    head="<bos>",
    query="A: {query}",
    separator="\n",
    document="B: ",
    tail=(
        "\n",
        (
            "Given a query A and a passage B, determine whether the passage contains an answer to "
            "the query by providing a prediction of either 'Yes' or 'No'."
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Profile:
    """Prompts and load options of a model family.

    `names` recognises it by its name, `files` by one of the files named, `template` by words in
    its chat template, `architectures` by its config.json. `serves` names the architectures in
    config.json that `hf_overrides` and `pair_prompt` are for (empty: all).

    `instruction_template` turns an instruction into the text put before the input (None: the
    model was not trained with instructions). `query` and `document` are the prompts for
    `input_type` where the model's own files have none; without `typed`, those in the files are for
    adapters that are not served. `prompted` recognises a text that already
    carries a prompt of this family. `matryoshka` lists the sizes that vectors may be cut to, empty
    for any from `smallest_dimension` on, None for no; `layer_norm_before_cut` is a step of its
    authors' recipe for that. `replaces` names, by the checkpoint's architecture, one of ours to
    load in its place.
    """

    name: str
    names: str = r"(?!)"
    files: tuple[str, ...] = ()
    template: str | None = None
    architectures: tuple[str, ...] = ()
    serves: tuple[str, ...] = ()
    instruction_template: str | None = None
    default_instruction: str | None = None
    query: str | None = None
    document: str | None = None
    prompted: str | None = None
    matryoshka: tuple[int, ...] | None = None
    smallest_dimension: int = 1
    layer_norm_before_cut: bool = False
    typed: bool = True
    pair_prompt: PairPrompt | None = None
    hf_overrides: dict[str, Any] = field(default_factory=dict)
    replaces: dict[str, str] = field(default_factory=dict)


PROFILES = (
    # https://huggingface.co/Qwen/Qwen3-Embedding-0.6B: queries instructed, documents bare.
    Profile(
        "qwen3-embedding",
        names=r"qwen3[-_.]?(vl[-_.]?)?embedding",
        instruction_template="Instruct: {instruction}\nQuery:",
        default_instruction=QWEN_TASK,
        document="",
        prompted=r"Instruct: [^\n]*\nQuery:",
        matryoshka=(),
        smallest_dimension=32,
    ),
    Profile(
        "qwen3-reranker",
        names=r"qwen3[-_.]?(vl[-_.]?)?reranker",
        template="Judge whether the Document meets the requirements",
        serves=("Qwen3ForCausalLM",),
        pair_prompt=QWEN_PAIR,
        hf_overrides={
            "architectures": ["Qwen3ForSequenceClassification"],
            "classifier_from_token": ["no", "yes"],
            "is_original_qwen3_reranker": True,
        },
    ),
    # Converted: the head is in the checkpoint.
    Profile(
        "qwen3-reranker-seq-cls",
        names=r"qwen3[-_.]?(vl[-_.]?)?reranker",
        template="Judge whether the Document meets the requirements",
        serves=("Qwen3ForSequenceClassification",),
        pair_prompt=QWEN_PAIR,
    ),
    # https://huggingface.co/mixedbread-ai/mxbai-rerank-base-v2
    Profile(
        "mxbai-rerank-v2",
        names=r"mxbai[-_.]rerank.*v2",
        serves=("Qwen2ForCausalLM",),
        pair_prompt=MXBAI_PAIR,
        hf_overrides={
            "architectures": ["Qwen2ForSequenceClassification"],
            "classifier_from_token": ["0", "1"],
            "method": "from_2_way_softmax",
        },
    ),
    # https://huggingface.co/BAAI/bge-reranker-v2-gemma
    Profile(
        "bge-reranker-v2-gemma",
        names=r"bge[-_.]reranker[-_.]v2[-_.]gemma",
        serves=("GemmaForCausalLM",),
        pair_prompt=GEMMA_PAIR,
        hf_overrides={
            "architectures": ["GemmaForSequenceClassification"],
            "classifier_from_token": ["Yes"],
            "method": "no_post_processing",
        },
    ),
    # https://huggingface.co/BAAI/bge-m3: no instruction for queries.
    Profile(
        "bge-m3",
        names=r"bge[-_.]m3",
        files=("sparse_linear.pt", "colbert_linear.pt"),
        architectures=(architectures.BGE_M3,),
        serves=("XLMRobertaModel", architectures.BGE_M3),
        query="",
        document="",
        hf_overrides={"architectures": [architectures.BGE_M3]},
    ),
    # https://huggingface.co/naver/splade-v3 and its kin, where no modules.json tells.
    Profile(
        "splade",
        names=r"splade",
        architectures=(architectures.SPLADE, architectures.DISTIL_SPLADE),
        query="",
        document="",
        replaces=architectures.SPARSE,
    ),
    # https://huggingface.co/intfloat/multilingual-e5-large-instruct
    Profile(
        "e5-instruct",
        names=r"\be5\b.*instruct",
        instruction_template="Instruct: {instruction}\nQuery: ",
        default_instruction=QWEN_TASK,
        document="",
        prompted=r"Instruct: [^\n]*\nQuery:",
    ),
    # https://huggingface.co/intfloat/e5-large-v2: every text carries one of two prefixes.
    Profile(
        "e5", names=r"\be5\b", query="query: ", document="passage: ", prompted=r"(query|passage): "
    ),
    # https://huggingface.co/BAAI/bge-multilingual-gemma2
    Profile(
        "bge-multilingual-gemma2",
        names=r"bge[-_.]multilingual[-_.]gemma2",
        instruction_template="<instruct>{instruction}\n<query>",
        default_instruction=f"{QWEN_TASK}.",
        document="",
        prompted=r"<instruct>[^\n]*\n<query>",
    ),
    # https://huggingface.co/BAAI/bge-code-v1
    Profile(
        "bge-code",
        names=r"bge[-_.]code",
        instruction_template="<instruct>{instruction}\n<query>",
        default_instruction="Given a question in text, retrieve SQL queries that are appropriate "
        "responses to the question.",
        document="",
        prompted=r"<instruct>[^\n]*\n<query>",
    ),
    # https://huggingface.co/BAAI/bge-en-icl: its queries also have an end, "\n<response>", which
    # no prompt can say.
    Profile("bge-en-icl", names=r"bge[-_.]en[-_.]icl"),
    # https://huggingface.co/BAAI/bge-large-en-v1.5, and its Chinese sister.
    Profile(
        "bge-zh",
        names=r"\bbge\b.*\bzh\b",
        instruction_template="{instruction}",
        query="为这个句子生成表示以用于检索相关文章：",
        document="",
    ),
    Profile(
        "bge",
        names=r"\bbge[-_.](small|base|large)\b",
        instruction_template="{instruction} ",
        query="Represent this sentence for searching relevant passages: ",
        document="",
    ),
    # https://huggingface.co/nomic-ai/nomic-embed-text-v2-moe: its files have the prompts.
    Profile("nomic-v2", names=r"nomic[-_.]embed[-_.]text[-_.]v2", matryoshka=(256, 768)),
    # https://huggingface.co/nomic-ai/nomic-embed-text-v1.5, "Adjusting dimensionality".
    Profile(
        "nomic-v1.5",
        names=r"nomic[-_.]embed[-_.]text[-_.]v1\.5",
        query="search_query: ",
        document="search_document: ",
        prompted=r"(search_query|search_document|clustering|classification): ",
        matryoshka=(64, 128, 256, 512, 768),
        layer_norm_before_cut=True,
    ),
    Profile(
        "nomic",
        names=r"nomic[-_.]embed[-_.]text",
        architectures=("NomicBertModel",),
        query="search_query: ",
        document="search_document: ",
        prompted=r"(search_query|search_document|clustering|classification): ",
    ),
    # https://huggingface.co/mixedbread-ai/mxbai-embed-large-v1
    Profile(
        "mxbai-embed",
        names=r"mxbai[-_.]embed[-_.]large[-_.]v1",
        query="Represent this sentence for searching relevant passages: ",
        document="",
        matryoshka=(),
        smallest_dimension=64,
    ),
    # https://huggingface.co/Snowflake/snowflake-arctic-embed-m-v1.5
    Profile(
        "arctic-embed-m-v1.5", names=r"arctic[-_.]embed[-_.]m[-_.]v1\.5", matryoshka=(256, 768)
    ),
    # https://huggingface.co/jinaai/jina-embeddings-v3-hf: a prompt goes with its task's adapter.
    Profile("jina-v3", architectures=("JinaEmbeddingsV3Model",), typed=False),
    # https://huggingface.co/google/embeddinggemma-300m
    Profile(
        "embeddinggemma",
        names=r"embedding[-_.]?gemma",
        query="task: search result | query: ",
        document="title: none | text: ",
        prompted=r"(task: [^|]* \| query|title: [^|]* \| text): ",
        matryoshka=(128, 256, 512, 768),
    ),
    # https://huggingface.co/Alibaba-NLP/gte-multilingual-base: elastic from 128 on.
    Profile(
        "gte-multilingual",
        names=r"gte[-_.]multilingual[-_.]base",
        matryoshka=(),
        smallest_dimension=128,
    ),
)
PLAIN = Profile("plain")
_BY_NAME = {profile.name: profile for profile in (*PROFILES, PLAIN)}


def named(name: str) -> Profile:
    """Return the profile of this name."""
    return _BY_NAME.get(name, PLAIN)


def find(
    *, model_name: str, architecture: str = "", files: Collection[str] = (), template: str = ""
) -> Profile:
    """Return the first profile that fits, else one without prompts.

    `architecture` is that of config.json, `files` are those of `MARKS` that the checkpoint has,
    `template` is its chat template.
    """
    name = model_name.lower()
    for profile in PROFILES:
        serves = not profile.serves or not architecture or architecture in profile.serves
        if serves and _fits(profile, name, architecture, files, template):
            return profile
    return PLAIN


def _fits(
    profile: Profile, name: str, architecture: str, files: Collection[str], template: str
) -> bool:
    """Look at what the files say, and then at the name."""
    return (
        architecture in profile.architectures
        or not set(files).isdisjoint(profile.files)
        or (profile.template is not None and profile.template in template)
        or re.search(profile.names, name) is not None
    )


MARKS = tuple(chain.from_iterable(profile.files for profile in PROFILES))

"""The needs of each model family beyond its files: prompts, Matryoshka sizes, vLLM overrides.

Plain data, found by architecture and name. Used by the worker (to load) and by the gateway
(to prompt); imports neither vLLM nor a tokenizer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from embedding_service.families import architectures

QWEN_TASK = "Given a web search query, retrieve relevant passages that answer the query"


@dataclass(frozen=True, slots=True)
class PairPrompt:
    """How a reranker that is asked in words wants its question: head, query, document, tail."""

    head: str
    query: str
    tail: str
    instruction: str


# https://huggingface.co/Qwen/Qwen3-Reranker-0.6B, "Transformers Usage".
QWEN_PAIR = PairPrompt(
    head="<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
    'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n",
    query="<Instruct>: {instruction}\n<Query>: {query}\n<Document>: ",
    tail="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    instruction=QWEN_TASK,
)


@dataclass(frozen=True, slots=True)
class Profile:
    """Prompts and load options of a model family.

    `instruction_template` turns an instruction into the text put before the input (None: the
    model was not trained with instructions). `query` and `document` are the prompts for
    `input_type`, and win over those in the model's own files. `prompted` recognises a text that
    already carries a prompt of this family. `matryoshka` lists the sizes that vectors may be cut
    to, empty for any from `smallest_dimension` on, None for no. `replaces` names, by the
    checkpoint's architecture, one of ours to load in its place.
    """

    name: str
    names: str = r"(?!)"
    architectures: tuple[str, ...] = ()
    instruction_template: str | None = None
    default_instruction: str | None = None
    query: str | None = None
    document: str | None = None
    prompted: str | None = None
    matryoshka: tuple[int, ...] | None = None
    smallest_dimension: int = 1
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
        pair_prompt=QWEN_PAIR,
        hf_overrides={
            "architectures": ["Qwen3ForSequenceClassification"],
            "classifier_from_token": ["no", "yes"],
            "is_original_qwen3_reranker": True,
        },
    ),
    # https://huggingface.co/BAAI/bge-m3: no instruction for queries.
    Profile(
        "bge-m3",
        names=r"bge[-_.]m3",
        architectures=(architectures.BGE_M3,),
        query="",
        document="",
        hf_overrides={"architectures": [architectures.BGE_M3]},
    ),
    # https://huggingface.co/naver/splade-v3 and its kin. The files of a SPLADE model are those of
    # any masked language model, so it is its name that tells.
    Profile(
        "splade",
        names=r"splade",
        architectures=(architectures.SPLADE,),
        query="",
        document="",
        replaces={"BertForMaskedLM": architectures.SPLADE},
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
        names=r"\bbge\b(?!.*rerank)",
        instruction_template="{instruction} ",
        query="Represent this sentence for searching relevant passages: ",
        document="",
    ),
)
PLAIN = Profile("plain")


def find(*, model_name: str, architecture: str = "") -> Profile:
    """Return the first profile that fits the architecture or the name, else one without prompts."""
    name = model_name.lower()
    for profile in PROFILES:
        if architecture in profile.architectures or re.search(profile.names, name):
            return profile
    return PLAIN

"""Tiny random-weight checkpoints for the tests of one architecture, built in about a second each.

The architectures are those of the acceptance suite; the tokenizers know the words of `CORPUS` as
whole pieces, so that a test can count tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.acceptance import tokenizers_ as toks
from tests.acceptance.nets import BERT, END, QWEN3, SEED, XLMR
from tests.acceptance.steps import IDENTITY, remove, st
from tests.acceptance.steps import H as HIDDEN

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from tests.acceptance.steps import Step

# Pieces that the tokenizers know whole; the characters in it are pieces too, all others are
# unknown.
CORPUS: Final = (
    "the quick brown fox jumps over the lazy dog and a dense vector meets a sparse vector in one pass "
    "What is the capital of France ? Paris is the capital of France . Berlin is in Germany , not here ! "
    "Быстрая лиса прыгает через ленивую собаку Москва столица России "
    "Η γρήγορη αλεπού Αθήνα الثعلب البني السريع القاهرة तेज़ लोमड़ी दिल्ली "
    "敏捷 的 棕色 狐狸 跳过 了 懒狗 北京 素早い 茶色の 狐 東京 빠른 갈색 여우 서울 สุนัขจิ้งจอก "
    "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z a b c d e f g h i j k l m n o p q r s t u v w x y z "
    "0 1 2 3 4 5 6 7 8 9 - _ / : ; ( ) < > | ' \""
)
QWEN3_QUERY_PROMPT: Final = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
)


def tiny_bge_m3(path: Path, *, heads: Collection[str] = ("sparse", "colbert")) -> Path:
    """BGE-M3: XLM-RoBERTa with 8,194 positions, and of its two heads those that are named."""

    def save_heads(path: Path) -> None:
        linears = {"sparse": torch.nn.Linear(HIDDEN, 1), "colbert": torch.nn.Linear(HIDDEN, HIDDEN)}
        with torch.no_grad():
            linears["sparse"].weight.normal_(std=0.2)
            linears["sparse"].bias.fill_(0.5)  # some weights are positive and some are not
        for name in heads:
            torch.save(linears[name].state_dict(), path / f"{name}_linear.pt")

    return _make(path, _XLMR, save_heads, st("cls_token", max_len=8192, prompts={}))


def tiny_xlmr_reranker(path: Path) -> Path:
    """bge-reranker-v2-m3: XLM-RoBERTa sequence classification with one label."""
    return _make(path, _XLMR.but("ForSequenceClassification", num_labels=1))


def tiny_bert_cross_encoder(path: Path) -> Path:
    """ms-marco-MiniLM: BERT sequence classification with one label, token types and 512 positions."""
    says = {"sentence_transformers": {"activation_fn": IDENTITY, "version": "4.1.0.dev0"}}
    return _make(path, _BERT.but("ForSequenceClassification", num_labels=1, says=says))


def tiny_splade(path: Path) -> Path:
    """naver/splade-v3: a BERT masked language model, its decoder tied to the word embeddings."""
    return _make(path, _BERT.but("ForMaskedLM"))


def tiny_qwen3_embedding(path: Path) -> Path:
    """Qwen3-Embedding: appends `<|endoftext|>`, pools the last token, has prompts, no `model.`."""
    prompts = {"query": QWEN3_QUERY_PROMPT, "document": ""}
    net = _QWEN3.but(tok=toks.saved(lambda: _byte_level(append_end=True), _ENDS, **_LEFT))
    return _make(path, net, st("lasttoken", prompts=prompts), remove("sentence_bert_config.json"))


def tiny_qwen3_reranker(path: Path) -> Path:
    """Qwen3-Reranker: a causal language model, scored by its logits for `yes` and `no`."""
    tok = toks.saved(lambda: _byte_level(append_end=False), _ENDS, **_LEFT)
    return _make(path, _QWEN3.but("ForCausalLM", tok=tok))


def _make(path: Path, *steps: Step) -> Path:
    torch.manual_seed(SEED)
    for step in steps:
        step(path)
    return path


def _byte_level(*, append_end: bool) -> Tokenizer:
    """Build a byte-level BPE tokenizer in which `yes` and `no` are single tokens."""
    vocab = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for word in ["yes", "no", *CORPUS.split(), *(f" {word}" for word in CORPUS.split())]:
        for text, _ in byte_level.pre_tokenize_str(word):
            for end in range(2, len(text) + 1):
                if text[:end] not in vocab:
                    vocab[text[:end]] = len(vocab)
                    merges.append((text[: end - 1], text[end - 1]))
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END, "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<think>", "</think>"])
    if append_end:
        toks.template(tokenizer, f"$A {END}", f"$A {END} $B {END}")
    return tokenizer


# A tool of the tests decodes ids and tokenises the text again.
_TOLD: Final = {"clean_up_tokenization_spaces": False}
_ENDS: Final = {"eos_token": "<|im_end|>", "pad_token": END}
_LEFT: Final = {"padding_side": "left", "max_length": 131072, **_TOLD}
_TYPED: Final = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"], **_TOLD}
_BERT: Final = BERT.but(tok=toks.saved(lambda: toks.wordpiece(text=CORPUS), toks.MARKS, **_TYPED))
_XLMR: Final = XLMR.but(
    tok=toks.saved(lambda: toks.unigram(CORPUS), toks.ANGLES, max_length=8192, **_TOLD),
    max_position_embeddings=8194,
)
_QWEN3: Final = QWEN3.but(ids={"bos_token_id": END, "eos_token_id": "<|im_end|>"})

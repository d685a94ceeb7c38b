# mypy: disable-error-code="no-untyped-call, call-arg"
# transformers leaves models untyped, and its configs take more than they declare.
"""Tiny random-weight checkpoints of the true architectures, built on the spot in about a second
each.

Laid out as the originals are on the Hub: the same config keys, special-token ids and
sentence-transformers files, with real fast tokenizers. Attention heads have 32 numbers, the
least that vLLM's CPU attention takes. Weights come from a fixed seed, spread wide enough that
different texts get clearly different vectors.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)
from transformers.utils.logging import disable_progress_bar

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from transformers import PreTrainedModel

HIDDEN: Final = 64
SEED: Final = 20240205
# What the tokenizers know as whole pieces; the characters in it are pieces too, all others are
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
    tokenizer = _xlmr_tokenizer(max_length=8192)
    _seed()
    _save(XLMRobertaModel(_xlmr_config(tokenizer, positions=8194)), tokenizer, path)
    linears = {"sparse": torch.nn.Linear(HIDDEN, 1), "colbert": torch.nn.Linear(HIDDEN, HIDDEN)}
    with torch.no_grad():
        linears["sparse"].weight.normal_(std=0.2)
        linears["sparse"].bias.fill_(0.5)  # some weights are positive and some are not
    for name in heads:
        torch.save(linears[name].state_dict(), path / f"{name}_linear.pt")
    _save_sentence_transformers(path, pooling="cls_token", prompts={})
    _write_json(
        path / "sentence_bert_config.json", {"max_seq_length": 8192, "do_lower_case": False}
    )
    return path


def tiny_xlmr_reranker(path: Path) -> Path:
    """bge-reranker-v2-m3: XLM-RoBERTa sequence classification with one label."""
    tokenizer = _xlmr_tokenizer(max_length=8192)
    _seed()
    config = _xlmr_config(tokenizer, positions=8194, num_labels=1)
    return _save(XLMRobertaForSequenceClassification(config), tokenizer, path)


def tiny_bert_cross_encoder(path: Path) -> Path:
    """ms-marco-MiniLM: BERT sequence classification with one label, token types and 512 positions."""
    tokenizer = _wordpiece_tokenizer()
    _seed()
    config = BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        num_labels=1,
        sentence_transformers={
            "activation_fn": "torch.nn.modules.linear.Identity",
            "version": "4.1.0.dev0",
        },
        **_ENCODER,
    )
    return _save(BertForSequenceClassification(config), tokenizer, path)


def tiny_splade(path: Path) -> Path:
    """naver/splade-v3: a BERT masked language model, its decoder tied to the word embeddings."""
    tokenizer = _wordpiece_tokenizer()
    _seed()
    model = BertForMaskedLM(
        BertConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **_ENCODER)
    )
    return _save(model, tokenizer, path)


def tiny_qwen3_embedding(path: Path) -> Path:
    """Qwen3-Embedding: its tokenizer appends `<|endoftext|>`; last-token pooling, prompts, no
    `model.` prefix.
    """
    tokenizer = _qwen3_tokenizer(append_end=True)
    _seed()
    _save(Qwen3ForCausalLM(_qwen3_config(tokenizer)).model, tokenizer, path)
    config = json.loads((path / "config.json").read_text())
    _write_json(path / "config.json", config | {"architectures": ["Qwen3ForCausalLM"]})
    _save_sentence_transformers(
        path, pooling="lasttoken", prompts={"query": QWEN3_QUERY_PROMPT, "document": ""}
    )
    return path


def tiny_qwen3_reranker(path: Path) -> Path:
    """Qwen3-Reranker: a causal language model, scored by its logits for `yes` and `no`."""
    tokenizer = _qwen3_tokenizer(append_end=False)
    _seed()
    return _save(Qwen3ForCausalLM(_qwen3_config(tokenizer)), tokenizer, path)


_ENCODER: Final[dict[str, Any]] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "initializer_range": 0.2,
    # transformers 5 no longer writes this. Without it vLLM takes the number of positions for the
    # longest input, two more than XLM-R has; with it, the tokenizer's `model_max_length`.
    "position_embedding_type": "absolute",
}


def _xlmr_config(
    tokenizer: PreTrainedTokenizerFast, *, positions: int, **more: Any
) -> XLMRobertaConfig:
    return XLMRobertaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=positions,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        **_ENCODER,
        **more,
    )


def _qwen3_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    vocab = tokenizer.get_vocab()
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=128,
        max_position_embeddings=32768,
        rope_theta=1_000_000,
        tie_word_embeddings=True,
        bos_token_id=vocab["<|endoftext|>"],
        eos_token_id=vocab["<|im_end|>"],
        initializer_range=0.2,
    )


def _xlmr_tokenizer(*, max_length: int) -> PreTrainedTokenizerFast:
    """Build a SentencePiece-like Unigram tokenizer with XLM-R's layout: `<s>` 0, `<pad>` 1, `</s>`
    2, `<unk>` 3.
    """
    words = [f"▁{word}" for word in dict.fromkeys(CORPUS.split())]
    characters = ["▁", *dict.fromkeys(CORPUS.replace(" ", ""))]
    pieces = [(word, -8.0) for word in words] + [
        (char, -12.0) for char in characters if char not in words
    ]
    specials = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    tokenizer = Tokenizer(models.Unigram([*specials, *pieces], unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.add_special_tokens(
        ["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def _wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = dict.fromkeys(CORPUS.lower().split())
    characters = dict.fromkeys("".join(words))
    pieces = dict.fromkeys([*specials, *characters, *(f"##{char}" for char in characters), *words])
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _qwen3_tokenizer(*, append_end: bool) -> PreTrainedTokenizerFast:
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
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<think>", "</think>"])
    if append_end:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <|endoftext|>",
            pair="$A <|endoftext|> $B <|endoftext|>",
            special_tokens=[("<|endoftext|>", tokenizer.get_vocab()["<|endoftext|>"])],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=131072,
        padding_side="left",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
    )


def _seed() -> None:
    torch.manual_seed(SEED)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, path: Path) -> Path:
    disable_progress_bar()
    with (
        torch.no_grad()
    ):  # else all norms' weights are 1, so all vectors have one length, and all biases 0
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    model.eval().save_pretrained(path)
    tokenizer.save_pretrained(path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    # transformers 5 writes a class name that transformers 4 does not know; both know this one.
    _write_json(
        path / "tokenizer_config.json", config | {"tokenizer_class": "PreTrainedTokenizerFast"}
    )
    return path


def _save_sentence_transformers(path: Path, *, pooling: str, prompts: dict[str, str]) -> None:
    """Write the files by which sentence-transformers, and vLLM, know the pooling and the prompts."""
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    _write_json(
        path / "modules.json",
        [
            {
                "idx": index,
                "name": str(index),
                "path": folder,
                "type": f"sentence_transformers.models.{kind}",
            }
            for index, (kind, folder) in enumerate(kinds.items())
        ],
    )
    modes = (
        "cls_token",
        "mean_tokens",
        "max_tokens",
        "mean_sqrt_len_tokens",
        "weightedmean_tokens",
        "lasttoken",
    )
    (path / "1_Pooling").mkdir(exist_ok=True)
    _write_json(
        path / "1_Pooling" / "config.json",
        {"word_embedding_dimension": HIDDEN, "include_prompt": True}
        | {f"pooling_mode_{mode}": mode == pooling for mode in modes},
    )
    _write_json(
        path / "config_sentence_transformers.json",
        {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False))

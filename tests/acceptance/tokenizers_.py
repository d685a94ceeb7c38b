"""Small tokenizers of the right kind, trained on the prose below, laid out as the real repositories have them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

if TYPE_CHECKING:
    from pathlib import Path

PROSE = [
    "The quick brown fox jumps over the lazy dog, and a dense vector meets a sparse vector in one pass.",
    "What is the capital of France? Paris is the capital of France. Berlin is in Germany, not here!",
    "A query asks for a passage; a document answers it. search_query: search_document: query: passage: title: none text:",
    "Instruct: Given a web search query, retrieve relevant passages that answer the query. Query: represent this sentence",
    "Embedding models map sentences to vectors such that similar sentences are close to each other in space.",
    "HELLO World, Mixed CASE Text Is Not Lower Case; NASA, IBM and the EU met in New York on 12 March 2024.",
    "Быстрая лиса прыгает через ленивую собаку. Москва — столица России. Запрос и документ.",
    "Η γρήγορη αλεπού πηδά. Αθήνα. الثعلب البني السريع القاهرة तेज़ लोमड़ी दिल्ली",
    "敏捷的棕色狐狸跳过了懒狗。北京是中国的首都。素早い茶色の狐。東京 빠른 갈색 여우 서울",
    "0123456789 - _ / : ; ( ) < > | ' \" @ # $ % & * + = [ ] { } ~ ^ ` \\ é ü ß ñ ç",
] * 4


def wordpiece(
    lower: bool = True,
    *,
    marks=("[CLS]", "[SEP]"),
    unk="[UNK]",
    pad="[PAD]",
    mask="[MASK]",
    types=True,
    extra=(),
):
    cls, sep = marks
    specials = [pad, unk, cls, sep, mask, *extra]
    tok = Tokenizer(models.WordPiece(unk_token=unk))
    tok.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.train_from_iterator(
        PROSE, trainers.WordPieceTrainer(vocab_size=700, special_tokens=specials)
    )
    tok.decoder = decoders.WordPiece()
    second = ":1" if types else ""
    pair = (
        f"{cls} $A {sep} $B{second} {sep}{second}"
        if cls == "[CLS]"
        else f"{cls} $A {sep} {sep} $B {sep}"
    )
    ids = [(t, tok.token_to_id(t)) for t in (cls, sep)]
    tok.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=pair, special_tokens=ids
    )
    names = dict(unk_token=unk, pad_token=pad, cls_token=cls, sep_token=sep, mask_token=mask)
    return tok, names


def unigram(*, lower=False):
    """XLM-R: <s> 0, <pad> 1, </s> 2, <unk> 3, <mask> last."""
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    tok = Tokenizer(models.Unigram())
    steps = [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    tok.normalizer = normalizers.Sequence(steps)
    tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tok.train_from_iterator(
        PROSE, trainers.UnigramTrainer(vocab_size=600, special_tokens=specials, unk_token="<unk>")
    )
    tok.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tok.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    names = dict(
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
    return tok, names


def byte_bpe(
    specials, *, single=None, pair=None, first=True, prefix_space=False, size=800, normalizer=None
):
    """Byte-level BPE; `first`: special tokens have the first ids (RoBERTa), else the last (Qwen)."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizer
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tok.train_from_iterator(
        PROSE,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(specials) if first else [],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens(list(specials))
    if single:
        used = sorted(
            {
                p.split(":")[0]
                for p in (single + " " + (pair or "")).split()
                if not p.startswith("$")
            }
        )
        tok.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[(t, tok.token_to_id(t)) for t in used]
        )
    return tok


def piece_bpe(*, style: str, eos: bool, specials=("<unk>", "<s>", "</s>")):
    """SentencePiece BPE with byte fallback: `llama` (a leading ▁), `gemma` (none)."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if style == "llama":
        tok.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tok.normalizer = normalizers.Replace(" ", "▁")
        tok.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    pieces = [f"<0x{i:02X}>" for i in range(256)]
    tok.train_from_iterator(
        [" ".join(s.split()[i : i + 1]) for s in PROSE for i in range(len(s.split()))],
        trainers.BpeTrainer(
            vocab_size=1000, special_tokens=[*specials, *pieces], initial_alphabet=["▁"]
        ),
    )
    data = json.loads(tok.to_str())  # bytes are pieces, not special tokens
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] in specials]
    tok = Tokenizer.from_str(json.dumps(data))
    bos, end = ("<s>", "</s>") if "<s>" in specials else ("<bos>", "<eos>")
    one = f"{bos} $A {end}" if eos else f"{bos} $A"
    tok.post_processor = processors.TemplateProcessing(
        single=one,
        pair=one + " " + one.replace("$A", "$B:1"),
        special_tokens=[(t, tok.token_to_id(t)) for t in (bos, end)],
    )
    return tok


def save(
    folder: Path,
    tok: Tokenizer,
    *,
    names: dict,
    cls: str = "PreTrainedTokenizerFast",
    max_length=512,
    **more,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tok.save(str(folder / "tokenizer.json"))
    data = {
        "tokenizer_class": cls,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": True,
        **names,
        **more,
    }
    added = {}
    for i, t in sorted(tok.get_added_tokens_decoder().items()):
        added[str(i)] = {
            k: getattr(t, k)
            for k in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        }
    data["added_tokens_decoder"] = added
    (folder / "tokenizer_config.json").write_text(json.dumps(data, indent=1, ensure_ascii=False))
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=1, ensure_ascii=False))

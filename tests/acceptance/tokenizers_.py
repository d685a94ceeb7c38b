"""Small tokenizers of the right kinds, laid out as repositories have them.

The library trains WordPiece and Unigram otherwise each time, so that those two take the words and
characters as they are; byte-pair encodings are trained.
"""

from __future__ import annotations

import json
from string import punctuation
from typing import TYPE_CHECKING, Any

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
    from collections.abc import Callable
    from pathlib import Path

    Writer = Callable[[Path], Tokenizer]

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
]
TEXT = " ".join(PROSE)
MARKS = {
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ANGLES = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
FLAGS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
TWO_INPUTS = ["input_ids", "attention_mask"]


def template(tok: Tokenizer, single: str, pair: str) -> None:
    """Have special tokens put around a text, and around a pair of them."""
    pieces = {piece.split(":")[0] for piece in f"{single} {pair}".split()}
    used = sorted(piece for piece in pieces if not piece.startswith("$"))
    tok.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, tok.token_to_id(token)) for token in used]
    )


# --- the kinds ---


def words_of(text: str, *, lower: bool = False) -> list[str]:
    """Return a text's different words, without the punctuation around them."""
    words = (text.lower() if lower else text).split()
    return [*dict.fromkeys(word.strip(punctuation) or word for word in words)]


def characters_of(text: str) -> list[str]:
    """Return a text's different characters."""
    return [*dict.fromkeys("".join(text.split()))]


def wordpiece(names: dict[str, str] = MARKS, *, lower: bool = True, text: str = TEXT) -> Tokenizer:
    """BERT's: the pieces are the words of a text and its characters, alone and within a word."""
    specials = [names[f"{kind}_token"] for kind in ("pad", "unk", "cls", "sep", "mask")]
    characters = characters_of(text.lower() if lower else text)
    within = [f"##{character}" for character in characters]
    pieces = dict.fromkeys([*specials, *characters, *within, *words_of(text, lower=lower)])
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tok = Tokenizer(models.WordPiece(vocabulary, unk_token=names["unk_token"]))
    tok.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.decoder = decoders.WordPiece()
    tok.add_special_tokens(specials)
    cls, sep = names["cls_token"], names["sep_token"]
    second = f"$B:1 {sep}:1" if cls == "[CLS]" else f"{sep} $B {sep}"
    template(tok, f"{cls} $A {sep}", f"{cls} $A {sep} {second}")
    return tok


def unigram(text: str = TEXT) -> Tokenizer:
    """XLM-R's: <s> 0, <pad> 1, </s> 2, <unk> 3, the words and characters of a text, <mask> last."""
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    words = [f"▁{word}" for word in words_of(text)]
    scores = dict.fromkeys(specials, 0.0) | dict.fromkeys(words, -8.0)
    scores |= dict.fromkeys(["▁", *characters_of(text)], -12.0)
    tok = Tokenizer(models.Unigram([*scores.items()], unk_id=3, byte_fallback=False))
    steps = [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    tok.normalizer = normalizers.Sequence(steps)
    tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tok.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tok.add_special_tokens([*specials, AddedToken("<mask>", lstrip=True)])
    template(tok, "<s> $A </s>", "<s> $A </s> </s> $B </s>")
    return tok


def byte_bpe(
    specials: tuple[str, ...], single: str = "", pair: str = "", *, first: bool = False
) -> Tokenizer:
    """Byte-level BPE; `first`: special tokens have the first ids (RoBERTa), else the last."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=list(specials) if first else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tok.train_from_iterator(PROSE * 4, trainer)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens(list(specials))
    if single:
        template(tok, single, pair)
    return tok


def piece_bpe(specials: tuple[str, ...], *, eos: bool) -> Tokenizer:
    """SentencePiece BPE with byte fallback: Llama's begins with ▁, Gemma's with nothing."""
    llama = "<s>" in specials
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    if llama:
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    else:
        tok.normalizer = spaces
        tok.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    pieces = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=[*specials, *pieces], initial_alphabet=["▁"]
    )
    tok.train_from_iterator(TEXT.split() * 4, trainer)
    data = json.loads(tok.to_str())  # bytes are pieces, not special tokens
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] in specials]
    tok = Tokenizer.from_str(json.dumps(data))
    bos, end = ("<s>", "</s>") if llama else ("<bos>", "<eos>")
    one = f"{bos} $A {end}" if eos else f"{bos} $A"
    template(tok, one, one + " " + one.replace("$A", "$B:1"))
    return tok


# --- as repositories have them ---


def saved(
    make: Callable[[], Tokenizer],
    names: dict[str, str],
    cls: str = "PreTrainedTokenizerFast",
    max_length: int = 512,
    **told: Any,
) -> Writer:
    """Return what makes a tokenizer and writes tokenizer.json and the two files beside it."""

    def write(folder: Path) -> Tokenizer:
        tok = make()
        folder.mkdir(parents=True, exist_ok=True)
        tok.save(str(folder / "tokenizer.json"))
        added = {
            str(i): {flag: getattr(token, flag) for flag in FLAGS}
            for i, token in sorted(tok.get_added_tokens_decoder().items())
        }
        usual = {"model_max_length": max_length, "clean_up_tokenization_spaces": True, **names}
        config = {"tokenizer_class": cls, **usual, **told, "added_tokens_decoder": added}
        for name, value in (("tokenizer_config", config), ("special_tokens_map", names)):
            text = json.dumps(value, indent=1, ensure_ascii=False)
            (folder / f"{name}.json").write_text(text)
        return tok

    return write


def bert(*, lower: bool = True, max_length: int = 512, cls: str = "BertTokenizer") -> Writer:
    """BERT's and its kind's."""
    told = {"do_lower_case": lower, "tokenize_chinese_chars": True, "strip_accents": None}
    return saved(lambda: wordpiece(lower=lower), MARKS, cls, max_length, **told)


def mpnet() -> Writer:
    """WordPiece with XLM-R's special tokens."""
    names = {**ANGLES, "unk_token": "[UNK]"}
    return saved(lambda: wordpiece(names), names, "MPNetTokenizer", do_lower_case=True)


def xlmr(max_length: int = 512) -> Writer:
    """XLM-R's and CamemBERT's."""
    return saved(unigram, ANGLES, "XLMRobertaTokenizer", max_length)


def roberta() -> Writer:
    """RoBERTa's."""
    specials, around = ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "<s> $A </s>"
    told = {"add_prefix_space": False, "trim_offsets": True}
    return saved(
        lambda: byte_bpe(specials, around, f"{around} </s> $B </s>", first=True),
        ANGLES,
        "RobertaTokenizer",
        **told,
    )


def modernbert() -> Writer:
    """ModernBERT's."""
    specials, around = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"), "[CLS] $A [SEP]"
    return saved(
        lambda: byte_bpe(specials, around, f"{around} $B [SEP]"),
        MARKS,
        max_length=8192,
        model_input_names=TWO_INPUTS,
    )


def qwen(
    *,
    append: bool = True,
    max_length: int = 131072,
    eos: str = "<|endoftext|>",
    words: tuple[str, ...] = (),
    **more: Any,
) -> Writer:
    """Qwen's; `append`: <|endoftext|> behind each text; `words` are tokens of their own."""
    end = "<|endoftext|>"
    around = (f"$A {end}", f"$A {end} $B {end}") if append else ()

    def make() -> Tokenizer:
        tok = byte_bpe((end, "<|im_start|>", "<|im_end|>"), *around)
        tok.add_tokens(list(words))
        return tok

    told = {"padding_side": "left", "add_prefix_space": False, **more}
    return saved(make, {"eos_token": eos, "pad_token": end}, "Qwen2Tokenizer", max_length, **told)


def llama3(max_length: int = 131072) -> Writer:
    """Llama 3's, which numbers the second text of a pair."""
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    names = {"bos_token": begin, "eos_token": end, "pad_token": end}
    return saved(
        lambda: byte_bpe((begin, end), f"{begin} $A", f"{begin} $A {begin} $B:1"),
        names,
        max_length=max_length,
        model_input_names=TWO_INPUTS,
    )


def llama2() -> Writer:
    """Mistral's, with an end behind each text."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    told = {"padding_side": "left", "legacy": True, "use_default_system_prompt": False}
    return saved(
        lambda: piece_bpe(("<unk>", "<s>", "</s>"), eos=True),
        names,
        "LlamaTokenizer",
        int(1e30),  # no limit, as transformers writes it
        add_bos_token=True,
        add_eos_token=True,
        **told,
    )


def gemma(max_length: int, *, eos: bool = True) -> Writer:
    """Gemma's; `eos`: an end behind each text."""
    specials = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    told = {"add_bos_token": True, "add_eos_token": eos}
    return saved(lambda: piece_bpe(specials, eos=eos), GEMMA, "GemmaTokenizer", max_length, **told)

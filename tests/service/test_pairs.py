"""Pairs, without an engine: a cross-encoder reads what it was trained on, and a head is read once."""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_service.errors import ContextLengthExceeded, InvalidRequest
from embedding_service.families.profiles import QWEN_PAIR
from embedding_service.service.pairs import PairEncoder
from embedding_service.settings.model import ModelOptions
from embedding_service.types import RerankJob
from embedding_service.worker.fake import FakeBackend
from tests.service.test_slices import TEXTS, byte_level, tokenizer, whole, without_words

if TYPE_CHECKING:
    from embedding_service.service.slices import Count, Steps

PLENTY = 10**9
KINDS = [byte_level.__name__, without_words.__name__]
SOME = TEXTS.filter(bool)


@cache
def reader(kind: str, max_tokens: int = 100_000) -> PairEncoder:
    """Return the encoder of a reranker that is asked in words."""
    options = ModelOptions(engine="fake", model_name="qwen3-reranker")
    facts = msgspec.structs.replace(FakeBackend(options).facts(32), max_tokens=max_tokens)
    return PairEncoder(facts, tokenizer(kind).to_str().encode(), options)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(SOME, SOME), min_size=1, max_size=5), TEXTS)
def test_a_pair_is_read_as_its_reference_reads_it(
    kind: str, pairs: list[tuple[str, str]], instruction: str
) -> None:
    """Head and document are tokenised apart, and the tokens are those of both together."""
    job = RerankJob(None, pairs, instruction=instruction)
    prepared = reader(kind).prepare(job, max_total=PLENTY)
    for ids, (query, document) in zip(prepared.ids, pairs, strict=True):
        asked = (
            (QWEN_PAIR.instructed or "")
            .replace("{instruction}", instruction)
            .replace("{query}", query)
        )
        text = whole(kind, asked + document)
        assert ids.tolist() == [
            *whole(kind, QWEN_PAIR.head),
            *text,
            *whole(kind, QWEN_PAIR.tail[0]),
        ]


def test_an_instruction_is_read_once() -> None:
    """A long instruction costs as much for 256 documents as for a few."""
    job = RerankJob(None, [("fox", "dog")] * 256, instruction="the quick fox " * 900)
    began = time.thread_time()
    prepared = reader(KINDS[0]).prepare(job, max_total=PLENTY)
    assert time.thread_time() - began < 0.5  # 1.1 s when each pair was read as a whole
    assert prepared.total > 256 * 2000


def test_an_instruction_counts() -> None:
    """The head that all pairs share counts for every pair, and it has to fit."""
    job = RerankJob(None, [("fox", "dog")] * 256, instruction="fox " * 3000)
    with pytest.raises(InvalidRequest, match="more than 300000 tokens"):
        reader(KINDS[0]).prepare(job, max_total=300_000)
    with pytest.raises(ContextLengthExceeded, match="Shorten the query"):
        reader(KINDS[0], 512).prepare(job, max_total=300_000)


def test_an_endless_instruction_is_refused_at_its_beginning() -> None:
    """An instruction of which the beginning is too long already is not read to its end."""
    job = RerankJob(None, [("fox", "dog")], instruction="狐" * 2_000_000)
    began = time.thread_time()
    with pytest.raises(ContextLengthExceeded):
        reader(KINDS[0], 512).prepare(job, max_total=300_000)
    assert time.thread_time() - began < 0.5


def cross_encoder(max_tokens: int) -> PairEncoder:
    """Return the encoder of a reranker with a template of its own, whose words are tokens."""
    options = ModelOptions(engine="fake", model_name="fake")
    core = FakeBackend(options)
    facts = msgspec.structs.replace(core.facts(32), max_tokens=max_tokens)
    return PairEncoder(facts, core.tokenizer_json, options)


def test_queries_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many queries are refused when all of them have too many tokens, not each by itself."""
    pairs, read = cross_encoder(1000), 0
    inner = pairs._slices.read

    def counted(texts: list[str], count: Count) -> Steps[list[list[int]]]:
        nonlocal read
        read += 1
        return inner(texts, count)

    monkeypatch.setattr(pairs._slices, "read", counted)
    job = RerankJob(None, [(f"w{i} " + "w1 " * 99, "w2") for i in range(64)])
    with pytest.raises(InvalidRequest, match="more than 1000 tokens") as caught:
        pairs.prepare(job, max_total=1000)
    assert (caught.value.param, read) == ("query", 11)


@pytest.mark.parametrize(
    "cut",
    [
        {"cut_longest": True, "left": False, "max_tokens": 13},
        {"cut_longest": True, "left": True, "max_tokens": 13},
        {"cut_documents": True, "max_tokens_per_document": 9},
    ],
)
def test_documents_that_are_cut_count_as_much_as_is_kept(cut: dict[str, Any]) -> None:
    """The same of documents: what is read and cut off counts for nothing."""
    job = RerankJob(None, [("w2", f"w{i} " + "w1 " * 99) for i in range(20)], **cut)
    prepared = cross_encoder(1000).prepare(job, max_total=1000)
    assert {len(ids) for ids in prepared.ids} == {13}


@pytest.mark.parametrize("left", [False, True])
def test_queries_that_are_cut_count_as_much_as_is_kept(left: bool) -> None:
    """Tokens that are cut off count for nothing: pairs that fit are not refused for their queries."""
    asked = [(f"w{i} " + "w1 " * 99, "w2") for i in range(20)]
    job = RerankJob(None, asked, cut_longest=True, left=left, max_tokens=13)
    prepared = cross_encoder(1000).prepare(job, max_total=1000)
    assert [len(ids) for ids in prepared.ids] == [13] * 20


def test_a_models_tokenizer_may_cut_the_beginning() -> None:
    """The end of a document is what is left of it, and the query stays whole."""
    options = ModelOptions(engine="fake", model_name="fake")
    backend = FakeBackend(options)
    facts = msgspec.structs.replace(backend.facts(32), max_tokens=8, cuts_left=True)
    encoder = PairEncoder(facts, backend.tokenizer_json, options)
    job = RerankJob(None, [("w1 w2", "w3 w4 w5 w6 w7 w8")])
    (ids,) = encoder.prepare(job, max_total=PLENTY).ids
    kept = [token for token in ids.tolist() if token >= 100]
    assert kept[:2] == [101, 102]
    assert kept[2:] == [106, 107, 108][-len(kept[2:]) :]
    assert len(ids) == 8


def test_an_instruction_is_no_template() -> None:
    """Text that looks like a place in the prompt is text, and does not multiply a query."""
    job = RerankJob(None, [("fox " * 5000, "dog")], instruction="{query}" * 5000)
    plain = RerankJob(None, [("fox " * 5000, "dog")], instruction="(quert)" * 5000)
    read, expected = (
        reader(KINDS[0]).prepare(each, max_total=PLENTY).total for each in (job, plain)
    )
    assert read < 2 * expected

"""Prompts, tokens and truncation, without an engine: what the model is made to read."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import bpe_openai
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from embedding_service.errors import ContextLengthExceeded, InvalidRequest
from embedding_service.service import cl100k
from embedding_service.service.prompts import Encoder, Prepared
from embedding_service.settings.model import AliasSettings, ModelOptions
from embedding_service.types import EmbedJob, InputType, TokenIdPolicy, Truncate
from embedding_service.worker.fake import CLS, SEP, VOCABULARY, FakeBackend

PLENTY = 10**9
QWEN_TASK = "Given a web search query, retrieve relevant passages that answer the query"


def encoder(
    *, tokenizer: Tokenizer | None = None, facts: dict[str, Any] | None = None, **options: Any
) -> Encoder:
    """Return the encoder of a fake model."""
    chosen = ModelOptions(engine="fake", **{"model_name": "fake", **options})
    core = FakeBackend(chosen)
    described = msgspec.structs.replace(core.facts(32), **(facts or {}))
    return Encoder(
        described, tokenizer.to_str().encode() if tokenizer else core.tokenizer_json, chosen
    )


@cache
def short(context: int) -> Encoder:
    """Return the encoder of a fake model with a context of so many tokens; made once."""
    return encoder(max_model_len=context)


@cache
def native(context: int) -> Encoder:
    """Return the same for a model that reads token ids as its own."""
    return encoder(max_model_len=context, token_ids="native")


def job(*inputs: Any, **fields: Any) -> EmbedJob:
    if "input_type" in fields:
        fields["input_type"] = InputType(fields["input_type"])
    return EmbedJob(model="fake", inputs=list(inputs), **fields)


def words(count: int, first: int = 0) -> str:
    """Return `count` words whose ids are 100 + first, 101 + first, …"""
    return " ".join(f"w{first + i}" for i in range(count))


def contents(prepared: Prepared) -> list[list[int]]:
    """Return the ids of each chunk, checked to stand between the special tokens, without them."""
    for ids in prepared.ids:
        assert (ids[0], ids[-1]) == (CLS, SEP)
    return [ids[1:-1].tolist() for ids in prepared.ids]


@pytest.mark.parametrize(
    ("model", "fields", "prefix"),
    [
        ("Qwen/Qwen3-Embedding-0.6B", {}, ""),
        ("Qwen/Qwen3-Embedding-0.6B", {"input_type": "document"}, ""),
        ("Qwen/Qwen3-Embedding-0.6B", {"input_type": "query"}, f"Instruct: {QWEN_TASK}\nQuery:"),
        ("Qwen/Qwen3-Embedding-8B", {"instruction": "Find code"}, "Instruct: Find code\nQuery:"),
        ("BAAI/bge-m3", {"input_type": "query"}, ""),
        ("BAAI/bge-m3", {"input_type": "document"}, ""),
        (
            "intfloat/multilingual-e5-large-instruct",
            {"input_type": "query"},
            f"Instruct: {QWEN_TASK}\nQuery: ",
        ),
        (
            "intfloat/multilingual-e5-large-instruct",
            {"instruction": "Find"},
            "Instruct: Find\nQuery: ",
        ),
        ("intfloat/multilingual-e5-large-instruct", {"input_type": "document"}, ""),
        ("intfloat/e5-large-v2", {"input_type": "query"}, "query: "),
        ("intfloat/multilingual-e5-base", {"input_type": "document"}, "passage: "),
        (
            "BAAI/bge-large-en-v1.5",
            {"input_type": "query"},
            "Represent this sentence for searching relevant passages: ",
        ),
        ("BAAI/bge-large-en-v1.5", {"input_type": "document"}, ""),
        (
            "BAAI/bge-small-zh-v1.5",
            {"input_type": "query"},
            "为这个句子生成表示以用于检索相关文章：",
        ),
        ("sentence-transformers/all-MiniLM-L6-v2", {"input_type": "query"}, ""),
        ("sentence-transformers/all-MiniLM-L6-v2", {"input_type": "document"}, ""),
    ],
)
def test_families_have_the_prompts_of_their_model_cards(
    model: str, fields: dict[str, Any], prefix: str
) -> None:
    """A family puts before a text what its model card says, and nothing unless asked to."""
    assert encoder(model_name=model).prompts.prefix(job("a", **fields), None) == prefix


EMPTY = {"query": "", "document": ""}  # as sentence-transformers saves any model
OWN = {"prompts": {"query": "Q: ", "passage": "P: ", "other": "O: "}}


@pytest.mark.parametrize(
    ("facts", "fields", "prefix"),
    [
        (OWN, {"input_type": "query"}, "Q: "),
        (OWN, {"input_type": "document"}, "P: "),
        ({"prompts": {**OWN["prompts"], "document": "D: "}}, {"input_type": "document"}, "D: "),
        (OWN, {"prompt_name": "other"}, "O: "),
        (OWN, {}, ""),
        ({**OWN, "default_prompt_name": "other"}, {}, "O: "),
        ({**OWN, "default_prompt_name": "other"}, {"input_type": "query"}, "Q: "),
        ({**OWN, "default_prompt_name": "absent"}, {}, ""),
        ({"prompts": {"search_query": "S: "}}, {"input_type": "query"}, "S: "),
        ({"prompts": {"search_query": "S: "}}, {"input_type": "document"}, ""),
        ({"prompts": {"retrieval.passage": "R: "}}, {"input_type": "document"}, "R: "),
        ({"prompts": {"Retrieval-query": "R: "}}, {"input_type": "query"}, "R: "),
        ({"prompts": {"s2p_query": "S: ", "s2s_query": "T: "}}, {"input_type": "query"}, "S: "),
        ({"prompts": {"web_search_query": "W: "}}, {"input_type": "query"}, "W: "),
        ({"prompts": {"query": "Q: ", "corpus": "C: "}}, {"input_type": "document"}, "C: "),
        ({"prompts": {"corpus": "C: "}}, {"input_type": "document"}, ""),
        ({"prompts": {**EMPTY, "search_query": "S: "}}, {"input_type": "query"}, "S: "),
        ({"prompts": EMPTY, "family": "e5"}, {"input_type": "query"}, "query: "),
        ({"prompts": EMPTY}, {"prompt_name": "query"}, ""),
    ],
)
def test_models_bring_their_own_prompts(
    facts: dict[str, Any], fields: dict[str, Any], prefix: str
) -> None:
    """A model's own prompts serve input_type and prompt_name, its default one all others."""
    assert encoder(facts=facts).prompts.prefix(job("a", **fields), None) == prefix


def test_files_win_over_the_family_and_the_family_over_nothing() -> None:
    """An E5 whose files have prompts uses those; one whose files have none uses E5's."""
    query = job("a", input_type=InputType.QUERY)
    own = {"prompts": {"search_query": "ask: "}}
    name = "intfloat/e5-base-v2"
    assert (
        encoder(model_name=name, facts={"family": "e5"} | own).prompts.prefix(query, None)
        == "ask: "
    )
    others = {"prompts": {"clustering": "cluster: "}}
    assert (
        encoder(model_name=name, facts={"family": "e5"} | others).prompts.prefix(query, None)
        == "query: "
    )
    assert (
        encoder(model_name="mine", facts={"family": "e5"}).prompts.prefix(query, None) == "query: "
    )


@pytest.mark.parametrize(
    ("facts", "fields", "ignored"),
    [
        ({}, {"input_type": "query"}, ("input_type",)),
        ({}, {"input_type": "document"}, ("input_type",)),
        ({}, {}, ()),
        ({"family": "e5"}, {"input_type": "query"}, ()),
        ({"family": "bge"}, {"input_type": "document"}, ()),
        ({"prompts": {"query": "Q: "}}, {"input_type": "document"}, ()),
        ({"prompts": {"clustering": "C: "}}, {"input_type": "query"}, ("input_type",)),
        ({"prompts": {"clustering": "C: "}}, {"prompt_name": "clustering"}, ()),
    ],
)
def test_an_input_type_that_changes_nothing_is_told(
    facts: dict[str, Any], fields: dict[str, Any], ignored: tuple[str, ...]
) -> None:
    """A type without a prompt is ignored by name; a side that needs none is not, and is listed."""
    model = encoder(facts=facts)
    assert model.prompts.ignored(job("a", **fields)) == ignored
    if "input_type" in fields:
        assert (fields["input_type"] in model.prompts.input_types) is not bool(ignored)


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("Instruct: Find answers\nQuery:", "Instruct: do\nQuery:"),
        ("Instruct: Find answers\nQuery: ", "Instruct: do\nQuery: "),
        ("<instruct>Find answers.\n<query>", "<instruct>do\n<query>"),
    ],
)
def test_a_models_own_prompt_shows_how_it_is_instructed(prompt: str, asked: str) -> None:
    """A model under any name takes instructions in the form of its own query prompt."""
    reader = encoder(facts={"prompts": {"query": prompt}})
    assert reader.prompts.prefix(job("a", instruction="do"), None) == asked
    assert reader.prompts.prefix(job("a", input_type=InputType.QUERY), None) == prompt


def test_prompts_that_are_not_pooled_have_their_length() -> None:
    """The engine is told how many tokens at the beginning are the prompt's, the first one too."""
    reader = encoder(facts={"prompts": {"query": "w1 w2 "}, "pools_prompts": False})
    asked = job("w3", input_type=InputType.QUERY)
    assert reader.prepare(asked, "w1 w2 ", max_total=PLENTY).boundaries == [3]
    assert reader.prepare(job("w3"), "", max_total=PLENTY).boundaries == [0]
    assert encoder().prepare(asked, "w1 w2 ", max_total=PLENTY).boundaries is None


def test_the_alias_comes_after_the_request_and_before_the_default() -> None:
    """An alias stands in for what the request leaves open, in front of the model's default prompt."""
    reader = encoder(
        facts={**OWN, "default_prompt_name": "other"}, instruction_template="<{instruction}>"
    )
    alias = AliasSettings(instruction="from alias")
    assert reader.prompts.prefix(job("a"), alias) == "<from alias>"
    assert reader.prompts.prefix(job("a", prompt_name="query"), alias) == "Q: "
    assert reader.prompts.prefix(job("a"), AliasSettings()) == "O: "
    assert reader.prompts.prefix(job("a"), AliasSettings(input_type=InputType.QUERY)) == "Q: "


def test_settings_win_over_the_family() -> None:
    """The configured template and default instruction replace those of the family."""
    reader = encoder(
        model_name="Qwen/Qwen3-Embedding-0.6B",
        instruction_template="T {instruction}: ",
        default_instruction="do",
    )
    assert reader.prompts.prefix(job("a", input_type=InputType.QUERY), None) == "T do: "
    assert reader.prompts.prefix(job("a", instruction="other"), None) == "T other: "


@pytest.mark.parametrize(
    ("setting", "prompt"),
    [
        ({"instruction_template": "T {instruction}: "}, f"T {QWEN_TASK}: "),
        ({"default_instruction": "do"}, "Instruct: do\nQuery:"),
        ({}, "own: "),
    ],
)
def test_settings_win_over_the_files(setting: dict[str, str], prompt: str) -> None:
    """Either of them, so that a preset's prompt is the same with files that have one."""
    facts = {"prompts": {"query": "own: "}}
    reader = encoder(model_name="Qwen/Qwen3-Embedding-0.6B", facts=facts, **setting)
    assert reader.prompts.prefix(job("a", input_type=InputType.QUERY), None) == prompt


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("Qwen/Qwen3-Embedding-0.6B", "Instruct: something else\nQuery:w1"),
        ("intfloat/e5-base", "query: w1"),
        ("intfloat/e5-base", "passage: w1"),
    ],
)
def test_a_text_with_a_prompt_of_the_family_is_left_alone(model: str, text: str) -> None:
    """Clients that write the prompt themselves are not prompted twice, even with another task."""
    reader = encoder(model_name=model)
    asked = job(text, input_type=InputType.QUERY)
    with_prompt = reader.prepare(asked, reader.prompts.prefix(asked, None), max_total=PLENTY)
    bare = reader.prepare(asked, "", max_total=PLENTY)
    assert with_prompt.ids[0].tolist() == bare.ids[0].tolist()


def special(single: str | None) -> Tokenizer:
    """Return a word tokenizer with the given template of special tokens."""
    tokenizer = Tokenizer(models.WordLevel({"[A]": 0, "[B]": 1, "[U]": 2, "a": 3}, unk_token="[U]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if single is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("[A]", 0), ("[B]", 1)]
        )
    return tokenizer


@pytest.mark.parametrize(
    ("single", "skipped"),
    [("[A] $A [B]", 2), ("[A] $A [B] [B]", 3), ("$A [B]", 1), ("[A] $A", 2), (None, 1)],
)
def test_a_prompt_takes_special_tokens_along(single: str | None, skipped: int) -> None:
    """As sentence-transformers counts: all around a prompt but the last one at its end."""
    reader = encoder(tokenizer=special(single), facts={"pools_prompts": False})
    assert reader.prepare(job("a a"), "a ", max_total=PLENTY).boundaries == [skipped]


@pytest.mark.parametrize(
    ("single", "ids"),
    [
        ("[A] $A [B]", [0, 3, 3, 1]),
        ("$A [B]", [3, 3, 1]),
        ("[A] $A", [0, 3, 3]),
        ("[A] [B] $A [B] [A]", [0, 1, 3, 3, 1, 0]),
        (None, [3, 3]),
    ],
)
def test_special_tokens_are_the_tokenizers(single: str | None, ids: list[int]) -> None:
    """Whatever a tokenizer puts around a text stands there, also after truncation."""
    reader = encoder(tokenizer=special(single), max_model_len=len(ids))
    assert reader.prepare(job("a a"), "", max_total=PLENTY).ids[0].tolist() == ids
    cut = reader.prepare(job("a a a a", truncate=Truncate.RIGHT), "", max_total=PLENTY)
    assert cut.ids[0].tolist() == ids


def test_a_text_without_tokens_needs_special_ones() -> None:
    """A blank text is its special tokens, and an error where the tokenizer adds none."""
    assert encoder().prepare(job(" "), "", max_total=PLENTY).ids[0].tolist() == [CLS, SEP]
    with pytest.raises(InvalidRequest) as caught:
        encoder(tokenizer=special(None)).prepare(job("a", " "), "", max_total=PLENTY)
    assert caught.value.param == "input[1]"


contexts = st.sampled_from([3, 4, 7, 20])
KEEPS_PROMPTS = [each for each in Truncate if each is not Truncate.MODEL]
lengths = st.lists(st.integers(0, 40), min_size=1, max_size=6)


@settings(deadline=None)
@given(lengths, contexts, st.sampled_from([Truncate.LEFT, Truncate.RIGHT, Truncate.CHUNK_MEAN]))
def test_everything_fits_after_truncation(
    sizes: list[int], context: int, truncate: Truncate
) -> None:
    """All chunks fit; left and right keep an end, chunks keep every token in order."""
    texts = [words(size, 50 * i) or " " for i, size in enumerate(sizes)]
    whole = [[100 + 50 * i + k for k in range(size)] for i, size in enumerate(sizes)]
    prepared = short(context).prepare(job(*texts, truncate=truncate), "", max_total=PLENTY)
    room = context - 2
    assert max(map(len, prepared.ids)) <= context
    assert prepared.owner == sorted(prepared.owner)
    kept = [[chunk for chunk, owner in zip(contents(prepared), prepared.owner, strict=True) if owner == i]
            for i in range(len(texts))]  # fmt: skip
    for ids, chunks in zip(whole, kept, strict=True):
        if truncate is Truncate.CHUNK_MEAN:
            assert [token for chunk in chunks for token in chunk] == ids
        else:
            assert chunks == [
                ids[:room] if truncate is Truncate.RIGHT else ids[max(0, len(ids) - room) :]
            ]
    long = tuple(i for i, size in enumerate(sizes) if size > room)
    assert (prepared.truncated, prepared.chunked) == (
        ((), long) if truncate is Truncate.CHUNK_MEAN else (long, ())
    )
    assert prepared.total == sum(map(len, prepared.ids))


@pytest.mark.parametrize("left", [True, False])
def test_a_models_tokenizer_may_cut_the_beginning(left: bool) -> None:
    """Then the prompt goes first, as where a library calls the tokenizer."""
    reader = encoder(max_model_len=7, facts={"cuts_left": left})
    request = reader.completed(job(words(20), truncate=Truncate.MODEL))
    prepared = reader.prepare(request, "w200 ", max_total=PLENTY)
    assert contents(prepared) == [[115, 116, 117, 118, 119] if left else [300, 100, 101, 102, 103]]
    assert prepared.truncated == (0,)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 10), contexts, st.sampled_from(KEEPS_PROMPTS))
def test_the_prompt_survives_truncation(
    size: int, prompt: int, context: int, truncate: Truncate
) -> None:
    """Every chunk begins with the whole prompt, or the request is refused."""
    prefix = words(prompt, 200) + " "
    reader = short(context)
    request = job(words(size), truncate=truncate)
    room = context - 2
    if prompt + size > room and (truncate is Truncate.ERROR or prompt >= room):
        with pytest.raises(ContextLengthExceeded):
            reader.prepare(request, prefix, max_total=PLENTY)
        return
    prepared = reader.prepare(request, prefix, max_total=PLENTY)
    for chunk in contents(prepared):
        assert chunk[:prompt] == [300 + i for i in range(prompt)]
        assert len(chunk) <= room
    if truncate is Truncate.CHUNK_MEAN:  # its copies of the prompt are foreseen to the token
        reader.prepare(request, prefix, max_total=prepared.total)
        with pytest.raises(InvalidRequest):
            reader.prepare(request, prefix, max_total=prepared.total - 1)


def test_a_prompt_is_counted_before_it_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that leaves room for a few tokens would be copied for each few of a text."""
    reader, request = short(50), job(words(1000), truncate=Truncate.CHUNK_MEAN)
    monkeypatch.setattr(reader, "_chunks", lambda *_: pytest.fail("a chunk was made"))
    with pytest.raises(InvalidRequest, match="more than 40000 tokens"):
        reader.prepare(request, words(47, 2000) + " ", max_total=40_000)


def test_many_chunks_are_made_with_rests() -> None:
    """Work that grows with the prompt's copies rests on its way."""
    reader, request = short(50), job(words(1000), truncate=Truncate.CHUNK_MEAN)
    steps = reader.steps(request, words(47, 2000) + " ", max_total=PLENTY)
    assert len(list(steps)) >= 2


def test_long_cl100k_ids_are_refused_before_they_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id may be 128 characters: as text, a list may be far more than the request may have."""
    longest = max(range(100_000), key=lambda token: cl100k.size_bytes([token]))
    assert cl100k.size_bytes([longest, cl100k.VOCABULARY, -1]) == 128
    monkeypatch.setattr(cl100k, "decode", lambda *_: pytest.fail("a text was made"))
    with pytest.raises(InvalidRequest, match="more than 100 tokens"):
        short(20).prepare(job([longest] * 100, truncate=Truncate.RIGHT), "", max_total=100)


def test_order_is_kept_over_many_parts() -> None:
    """Texts are tokenised in parts and stay in order."""
    count = 5000
    prepared = encoder().prepare(job(*(f"w{i % 4000}" for i in range(count))), "", max_total=PLENTY)
    assert contents(prepared) == [[100 + i % 4000] for i in range(count)]
    assert prepared.owner == list(range(count))


@pytest.mark.parametrize("truncate", list(Truncate))
def test_a_request_has_at_most_so_many_tokens(truncate: Truncate) -> None:
    """The limit counts all that the model would read, and is named in the error."""
    request = job(*[words(8)] * 10, truncate=truncate)
    assert encoder().prepare(request, "w1 ", max_total=110).total == 110
    with pytest.raises(InvalidRequest) as caught:
        encoder().prepare(request, "w1 ", max_total=109)
    assert caught.value.param == "input"
    assert "109" in caught.value.message


def test_truncated_tokens_do_not_count() -> None:
    """With truncation a request is as long as what is left of it."""
    request = job(*[words(400)] * 5, truncate=Truncate.RIGHT)
    assert encoder(max_model_len=10).prepare(request, "", max_total=50).total == 50


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ([100, 101], [100, 101]),
        ([CLS, 100, SEP], [100]),
        ([CLS, 100], [100]),
        ([100, SEP], [100]),
        ([CLS, SEP], []),
        ([CLS, CLS, 100, SEP, SEP], [CLS, 100, SEP]),
    ],
)
def test_native_ids_keep_one_set_of_special_tokens(sent: list[int], read: list[int]) -> None:
    """Ids with or without the special tokens are the same input."""
    prepared = encoder(token_ids="native").prepare(job(sent), "", max_total=PLENTY)
    assert contents(prepared) == [read]
    assert prepared.read_as is TokenIdPolicy.NATIVE


def test_native_ids_cannot_be_prompted() -> None:
    """A prompt before native ids is refused rather than left out."""
    with pytest.raises(InvalidRequest) as caught:
        encoder(token_ids="native").prepare(job([100]), "w1 ", max_total=PLENTY)
    assert caught.value.param == "input"


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.integers(0, VOCABULARY + 5), min_size=1, max_size=30), min_size=1, max_size=5
    )
)
def test_native_ids_are_in_the_vocabulary_or_refused(inputs: list[list[int]]) -> None:
    """No id outside the vocabulary reaches the engine."""
    reader = native(10)
    request = job(*inputs, truncate=Truncate.LEFT)
    bad = [i for i, ids in enumerate(inputs) if max(ids) >= VOCABULARY]
    if not bad:
        assert (
            max(int(ids.max()) for ids in reader.prepare(request, "", max_total=PLENTY).ids)
            < VOCABULARY
        )
        return
    with pytest.raises(InvalidRequest) as caught:
        reader.prepare(request, "", max_total=PLENTY)
    assert caught.value.param == f"input[{bad[0]}]"


@settings(deadline=None)
@given(
    st.lists(
        st.integers(0, cl100k.VOCABULARY + 5) | st.integers(0, 2**31 - 1), min_size=1, max_size=20
    )
)
def test_any_cl100k_ids_are_text_or_refused(ids: list[int]) -> None:
    """Any ids decode to some text or are refused by index; nothing else happens."""
    try:
        prepared = short(20).prepare(job([100], ids, truncate=Truncate.RIGHT), "", max_total=PLENTY)
    except InvalidRequest as error:
        assert error.param == "input[1]"  # noqa: PT017 - either outcome is right
    else:
        assert prepared.read_as is TokenIdPolicy.CL100K


def test_a_request_that_fits_is_not_copied_about() -> None:
    """Without over-long inputs, chunks and inputs run in parallel."""
    prepared = encoder().prepare(
        replace(job("w1", "w2"), truncate=Truncate.CHUNK_MEAN), "", max_total=PLENTY
    )
    assert (prepared.owner, prepared.truncated, prepared.chunked) == ([0, 1], (), ())


def test_every_cl100k_id_is_what_bpe_openai_decodes() -> None:
    """Each id of cl100k_base is read as bpe_openai reads it; unused ones are refused."""
    encoding = bpe_openai.get_encoding("cl100k_base")
    for token in range(cl100k.VOCABULARY):
        try:
            expected = encoding.decode([token])
        except KeyError:
            with pytest.raises(InvalidRequest):
                cl100k.decode([token], "input[0]")
        else:
            assert cl100k.decode([token], "input[0]") == expected

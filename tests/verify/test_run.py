"""Each fault that a server may have is found, and the report names its likely cause."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from embedding_service.errors import NoVectors
from embedding_service.progress import Progress
from embedding_service.service.canaries import LEAST_COSINE
from embedding_service.types import Output
from embedding_service.verify import compare
from embedding_service.verify.report import as_json
from embedding_service.verify.result import shown
from embedding_service.verify.run import Options, compare_side
from embedding_service.verify.sides import Kind, Refused, Texts, TooLong
from tests.verify.toy import CONTEXT, Toy, ToySide, truth

if TYPE_CHECKING:
    from embedding_service.verify.result import ModelResult


@pytest.fixture(scope="module")
def true():
    return truth()


async def verified(side: ToySide, true, **options) -> ModelResult:
    return await compare_side("toy", side, true, Options(**options), Progress(io.StringIO()))


async def test_the_right_vectors_are_right(true) -> None:
    """Nothing is found, and the numbers say so."""
    result = await verified(ToySide(), true)
    assert result.findings == []
    assert result.right
    assert [part.kind for part in result.parts] == ["plain", "query", "document"]
    for part in result.parts:
        assert (part.compared, part.below, part.neighbours_mean) == (200, 0, 1.0)
        assert part.quantiles["worst"] > 1 - 1e-9
    assert result.parts[0].alone > 1 - 1e-9


def swapped(rows: np.ndarray) -> np.ndarray:
    """Swap two rows of a batch."""
    rows = rows.copy()
    if len(rows) > 7:
        rows[[3, 7]] = rows[[7, 3]]
    return rows


def scaled(factor: float):
    def spoil(rows: np.ndarray) -> np.ndarray:
        rows = rows * np.where(np.arange(rows.shape[1]) == 17, factor, 1).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return spoil


def overflown(value: float):
    def spoil(rows: np.ndarray) -> np.ndarray:
        rows = rows.copy()
        rows[rows[:, 0] > 0.3] = value
        return rows

    return spoil


def two_swapped(rows: np.ndarray) -> np.ndarray:
    order = np.arange(rows.shape[1])
    order[[3, 17]] = 17, 3
    return rows[:, order]


FAULTS = {
    "another pooling": (ToySide(Toy(pooling="cls")), "pooling"),
    "the last token": (ToySide(Toy(pooling="last")), "pooling"),
    "a missing prompt": (ToySide(Toy(prompt="")), "prompt"),
    "another prompt": (ToySide(Toy(prompt="query: ")), "prompt"),
    "a wrong end token": (ToySide(Toy(end="[EOS]")), "ends"),
    "lower-casing off": (ToySide(Toy(lower=False)), "lower_casing"),
    "another tokenizer's ids": (ToySide(Toy(salt="other")), "everywhere"),
    "truncation on the left": (ToySide(Toy(cut="left")), "truncation"),
    "padding that counts": (ToySide(Toy(padding=True)), "batching"),
    "NaN": (ToySide(spoil=overflown(np.nan)), "not_finite"),
    "infinity": (ToySide(spoil=overflown(np.inf)), "not_finite"),
    "null vectors": (ToySide(spoil=overflown(0)), "not_finite"),
    "a shuffled row": (ToySide(spoil=swapped), "shuffled"),
    "a dimension scaled by 1.002": (ToySide(spoil=scaled(1.002)), "scaled"),
    "a dimension scaled by 1.05": (ToySide(spoil=scaled(1.05)), "scaled"),
    "a dimension scaled by 10": (ToySide(spoil=scaled(10)), "scaled"),
    "a dimension of the other sign": (ToySide(spoil=scaled(-1)), "scaled"),
    "a dimension lost": (ToySide(spoil=scaled(0)), "scaled"),
    "all of the other sign": (ToySide(spoil=lambda rows: -rows), "sign"),
    "dimensions in reverse": (ToySide(spoil=lambda rows: rows[:, ::-1]), "permuted"),
    "two dimensions swapped": (ToySide(spoil=two_swapped), "permuted"),
    "not normalised": (ToySide(spoil=lambda rows: rows * 3), "not_normalised"),
    "fewer dimensions": (ToySide(spoil=lambda rows: rows[:, :20]), "dimensions"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_planted_fault_is_found_and_named(true, fault: str) -> None:
    """The first finding names the cause, and the verdict is wrong."""
    side, name = FAULTS[fault]
    result = await verified(side, true)
    assert not result.right
    assert result.findings[0].name == name, result.lines()
    assert result.lines()[-1].strip().startswith("WRONG")


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("the last token", "the vectors are those of last pooling"),
        (
            "a missing prompt",
            "query texts differ and plain and document texts do not: their prompt",
        ),
    ],
)
async def test_what_is_certain_takes_the_place_of_guesses(true, fault: str, text: str) -> None:
    """A pooling or a prompt that explains everything is the only finding."""
    result = await verified(FAULTS[fault][0], true)
    assert [each.text for each in result.findings] == [text]


@pytest.mark.parametrize("fault", ["a dimension scaled by 1.05", "a shuffled row", "NaN"])
async def test_a_fault_is_found_where_the_threshold_lets_it_pass(true, fault: str) -> None:
    """Faults of a kind are faults however low the threshold is, if the pattern shows them."""
    threshold = 0.5 if fault != "a shuffled row" else 0.9
    assert not (await verified(FAULTS[fault][0], true, threshold=threshold)).right


class Refusing(ToySide):
    """Refuses texts that a test picks, for a reason."""

    def __init__(self, picks, reason: str) -> None:
        super().__init__()
        self.picks, self.reason = picks, reason

    async def ask(self, texts: list[str], kind: Kind) -> list:
        """Refuse a batch with such a text in it."""
        if any(map(self.picks, texts)):
            raise Refused(self.reason)
        return await super().ask(texts, kind)


def more_than(words: int):
    return lambda text: len(text.split()) > words


LONG = TooLong("HTTP 400 the context has 64 tokens")


async def test_texts_that_are_too_long_may_be_refused(true) -> None:
    """A server that cuts nothing is right about the others, and the report says what is missing."""
    result = await verified(Refusing(more_than(CONTEXT - 1), LONG), true)
    assert result.right, result.lines()
    assert "plain texts: 3 refused as too long: HTTP 400 the context has 64 tokens" in result.notes


@pytest.mark.parametrize(
    ("words", "reason", "name"),
    [
        (3, LONG, "refused"),
        (CONTEXT - 1, "HTTP 400 context length exceeded: tokens a minute", "refused"),
        (CONTEXT - 1, "HTTP 500 the vector is not finite", "not_finite"),
    ],
)
async def test_other_refusals_are_faults(true, words: int, reason: str, name: str) -> None:
    """A short text is not too long, whatever a server says, and an error is no answer."""
    result = await verified(Refusing(more_than(words), reason), true)
    assert not result.right
    assert result.findings[0].name == name


@pytest.mark.parametrize(
    ("picks", "right"),
    [
        (more_than(CONTEXT - 1), True),
        (more_than(3), False),
        (lambda text: len(text) > 5, False),
        (lambda text: 20 < len(text) < 25, False),
    ],
    ids=["the longest", "most", "nearly all", "short ones"],
)
async def test_without_a_known_context_few_are_believed_to_be_too_long(true, picks, right) -> None:
    """Only a tenth of the texts, and only of the longest, may be refused as too long."""
    texts = {kind: replace(each, context=None) for kind, each in true.texts.items()}
    result = await verified(Refusing(picks, LONG), replace(true, texts=texts))
    assert result.right is right, result.lines()
    assert right or {each.name for each in result.findings} == {"refused"}


@pytest.mark.parametrize("share", [0.02, 0.5, 0.995])
@pytest.mark.parametrize("wrong", [0.0, np.nan, "HTTP 500"])
async def test_a_reference_without_vectors_shows_nothing(true, share: float, wrong) -> None:
    """A few texts without a true vector are named, and with many there is no verdict."""
    count = int(share * 200)
    answer = wrong if isinstance(wrong, str) else {Output.DENSE: np.full((1, 48), wrong, "f4")}
    answers = {kind: [answer] * count + rows[count:] for kind, rows in true.answers.items()}
    poor = replace(true, answers=answers, poolings={})
    if share > 0.1:
        with pytest.raises(NoVectors, match=r"^truth has no sound plain dense vector for texts 0,"):
            await verified(ToySide(), poor)
        return
    result = await verified(ToySide(), poor)
    assert result.right
    assert "truth has no sound plain dense vector for texts 0, 1, 2, 3" in result.notes


def if_alone(spoil):
    return lambda rows: spoil(rows) if len(rows) == 1 else rows


class RefusingAlone(ToySide):
    """Answers batches alone."""

    async def ask(self, texts: list[str], kind: Kind) -> list:
        """Refuse a text of its own."""
        if len(texts) == 1:
            raise Refused(LONG)
        return await super().ask(texts, kind)


ALONE = {
    "negated": ToySide(spoil=if_alone(lambda rows: -rows)),
    "NaN": ToySide(spoil=if_alone(lambda rows: rows * np.nan)),
    "not normalised": ToySide(spoil=if_alone(lambda rows: rows * 2)),
    "other dimensions": ToySide(spoil=if_alone(lambda rows: rows[:, :7])),
    "refused": RefusingAlone(),
}


@pytest.mark.parametrize("fault", ALONE)
async def test_requests_of_one_text_count(true, fault: str) -> None:
    """Texts that are right in a batch have to be right alone."""
    result = await verified(ALONE[fault], true)
    assert not result.right
    assert result.findings[0].name == "alone", result.lines()
    as_json([result])


async def test_vectors_of_several_sizes_are_none(true) -> None:
    """Vectors of one model have one size: otherwise they are not compared."""
    sizes = iter([20, *[48] * 99])
    side = ToySide(spoil=lambda rows: rows[:, : next(sizes)])
    with pytest.raises(NoVectors, match="toy gave vectors of different sizes: 20, 48"):
        await verified(side, true)


async def test_one_text_can_be_compared(true, recwarn: pytest.WarningsRecorder) -> None:
    """Statistics of a single text warn nobody."""
    texts = Texts(true.texts[Kind.PLAIN].texts[:1], [3], CONTEXT)
    answers = true.answers[Kind.PLAIN][:1]
    few = replace(true, texts={Kind.PLAIN: texts}, answers={Kind.PLAIN: answers}, poolings={})
    assert (await verified(ToySide(), few)).right
    assert not (await verified(ToySide(Toy(salt="x")), few)).right
    assert not recwarn.list


def noisy(size: float):
    source = np.random.default_rng(3)

    def spoil(rows: np.ndarray) -> np.ndarray:
        rows = rows * (1 + source.normal(scale=size, size=rows.shape)).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return spoil


def test_neighbours_are_found_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many texts are looked at together, the ten nearest are the same."""
    rows = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    whole = compare._nearest(rows)
    monkeypatch.setattr(compare, "_ROWS_AT_ONCE", 7)
    assert compare._nearest(rows) == whole
    assert all(index not in near for index, near in enumerate(whole))


@pytest.mark.parametrize(("size", "dtype"), [(0.0005, "float32"), (0.02, "bfloat16")])
async def test_rounding_is_no_fault(true, size: float, dtype: str) -> None:
    """Noise of the size of a number format passes at that format's threshold and names nothing."""
    result = await verified(ToySide(spoil=noisy(size)), true, threshold=LEAST_COSINE[dtype])
    assert result.right, result.lines()


async def test_bias_of_the_size_of_rounding_is_no_fault(true) -> None:
    """A dimension that bfloat16 moves by 1 % among texts that it moves as much is not named."""
    noise, bias = noisy(0.012), scaled(1.012)
    side = ToySide(spoil=lambda rows: bias(noise(rows)))
    result = await verified(side, true, threshold=LEAST_COSINE["bfloat16"])
    assert result.right, result.lines()


async def test_more_noise_than_the_format_has_is_a_fault(true) -> None:
    """bfloat16's noise fails at float32's threshold."""
    result = await verified(ToySide(spoil=noisy(0.02)), true)
    assert result.threshold == LEAST_COSINE["float32"]
    assert not result.right


async def test_texts_beyond_the_context_are_there(true) -> None:
    """The built-in texts have one token, all lengths, and more than fits."""
    texts = true.texts[Kind.PLAIN]
    assert min(texts.lengths) == 3
    assert sum(texts.over_long) >= 3
    assert sum(CONTEXT / 2 < length <= CONTEXT for length in texts.lengths) >= 3


@pytest.mark.parametrize(
    ("cosine", "text"),
    [(1.0, "1.000000"), (1 + 1e-7, "1.000000"), (1 - 1e-6, "1 - 1.0e-06"), (0.5, "0.500000")],
)
def test_cosines_are_written_so_that_they_can_be_told_from_1(cosine: float, text: str) -> None:
    """One is one, also where rounding gave more."""
    assert shown(cosine) == text

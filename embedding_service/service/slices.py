"""Tokenising in slices of some milliseconds: a request rests between them, or ends.

Texts are read some at a time, and a long one in parts where its tokens are the same as those of the
whole. Where they may not be, parts only tell how many tokens there are at least.
"""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from embedding_service.errors import InvalidRequest
from embedding_service.service.checks import check_total

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from tokenizers import Tokenizer

    Ids = list[int]
    _T = TypeVar("_T")
    # Each step says whether the next one is long: one that cannot rest on its way.
    Steps = Generator[bool, None, _T]

# 30 ms of characters that are a token each, 10 of English (MiniLM).
SLICE_CHARACTERS = 16_384
# So far from the end of a slice a place to cut is looked for.
_LOOK_BACK_CHARACTERS = 512
# A cut in the middle of a word makes at most so many tokens more: WordPiece reads a word of more
# than a hundred characters as one token, and the rest of it as up to a hundred.
_DOUBT = 128
# A tokenizer holds some 40 bytes for each byte of a text while it reads it. 300,000 tokens of a
# language without spaces are 1.5 MB.
_LONGEST_PIECE_BYTES = 5 << 20
# Texts that are cut to the model's context may have so many times the tokens of a request, and a
# slice.
_READ_BEYOND = 2
# Where tokens never reach across: at a space between words, and between signs that most tokenizers
# take one by one. `_keeps_tokens` asks the tokenizer itself.
_BETWEEN_WORDS = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])")
_BETWEEN_SIGNS = re.compile(r"(?<=[一-鿿!?.,:;])(?=[一-鿿!?.,:;])")
_SAMPLES = (
    "the quick brown fox jumps over the lazy dog",
    "A  b c\n d e don't stop, dear Reader: e g",
    "敏捷的棕色狐狸, 北京!!! one.two..three ... 东京?!",
    "internationalization of xqzjkvw zzzzzz aaaaaaaa bb",
    "!!!!!!!! ???? ........ ,,,, ;;;; :::: 一一一一一一一一",
)


class Beginning(list[int]):
    """The first tokens of a text; the rest was not read."""


class Limits(NamedTuple):
    """How much is read.

    Of each text, more than `most` tokens need not be; if it is `cut` there, these are its first
    ones, and else it is refused. All together have `total` at most, or errors name `param`; of a
    text that is cut later, `kept` tokens count.
    """

    total: int
    param: str
    most: int | None = None
    cut: bool = False
    kept: int | None = None


class Pace:
    """Tells when it is time to rest: after `every` so much work."""

    def __init__(self, every: int = SLICE_CHARACTERS) -> None:
        self._every, self._done = every, 0

    def rests(self, work: int) -> bool:
        """Whether it is time to rest, with so much more work."""
        self._done += work
        if self._done < self._every:
            return False
        self._done = 0
        return True


class Count(Pace):
    """How much a request has had read so far: characters since the last rest, and tokens."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.limits = limits
        self._read = self._kept = 0

    def add(self, texts: list[Ids]) -> int:
        """Count texts; return how many tokens the longest has. Raises `InvalidRequest`."""
        limits, lengths = self.limits, list(map(len, texts))
        tokens, longest = sum(lengths), max(lengths)
        most = limits.most if limits.kept is None else limits.kept
        if most is None or longest <= most:
            self._kept += tokens
        else:
            self._kept += sum(min(length, most) for length in lengths)
        check_total(self._kept, limits.total, param=limits.param)
        self.check(tokens)
        self._read += tokens
        return longest

    def check(self, tokens: int) -> None:
        """Refuse a text of which so many tokens have been read, if these are too many."""
        limits, read = self.limits, self._read + tokens
        most = _READ_BEYOND * limits.total + SLICE_CHARACTERS if limits.cut else limits.total
        if read > most:
            check_total(read, limits.total, param=limits.param)


class SlicedTokenizer:
    """A tokenizer that neither cuts nor pads, and adds no special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._cuts = [cut for cut in (_BETWEEN_WORDS, _BETWEEN_SIGNS) if self._keeps_tokens(cut)]

    def read(self, texts: Iterable[str], count: Count) -> Steps[list[Ids]]:
        """Return the tokens of each text. Raises `InvalidRequest` for too many tokens.

        Ends early after a text that is to be refused.
        """
        found: list[Ids] = []
        limits = count.limits
        size = SLICE_CHARACTERS if limits.most is None else self._first_size(limits)
        if isinstance(texts, list) and sum(map(len, texts)) <= size:
            found = self._encode(texts)
            count.add(found)
            return found
        for portion in portions(texts, size):
            if len(portion[0]) > size:
                read = [(yield from self._read_long(portion[0], size, count))]
            else:
                read = self._encode(portion)
            found += read
            longest = count.add(read)
            if limits.most is not None and not limits.cut and longest > limits.most:
                break
            if count.rests(sum(map(len, portion))):
                yield False
        return found

    def _first_size(self, limits: Limits) -> int:
        """Return how many characters are read at first: as many as tokens are wanted of a text."""
        if limits.most is None or not limits.cut or not self._cuts:
            return SLICE_CHARACTERS
        return min(SLICE_CHARACTERS, max(_LOOK_BACK_CHARACTERS, limits.most))

    def _read_long(self, text: str, size: int, count: Count) -> Steps[Ids]:
        """Read a text part by part, and once more as a whole if a cut was not certain."""
        ids: Ids = []
        doubt, limits = 0, count.limits
        for part, certain in self._parts(text, size):
            ids += self._ids(part)
            doubt += 0 if certain else _DOUBT
            count.check(len(ids) - doubt)
            enough = limits.most is not None and len(ids) - doubt > limits.most
            if enough and not (limits.cut and doubt):
                return Beginning(ids)
            if doubt:
                _check_piece(text, limits.param)
            if count.rests(len(part)):
                yield False
        if doubt:
            yield True
            ids = self._ids(text)
        return ids

    def _parts(self, text: str, size: int) -> Iterator[tuple[str, bool]]:
        """Cut a text; tell of each part whether the cut behind it changes no token.

        Each part may be twice as long as the one before, up to a slice.
        """
        start = 0
        while start < len(text):
            stop = start + size
            place = self._last_cut(text, stop) if stop < len(text) else stop
            yield text[start : place or stop], place is not None
            start = place or stop
            size = min(2 * size, SLICE_CHARACTERS)

    def _last_cut(self, text: str, stop: int) -> int | None:
        first = stop - _LOOK_BACK_CHARACTERS
        found = chain.from_iterable(cut.finditer(text, first, stop) for cut in self._cuts)
        return max((match.start() for match in found), default=None)

    def _keeps_tokens(self, cut: re.Pattern[str]) -> bool:
        """Ask the tokenizer whether it finds the same tokens on both sides of such a place."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        if any(cut.search(token.content) for token in added):
            return False
        for sample in _SAMPLES:
            whole = self._ids(sample)
            for match in cut.finditer(sample):
                place = match.start()
                if self._ids(sample[:place]) + self._ids(sample[place:]) != whole:
                    return False
        return True

    def _encode(self, texts: list[str]) -> list[Ids]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _ids(self, text: str) -> Ids:
        return self._encode([text])[0]


def _check_piece(text: str, param: str) -> None:
    """Raise `InvalidRequest` for a text that has to be read in one piece, if it is too long."""
    size = len(text.encode())
    if size > _LONGEST_PIECE_BYTES:
        raise InvalidRequest(
            f"a text of {size} bytes has no place where it could be read in parts, and at most "
            f"{_LONGEST_PIECE_BYTES} are read in one piece; send it in several texts",
            param=param,
            code="max_tokens_per_request",
        )


def portions(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield as many texts at a time as have `size` characters; a longer one by itself."""
    held: list[str] = []
    characters = 0
    for text in texts:
        if held and characters + len(text) > size:
            yield held
            held, characters = [], 0
        held.append(text)
        characters += len(text)
    if held:
        yield held


def finish(steps: Steps[_T]) -> _T:
    """Take all steps, one after another."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _T = end.value
            return result


def stepper(steps: Steps[_T]) -> Callable[[], bool | _T]:
    """Return a function that takes a step: it returns what the step says, or the result."""

    def advance() -> bool | _T:
        try:
            return next(steps)
        except StopIteration as end:
            result: _T = end.value
            return result

    return advance

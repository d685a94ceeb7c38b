"""How many values a JSON body has, and how long its numbers are, before any becomes an object.

An object takes 30 to 230 bytes and the parser keeps the interpreter lock, so that 30 MB of `{},`
would hold 2 GB and keep the event loop waiting for seconds; so do integers of thousands of digits,
which cost the square of their length to read and to write. Never judges whether it is valid JSON.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]
    Marks = npt.NDArray[np.bool_]

# Small enough for the caches of a core, and for other threads to get their turn in between.
_SLICE_BYTES = 256 << 10
# A value begins after each of these, outside strings. An empty list counts twice, which is as well.
_BEFORE_VALUES = b",:[{"
_QUOTE = ord('"')
_ZERO, _DIGITS = np.uint8(ord("0")), 10
_DIGIT = re.compile(rb"[0-9]")


def has_more_values(body: bytes, limit: int) -> bool:
    """Tell whether a body has more values than `limit`; a name in an object is one as well.

    32 MB take 0.3 s where they are within the limit, and stop early where they are not.
    """
    if len(body) <= limit or not _may_have_more(body, limit):
        return False
    total = 1
    for characters, outside in _with_strings_marked(body):
        begins = np.logical_or.reduce([characters == sign for sign in _BEFORE_VALUES])
        total += int(np.count_nonzero(begins & outside))
        if total > limit:
            return True
    return False


def has_longer_number(body: bytes, digits: int) -> bool:
    """Tell whether more than so many digits follow one another outside strings."""
    if _DIGIT.search(body[:: digits + 1]) is None:  # a longer run has one of these
        return False
    pieces = _pieces(body)
    if not _has_longer_run((_digits(piece) for piece in pieces), digits):
        return False
    marked = _with_strings_marked(body)
    return _has_longer_run((_digits(piece) & outside for piece, outside in marked), digits)


def _pieces(body: bytes) -> Iterator[Bytes]:
    for start in range(0, len(body), _SLICE_BYTES):
        yield np.frombuffer(body[start : start + _SLICE_BYTES], np.uint8)


def _digits(characters: Bytes) -> Marks:
    return (characters - _ZERO) < _DIGITS  # what is below "0" wraps around


def _has_longer_run(pieces: Iterable[Marks], limit: int) -> bool:
    """Tell whether more than `limit` marks follow one another, across pieces too."""
    held = 0
    for marks in pieces:
        others = np.flatnonzero(~marks)
        runs = np.diff(others, prepend=-1 - held, append=len(marks)) - 1
        if runs.max() > limit:
            return True
        held = int(runs[-1])
    return False


def _with_strings_marked(body: bytes) -> Iterator[tuple[Bytes, Marks]]:
    """Yield the body in pieces, and for each byte whether it is outside strings."""
    inside = 0
    for piece in _unescaped(body):
        characters = np.frombuffer(piece, np.uint8)
        strings = np.bitwise_xor.accumulate((characters == _QUOTE).view(np.uint8)) ^ inside
        inside = int(strings[-1])
        yield characters, strings == 0


def _may_have_more(body: bytes, limit: int) -> bool:
    """Say the same of all commas and braces, those in texts too: most bodies need no more."""
    total = 1
    for start in range(0, len(body), _SLICE_BYTES):
        stop = start + _SLICE_BYTES
        total += sum(body.count(sign, start, stop) for sign in _BEFORE_VALUES)
        if total > limit:
            return True
    return False


def _unescaped(body: bytes) -> Iterator[bytes]:
    r"""Yield the body in pieces without `\\` and `\"`: each quote that is left ends a string."""
    start = 0
    while start < len(body):
        stop = start + _SLICE_BYTES
        piece = body[start:stop]
        backslashes = len(piece) - len(piece.rstrip(b"\\"))
        if backslashes % 2:  # what it escapes is in the next piece
            stop += 1
            piece = body[start:stop]
        if b"\\" in piece:
            piece = piece.replace(rb"\\", b"  ").replace(rb"\"", b"  ")
        yield piece
        start = stop

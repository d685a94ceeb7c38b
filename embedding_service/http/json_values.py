"""How many values a JSON body has, counted before any of them becomes an object.

An object takes 30 to 230 bytes and the parser keeps the interpreter lock, so that 30 MB of `{},`
would hold 2 GB and keep the event loop waiting for seconds. Never judges whether it is valid JSON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

# Small enough for the caches of a core, and for other threads to get their turn in between.
_SLICE_BYTES = 256 << 10
# A value begins after each of these, outside strings. An empty list counts twice, which is as well.
_BEFORE_VALUES = b",:[{"
_QUOTE = ord('"')


def has_more_values(body: bytes, limit: int) -> bool:
    """Tell whether a body has more values than `limit`; a name in an object is one as well.

    32 MB take 0.3 s where they are within the limit, and stop early where they are not.
    """
    if len(body) <= limit or not _may_have_more(body, limit):
        return False
    total, inside = 1, 0
    for piece in _unescaped(body):
        characters = np.frombuffer(piece, np.uint8)
        strings = np.bitwise_xor.accumulate((characters == _QUOTE).view(np.uint8)) ^ inside
        begins = np.logical_or.reduce([characters == sign for sign in _BEFORE_VALUES])
        total += int(np.count_nonzero(begins & (strings == 0)))
        inside = int(strings[-1])
        if total > limit:
            return True
    return False


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

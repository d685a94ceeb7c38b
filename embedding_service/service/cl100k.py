"""OpenAI's cl100k_base tokens as text: some clients send those in place of text.

The ranks are bpe-openai's file. Importing that package for them takes 0.8 s and 100 MB, this 0.1 s
and 8 MB.
"""

from __future__ import annotations

import binascii
import gzip
import importlib.util
from functools import cache
from pathlib import Path

from embedding_service.errors import InvalidRequest

VOCABULARY = 100_277
_SPECIAL = {
    100_257: "<|endoftext|>",
    100_258: "<|fim_prefix|>",
    100_259: "<|fim_middle|>",
    100_260: "<|fim_suffix|>",
    100_276: "<|endofprompt|>",
}


@cache
def load() -> list[bytes | None]:
    """Return the bytes of each token, None for an id that is not used."""
    pieces: list[bytes | None] = [None] * VOCABULARY
    package = importlib.util.find_spec("bpe_openai")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("bpe_openai")
    ranks = Path(package.submodule_search_locations[0], "data", "cl100k_base.tiktoken.gz")
    for line in gzip.decompress(ranks.read_bytes()).splitlines():
        piece, rank = line.split()
        pieces[int(rank)] = binascii.a2b_base64(piece)
    for token, text in _SPECIAL.items():
        pieces[token] = text.encode()
    return pieces


def size_bytes(ids: list[int]) -> int:
    """Return how long the text of token ids is, in bytes; ids that are none count nothing."""
    pieces = load()
    return sum(len(pieces[token] or b"") for token in ids if 0 <= token < VOCABULARY)


def decode(ids: list[int], where: str) -> str:
    """Return the text of token ids. Raises `InvalidRequest` about `where` they were sent."""
    if max(ids) >= VOCABULARY or min(ids) < 0:
        raise InvalidRequest(
            f"{where} holds a token id outside cl100k_base, which this server reads token ids as; "
            "send text, or set token_ids: native in the server's configuration",
            param=where,
        )
    pieces = load()
    found = [pieces[token] for token in ids]
    if None in found:
        raise InvalidRequest(
            f"{where} holds a token id that cl100k_base leaves unused; send text", param=where
        )
    return b"".join(found).decode("utf-8", "replace")  # type: ignore[arg-type]

"""A toy model that can be wrong in every way that a server can: words become random vectors.

Its reading has what real ones have: lower-casing, a prompt, a start and an end token, a context,
pooling, batches; each is an option, so that a test changes one.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from embedding_service.types import Output
from embedding_service.verify.sides import About, Kind, Texts
from embedding_service.verify.texts import built_in
from embedding_service.verify.truth import Truth

CONTEXT, DIMENSION = 64, 48
PROMPTS = {Kind.PLAIN: "", Kind.QUERY: "search for this: ", Kind.DOCUMENT: ""}


@dataclass(frozen=True)
class Toy:
    """How texts are read; the defaults are right."""

    pooling: str = "mean"
    prompt: str = PROMPTS[Kind.QUERY]
    end: str = "[SEP]"
    lower: bool = True
    salt: str = ""
    cut: str = "right"
    padding: bool = False

    def ids(self, text: str) -> list[str]:
        """Return the tokens."""
        text = text.lower() if self.lower else text
        return ["[CLS]", *re.findall(r"\w{1,4}|\S", text), self.end]

    def row(self, text: str, pad_to: int = 0) -> np.ndarray:
        """Return a vector of length 1."""
        start, *body, end = self.ids(text)
        room = CONTEXT - 2
        body = body[:room] if self.cut == "right" else body[-room:]
        states = self._states([start, *body, end])
        if self.padding and pad_to > len(states):
            pads = np.tile(token(f"{self.salt}[PAD]"), (pad_to - len(states), 1))
            states = np.concatenate([states, pads])
        pooled = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[self.pooling]
        return (pooled / np.linalg.norm(pooled)).astype(np.float32)

    def _states(self, tokens: list[str]) -> np.ndarray:
        """Mix each token's vector with its neighbours', as a transformer does."""
        vectors = np.stack([token(self.salt + each) for each in tokens])
        return vectors + 0.5 * vectors.mean(0) + 0.3 * np.roll(vectors, 1, axis=0)

    def rows(self, texts: list[str], kind: Kind) -> np.ndarray:
        """Return the vectors of a batch."""
        prompt = self.prompt if kind is Kind.QUERY else ""
        texts = [prompt + text for text in texts]
        longest = min(CONTEXT, max(len(self.ids(text)) for text in texts))
        return np.stack([self.row(text, longest) for text in texts])


@cache
def token(name: str) -> np.ndarray:
    """Return a token's own vector."""
    return np.random.default_rng(zlib.crc32(name.encode())).normal(size=DIMENSION) + 0.2


class ToySide:
    """The toy as a side; `spoil` changes the rows of a batch."""

    def __init__(self, toy: Toy = Toy(), spoil=lambda rows: rows) -> None:
        self.toy, self.spoil = toy, spoil
        self.about = About("toy", "float32", CONTEXT, own=True)

    async def ask(self, texts: list[str], kind: Kind) -> list:
        """Return an answer to each text."""
        rows = self.spoil(self.toy.rows(texts, kind))
        return [{Output.DENSE: row[None]} for row in rows]


def truth() -> Truth:
    """Return what is right."""
    toy, texts = Toy(), built_in(CONTEXT)
    true = Truth(About("truth", "float32", CONTEXT, PROMPTS))
    for kind, prompt in PROMPTS.items():
        lengths = [len(toy.ids(prompt + text)) for text in texts]
        true.texts[kind] = Texts(texts, lengths, CONTEXT)
        true.answers[kind] = [{Output.DENSE: toy.rows([text], kind)} for text in texts]
    for mode in ("cls", "last"):
        rows = Toy(pooling=mode).rows(texts[:8], Kind.PLAIN)
        true.poolings[mode] = [{Output.DENSE: row[None]} for row in rows]
    return true


__all__ = ["Toy", "ToySide", "replace", "truth"]

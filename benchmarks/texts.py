"""Texts to embed: unique, of one length in tokens, made of this repository's own prose."""

from __future__ import annotations

import random
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[1]


@cache
def prose() -> tuple[str, ...]:
    """Return the sentences of the documentation and of the licence."""
    files = [ROOT / "README.md", ROOT / "LICENSE", *sorted((ROOT / "docs").glob("*.md"))]
    text = " ".join(" ".join(path.read_text(encoding="utf-8").split()) for path in files)
    return tuple(sentence for sentence in re.split(r"(?<=[.:;])\s", text) if len(sentence) > 20)


def make(count: int, *, tokens: int, tokenizer: Tokenizer, seed: int) -> list[str]:
    """Return `count` texts of `tokens` tokens each, special tokens included; no two begin alike."""
    choose = random.Random(seed)
    lengths = {
        sentence: len(tokenizer.encode(sentence, add_special_tokens=False)) for sentence in prose()
    }
    special = len(tokenizer.encode(""))
    texts = []
    for i in range(count):
        words, length = [f"{seed}.{i}"], 0
        while length < tokens:
            words.append(choose.choice(prose()))
            length += lengths[words[-1]]
        text = " ".join(words)
        end = tokenizer.encode(text, add_special_tokens=False).offsets[tokens - special - 1][1]
        texts.append(text[:end])
    return texts

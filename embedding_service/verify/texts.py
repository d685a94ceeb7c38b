"""The texts that are compared: 200 built-in ones, or those of a file.

`texts.json` has 191 in some thirty scripts, of one token and more; nine are grown from them, up to
beyond the model's context, so that a cut at the wrong end shows.
"""

from __future__ import annotations

import json
from importlib import resources
from itertools import chain, cycle, islice
from typing import TYPE_CHECKING, Final

from embedding_service.errors import BadConfiguration

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Of the context, in words. A word has at least a token, and six in these scripts with MiniLM's
# tokenizer: the last three are surely cut, and the first ones are not.
_SHARES: Final = (0.03, 0.06, 0.09, 0.12, 0.2, 0.5, 1.0, 1.2, 1.4)


def built_in(context_tokens: int) -> list[str]:
    """Return the 200 texts for a model that reads so many tokens of one."""
    groups: dict[str, list[str]] = json.loads(
        resources.files(__package__).joinpath("texts.json").read_text(encoding="utf-8")
    )
    texts = list(chain.from_iterable(groups.values()))
    words = " ".join(groups["scripts"]).split()
    sizes = [max(1, int(share * context_tokens)) for share in _SHARES]
    return texts + list(_grown(words, sizes))


def _grown(words: list[str], sizes: list[int]) -> Iterator[str]:
    """Yield a text of each number of words; each begins elsewhere, and ends in its own words."""
    for number, size in enumerate(sizes):
        start = number * len(words) // len(sizes)
        yield " ".join(islice(cycle(words), start, start + size))


def read(path: Path) -> list[str]:
    """Return a file's texts: a line each, a string a line in `.jsonl`, a list of them in `.json`.

    Raises `BadConfiguration`.
    """
    try:
        content = path.read_bytes().decode("utf-8-sig")
        texts = _parsed(path.suffix, content)
        json.dumps(texts, ensure_ascii=False).encode()  # a lone surrogate cannot be sent
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8, or not JSON as its name says"
        raise BadConfiguration(f"--texts {path}: {reason}") from None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadConfiguration(f"--texts {path}: each text has to be a JSON string")
    texts = [text for text in texts if text]
    if not texts:
        raise BadConfiguration(f"--texts {path}: there is no text in it")
    return texts


def _parsed(suffix: str, content: str) -> object:
    if suffix == ".json":
        return json.loads(content)
    lines = content.split("\n")  # `splitlines` also cuts at characters that texts may hold
    if suffix == ".jsonl":
        return [json.loads(line) for line in lines if line.strip()]
    return [line.removesuffix("\r") for line in lines if line.strip()]

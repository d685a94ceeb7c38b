"""Facts in a checkpoint's tokenizer.json and tokenizer_config.json, without a tokenizer."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Final

from embedding_service.families.checkpoint import ModelRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedding_service.families.checkpoint import Files, Json

# transformers writes 1e30 where a tokenizer has no limit, others 2**31 or 1e12.
_NO_LIMIT: Final = 10_000_000


@contextmanager
def _readable() -> Iterator[None]:
    """Raise `ModelRefused` in place of what a tokenizer.json in no known form raises."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelRefused(f"tokenizer.json is in no form that is known: {error!r}") from error


def at(folder: str, name: str) -> str:
    """Return the place of a file beside the transformer."""
    return f"{folder}/{name}" if folder else name


def limit(files: Files, folder: str) -> int | None:
    """Return `model_max_length`, the most tokens of a text; None without such a limit."""
    found = files.json(at(folder, "tokenizer_config.json")).get("model_max_length")
    return int(found) if found is not None and 0 < found < _NO_LIMIT else None


def chat_template(files: Files) -> str:
    """Return the chat template, nothing where there is none."""
    path = files.path("chat_template.jinja")
    if path is not None:
        return path.read_text(encoding="utf-8", errors="replace")
    return str(files.json("tokenizer_config.json").get("chat_template") or "")


def steps(tokenizer: Json) -> list[Json]:
    """Return what happens behind tokenising, step by step. Raises `ModelRefused`."""
    processor = tokenizer.get("post_processor") or {}
    found = processor.get("processors", [processor])
    if not isinstance(found, list) or not all(isinstance(step, dict) for step in found):
        raise ModelRefused("tokenizer.json says post_processor: its processors are no list of them")
    return found


def numbers_segments(tokenizer: Json) -> bool:
    """Whether some token of a single text is numbered as of another segment than the first."""
    with _readable():
        return any(map(_is_numbered, steps(tokenizer)))


def _is_numbered(step: Json) -> bool:
    pieces = chain.from_iterable(piece.values() for piece in step.get("single") or ())
    return any(piece["type_id"] for piece in pieces)


def ends(tokenizer: Json) -> set[int]:
    """Return the ids of the tokens that are put behind a text or a pair."""
    with _readable():
        return set(chain.from_iterable(map(_last, steps(tokenizer))))


def _last(step: Json) -> Iterator[int]:
    if isinstance(step.get("sep"), list):  # BERT's and RoBERTa's: the token and its id
        yield step["sep"][1]
    for template in (step.get("single"), step.get("pair")):
        if template and (token := template[-1].get("SpecialToken")):
            yield from step["special_tokens"][token["id"]]["ids"]


def token_id(tokenizer: Json, token: str) -> int | None:
    """Return the id of a token in the vocabulary, None where it has none."""
    with _readable():
        added = {piece["content"]: piece["id"] for piece in tokenizer.get("added_tokens") or ()}
        found: int | None = (_vocabulary(tokenizer) | added).get(token)
        return found


def _vocabulary(tokenizer: Json) -> dict[str, int]:
    known = (tokenizer.get("model") or {}).get("vocab") or {}
    if isinstance(known, dict):
        return known
    return {piece[0]: index for index, piece in enumerate(known)}  # a unigram's, with scores

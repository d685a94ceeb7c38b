"""A checkpoint's tokenizer: its special tokens, answers in words, and what files ask of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from tokenizers import normalizers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_SPECIAL = ("cls_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


def lower_case(tokenizer: Tokenizer) -> None:
    """Have texts lower-cased before all else, as sentence-transformers' `do_lower_case` does.

    Beside a step of the same kind there is nothing to do (`Transformer.__init__` of version 6.2).
    """
    own: Any = tokenizer.normalizer
    steps: list[Any] = [] if own is None else [own]
    if isinstance(own, normalizers.Sequence):
        steps = list(cast("Iterable[Any]", own))
    if not any(isinstance(step, normalizers.Lowercase) for step in steps):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])


def special_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the cls, eos, pad and unk ids that there are."""
    ids = (getattr(tokenizer, name) for name in _SPECIAL)
    return tuple(token for token in ids if token is not None)


def with_answers(overrides: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return overrides in which vLLM finds the tokens of a reranker's answers.

    The authors take the first token of the word; vLLM takes the word for a token.
    """
    words = overrides.get("classifier_from_token")
    if words is None:
        return overrides
    firsts = [tokenizer.encode(word, add_special_tokens=False)[0] for word in words]
    return overrides | {"classifier_from_token": tokenizer.convert_ids_to_tokens(firsts)}

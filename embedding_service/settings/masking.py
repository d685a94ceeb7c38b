"""Secrets in settings, hidden where these are shown: by the name of a value, or by its form.

Over-careful on purpose: a value that is hidden for nothing can be read in the file.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

MASK = "**********"
_SHORTEST_SECRET = 4
_SECRET_NAME = re.compile(
    r"pass(word|wd|phrase|code)?|secret|credential|api_?key|access_?key|private|auth|cookie|bearer"
    r"|signature|header|(^|_)(key|pwd|pw)$",
    re.IGNORECASE,
)
# Names such as `max_num_batched_tokens` too, of which the value is a number.
_SECRET_TEXT_NAME = re.compile(r"token", re.IGNORECASE)
_USER_OF_URL = re.compile(r"(?<=://)[^/?#\s]*@")
_SECRET_IN_QUERY = re.compile(
    r"(?<=[?&;])([^=&;\s]*(?:token|key|secret|pass|pwd|sig|auth|credential)[^=&;\s]*=)[^&;\s]*",
    re.IGNORECASE,
)
# Of Hugging Face, OpenAI and others, GitHub, Slack, AWS, and JSON web tokens.
_TOKEN = re.compile(
    r"\b(hf_|sk-|pk-|gh[pousr]_|github_pat_|glpat-|xox[a-z]-|AKIA|eyJ)[\w.~+/=-]{6,}"
    r"|(?i:\bbearer|\bbasic)\s+[\w.~+/=-]{6,}"
)


def masked(tree: Any) -> Any:
    """Return plain values with everything hidden that looks like a secret."""
    if isinstance(tree, dict):
        return {name: _masked_under(str(name), value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [masked(value) for value in tree]
    return masked_text(tree) if isinstance(tree, str) else tree


def masked_text(text: str) -> str:
    """Return a text without users and passwords of URLs, and without tokens of known forms."""
    text = _USER_OF_URL.sub(f"{MASK}@", text)
    text = _SECRET_IN_QUERY.sub(rf"\g<1>{MASK}", text)
    return _TOKEN.sub(MASK, text)


def without_secrets(text: str, tree: Any) -> str:
    """Return a text, such as vLLM's about its arguments, without what is hidden of a tree."""
    for secret in sorted(_secrets(tree, masked(tree)), key=len, reverse=True):
        text = text.replace(secret, MASK)
    return masked_text(text)


def _secrets(tree: Any, shown: Any) -> Iterator[str]:
    """Yield the values of a tree that are shown as something else; short ones would hide words."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _secrets(value, shown[name] if isinstance(shown, dict) else MASK)
    elif isinstance(tree, list | tuple):
        for place, value in enumerate(tree):
            yield from _secrets(value, shown[place] if isinstance(shown, list) else MASK)
    elif tree != shown and len(str(tree)) >= _SHORTEST_SECRET:
        yield str(tree)


def _masked_under(name: str, value: Any) -> Any:
    is_text = not isinstance(value, bool | int | float | None)
    if value is None or isinstance(value, bool):
        return value
    if _SECRET_NAME.search(name) or (is_text and _SECRET_TEXT_NAME.search(name)):
        return MASK
    return masked(value)

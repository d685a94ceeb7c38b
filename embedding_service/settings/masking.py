"""Secrets in settings, hidden where these are shown: by the name of a value, or by its form.

Over-careful on purpose: a value that is hidden for nothing can be read in the file.
"""

from __future__ import annotations

import json
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
# `--token=x`, `TOKEN=x`, `'token': 'x'`, and a flag with its value behind it.
_ASSIGNED = re.compile(
    r"(?<![\w.-])(?P<name>[\w.-]+)(?P<sign>[\"']?\s*[=:]\s*)"
    r"(?P<value>\"[^\"]*\"|'[^']*'|[^\s&;]+)"
)
_FLAG = re.compile(r"(?<!\S)(?P<name>--?[\w.-]+)(?P<sign>\s+)(?P<value>[^-\s]\S*)")
_FLAG_ALONE = re.compile(r"\s*--?[\w.-]+\s*")
# Of Hugging Face, OpenAI and others, GitHub, Slack, AWS, and JSON web tokens. Arguments of vLLM's
# are called hf_overrides, hf_config_path and hf_token.
_TOKEN = re.compile(
    r"\b(hf_(?!overrides\b|config_path\b|token\b)|sk-|pk-|gh[pousr]_|github_pat_|glpat-|xox[a-z]-"
    r"|AKIA|eyJ)[\w.~+/=-]{6,}"
    r"|(?i:\bbearer|\bbasic)\s+[\w.~+/=-]{6,}"
)


def masked(tree: Any) -> Any:
    """Return plain values with everything hidden that looks like a secret."""
    if isinstance(tree, dict):
        return {name: _masked_under(str(name), value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return _masked_list(tree)
    return _masked_argument(tree) if isinstance(tree, str) else tree


def _masked_list(values: list[Any] | tuple[Any, ...]) -> list[Any]:
    """Mask values, and those that stand behind a flag such as `--api-key` by its name."""
    shown: list[Any] = []
    flag = ""
    for value in values:
        shown.append(_masked_under(flag, value))
        flag = value if isinstance(value, str) and _FLAG_ALONE.fullmatch(value) else ""
    return shown


def _masked_argument(text: str) -> str:
    """Mask a text that may be JSON, or hold names with their values."""
    inner = _json(text)
    if inner is not None:
        shown = masked(inner)
        return text if shown == inner else json.dumps(shown, ensure_ascii=False)
    for form in (_ASSIGNED, _FLAG):
        text = form.sub(_masked_assigned, text)
    return masked_text(text)


def _masked_assigned(match: re.Match[str]) -> str:
    name, sign, value = match["name"], match["sign"], match["value"]
    hidden = _is_secret(name, is_text=not value.isdecimal())
    return name + sign + MASK if hidden else match[0]


def _json(text: str) -> Any:
    """Return the object or list that a text is in JSON, or None."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


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
    elif isinstance(tree, str) and tree != shown and (inner := _json(tree)) is not None:
        yield from _secrets(inner, masked(inner))
    elif tree != shown and len(str(tree)) >= _SHORTEST_SECRET:
        yield str(tree)


def _masked_under(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    return MASK if _is_secret(name, is_text=not isinstance(value, int | float)) else masked(value)


def _is_secret(name: str, *, is_text: bool) -> bool:
    name = name.replace("-", "_")
    by_text = is_text and _SECRET_TEXT_NAME.search(name) is not None
    return by_text or _SECRET_NAME.search(name) is not None

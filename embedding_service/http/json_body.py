"""Strict JSON: UTF-8, finite numbers, unique keys, no deep nesting; errors name the field."""

from __future__ import annotations

import json
import math
import re
import sys
from typing import TYPE_CHECKING, Any

import jiter
import orjson

from embedding_service.dialects.fields import MOST_ECHOED_CHARACTERS, field_name, printable
from embedding_service.errors import InvalidRequest
from embedding_service.http.json_values import has_longer_number, has_more_values

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_DEPTH = 8
# Only bodies up to this size are read a second time to explain their fault (10 ms).
_EXPLAINED_BYTES = 1 << 20
_TYPES_TO_CHECK = frozenset({dict, list, float})
# The longest integers that a float holds. Longer ones are of no use here, and to read and to write
# one costs the square of its length while the interpreter lock is held.
_MOST_DIGITS = 300
_DUPLICATE_KEY = re.compile(r'Detected duplicate key "(.*)" at line', re.DOTALL)


def parse_object(
    body: bytes, content_type: str | None, *, max_values: int = sys.maxsize
) -> dict[str, Any]:
    """Read a JSON object. Raises `InvalidRequest`, which quotes only a little of the body."""
    kind = (content_type or "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not re.fullmatch(r"application/[\w.-]+\+json", kind):
        shown = kind[:MOST_ECHOED_CHARACTERS]
        raise _invalid(f"content-type must be application/json, not {shown}")
    if has_more_values(body, max_values):
        raise InvalidRequest(
            f"the request body has more than {max_values} JSON values; send fewer at a time",
            code="too_many_values",
        )
    _check_numbers(body)
    try:
        tree = jiter.from_json(
            body, allow_inf_nan=True, catch_duplicate_keys=True, cache_mode="none"
        )
    except ValueError as error:
        reason = str(error)
        raise _invalid(
            f"the request body is not valid JSON: {printable(reason)}; mend it there",
            param=_field_at_fault(body, reason),
        ) from None
    if not isinstance(tree, dict):
        raise _invalid("the request body must be a JSON object")
    _check_tree(tree, "", 1)
    return tree


def _invalid(why: str, *, param: str | None = None) -> InvalidRequest:
    return InvalidRequest(why, param=param, code="invalid_body")


def _check_numbers(body: bytes) -> None:
    """Raise `InvalidRequest` for numbers that are too long to be made."""
    if has_longer_number(body, _MOST_DIGITS):
        raise _invalid(
            f"the request body has a number of more than {_MOST_DIGITS} digits; send it as text",
            param=_field_at_fault(body, ""),
        )


def _field_at_fault(body: bytes, reason: str) -> str | None:
    """Return the top-level field that is not strict JSON, where a lenient reader can tell.

    Raises `InvalidRequest` itself if the reason is deep nesting.
    """
    if duplicate := _DUPLICATE_KEY.match(reason):
        return field_name(duplicate[1])
    tree = _read_leniently(body) if len(body) <= _EXPLAINED_BYTES else None
    if not isinstance(tree, dict):
        return None
    _check_tree(tree, "", 1)
    for name, value in tree.items():
        try:
            orjson.dumps([name, value])
        except TypeError:
            return field_name(name)
    return None


def _read_leniently(body: bytes) -> object:
    """Read JSON as far as Python can.

    Bytes that are not UTF-8 become lone surrogates, and too long integers `...`: nothing that a
    strict writer would write.
    """
    try:
        text = body.decode("utf-8", "surrogateescape")
        return json.loads(text, parse_int=lambda digits: 0 if len(digits) <= _MOST_DIGITS else ...)
    except (ValueError, RecursionError):
        return None


def _check_tree(tree: dict[str, Any] | list[Any], path: str, depth: int) -> None:
    """Refuse deep nesting, NaN, infinities, and numbers such as 1e999 that a float cannot hold."""
    if depth > MAX_DEPTH:
        name = field_name(path)
        why = f"{name} is nested more than {MAX_DEPTH} levels deep; send it flatter"
        raise _invalid(why, param=name)
    # Ten times the speed of the loop below, for the long lists of texts or token ids.
    if isinstance(tree, list) and _TYPES_TO_CHECK.isdisjoint(map(type, tree)):
        return
    items: Iterable[tuple[Any, Any]] = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        kind = type(value)
        if kind is dict or kind is list:
            _check_tree(value, path or str(key), depth + 1)
        elif kind is float and not math.isfinite(value):
            name = field_name(path or str(key))
            raise _invalid(f"{name} holds a number that is not finite; leave it out", param=name)

"""Ids of vector spaces as people write them: `NAME@HEX`, of which only HEX is compared."""

from __future__ import annotations

import re

HEX_DIGITS = 12
_IN_SCHEMA = rf" *([^,@]+@)?[0-9a-fA-F]{{{HEX_DIGITS},64}} *"
IDS_PATTERN = rf"^{_IN_SCHEMA}(,{_IN_SCHEMA})*$"
# A name may hold `@` and commas where it is not written as answers have it. So HEX follows the last
# `@`, a comma ends an id only after HEX, and no name holds an id: a comma may be missing there.
_HEX = rf"[0-9a-f]{{{HEX_DIGITS},64}}"
_ID = re.compile(rf"(?!.*@{_HEX}\b.*@)(?:.*@)?({_HEX})", re.IGNORECASE)
_AROUND = ", \t\r\n"
_END = re.compile(rf"(?<=[0-9a-f]{{{HEX_DIGITS}}})\s*,", re.IGNORECASE)
_NONE = (
    f"is not the id of a vector space: NAME@HEX, with {HEX_DIGITS} or more hexadecimal digits, as "
    "answers have it in x-vector-space"
)
_MOST_CHARACTERS = 4096
_SHOWN_CHARACTERS = 80


def read_ids(*lists: str) -> frozenset[str]:
    """Return the HEX of each id in lists with commas; names may be left out.

    Raises `ValueError` that says which is no id.
    """
    if sum(map(len, lists)) + len(lists) - 1 > _MOST_CHARACTERS:
        raise ValueError(
            f"a list of vector spaces must not have more than {_MOST_CHARACTERS} characters"
        )
    text = ",".join(lists).rstrip(_AROUND)
    ids = (id_.strip(_AROUND) for id_ in _END.split(text))
    return frozenset(map(_read_id, ids))


def _read_id(text: str) -> str:
    match = _ID.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:_SHOWN_CHARACTERS]!a} {_NONE}")
    return match[1].lower()

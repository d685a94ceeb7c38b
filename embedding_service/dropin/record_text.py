"""The text of a record: a template from the settings, filled with what the record has.

Pure; a part whose field is missing is left out, so that no text says what nobody knows. Characters
are counted before they are copied: a template may have a field several times.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

from embedding_service.service.checks import CHARACTERS_PER_TOKEN, check_total

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from embedding_service.settings.records import RecordSettings

_LONGEST_FLOAT = 24  # characters


class Room:
    """The characters that the texts of one request may still have."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self.characters = max_tokens * CHARACTERS_PER_TOKEN

    def check(self, value: Any) -> None:
        """Raise `InvalidRequest` for a value that takes more than there is."""
        if _characters(value) > self.characters:
            check_total(self._max_tokens + 1, self._max_tokens, param="text")

    def take(self, value: Any) -> None:
        """Take as much as a value needs. Raises `InvalidRequest`."""
        self.check(value)
        self.characters -= _characters(value)


def prepare(settings: RecordSettings, record: Mapping[str, Any], room: Room) -> str:
    """Return the record as text, with zeros, and without nulls and empty texts; perhaps empty.

    Nothing is stripped: a text that differs by a blank has another vector. Raises `InvalidRequest`
    if there is no room for it.
    """
    values = {
        name: text
        for name in settings.fields
        if (text := _value(settings, record.get(name), room)) is not None
    }
    parts: list[str] = []
    for part in settings.template:
        if isinstance(part, str):
            parts += _filled([part], values, room)
            continue
        for heading, texts in part.items():
            if group := settings.group_separator.join(_filled(texts, values, room)):
                parts.append(heading + group)
    return settings.separator.join(parts)


def _value(settings: RecordSettings, value: Any, room: Room) -> Any:
    """Return the text of a field in a template, or None for nothing."""
    if isinstance(value, dict):
        room.check(value)
        value = settings.group_separator.join(
            f"{k}: {v}" for k, v in value.items() if v is not None
        )
    return None if value == "" else value


def _filled(texts: Iterable[str], values: Mapping[str, Any], room: Room) -> Iterator[str]:
    for text in texts:
        names = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
        if values.keys() >= set(names):
            room.take([values[name] for name in names])
            yield text.format(**values)


def _characters(value: Any) -> int:
    """Return about how many characters a value is as text; escaped ones count once."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return _characters([*value, *value.values()])
    if isinstance(value, list):
        return len(value) + sum(map(_characters, value))
    return value.bit_length() // 3 if isinstance(value, int) else _LONGEST_FLOAT

"""The text of a record: a template from the settings, filled with what the record has.

Pure; a part whose field is missing is left out, so that no text says what nobody knows.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from embedding_service.settings.records import RecordSettings


def prepare(settings: RecordSettings, record: Mapping[str, Any]) -> str:
    """Return the record as text, with zeros, and without nulls and empty texts; perhaps empty.

    Nothing is stripped: a text that differs by a blank has another vector.
    """
    values = {
        name: text
        for name in settings.fields
        if (text := _value(settings, record.get(name))) is not None
    }
    parts: list[str] = []
    for part in settings.template:
        if isinstance(part, str):
            parts += _filled([part], values)
            continue
        for heading, texts in part.items():
            if group := settings.group_separator.join(_filled(texts, values)):
                parts.append(heading + group)
    return settings.separator.join(parts)


def _value(settings: RecordSettings, value: Any) -> Any:
    """Return the text of a field in a template, or None for nothing."""
    if isinstance(value, dict):
        value = settings.group_separator.join(
            f"{k}: {v}" for k, v in value.items() if v is not None
        )
    return None if value == "" else value


def _filled(texts: Iterable[str], values: Mapping[str, Any]) -> Iterator[str]:
    for text in texts:
        names = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
        if names <= values.keys():
            yield text.format(**values)

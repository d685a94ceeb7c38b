"""pydantic's errors about settings in the words of a settings file, in one line.

No message quotes a value, which might be a secret.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from embedding_service.settings import catalogue
from embedding_service.settings.gateway import Settings
from embedding_service.settings.model import AliasSettings, ModelOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

    from embedding_service.settings.catalogue import Setting

_NOTHING: Mapping[str, Any] = MappingProxyType({})
# The forms of values in `catalogue`, and the beginnings of pydantic's types of errors about them.
_FORMS = {
    "INTEGER": "a whole number",
    "NUMBER": "a number",
    "TEXT": "text (a number needs quotes)",
    "LIST": "a list, such as [a, b]",
    "MAPPING": "a mapping, such as {a: b}",
    "PATH": "a path",
    "RATE": "a number per time",
}
_BY_TYPE = {
    "int": "INTEGER",
    "float": "NUMBER",
    "string_type": "TEXT",
    "tuple": "LIST",
    "list": "LIST",
    "dict": "MAPPING",
    "model": "MAPPING",
}
_LIMITS = {
    "min_length": "a length of at least {}",
    "max_length": "a length of at most {}",
    "ge": "at least {}",
    "gt": "more than {}",
    "le": "at most {}",
    "lt": "less than {}",
}
# Where a form alone says too little.
_OWN = {
    "models": "a list of models: `- {model_name: …}`",
    "aliases": "a list of names, or a mapping from names to prompts",
    "instruction_template": "text that must contain {instruction}",
    "root_path": "a path, such as /embeddings",
    "otlp_endpoint": "a URL, such as http://localhost:4318",
}


def one_line(error: ValidationError, set_by: Mapping[str, str] = _NOTHING) -> str:
    """Return every problem with its place, once.

    `set_by` names the variable that set a setting.
    """
    items = error.errors(include_url=False, include_input=False)
    if error.title != Settings.__name__:  # an entry of keys, whose `models` are others
        return "; ".join(
            f"{_shown(item['loc'])}: {_said(item)}".removeprefix(": ") for item in items
        )
    return "; ".join(dict.fromkeys(_problem(item, set_by) for item in items))


def did_you_mean(name: str, fields: Iterable[str]) -> str:
    """Return a question about the field that is nearest to a name, if one is near."""
    close = get_close_matches(name, fields, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _problem(item: ErrorDetails, set_by: Mapping[str, str]) -> str:
    place, setting = item["loc"], _setting(item["loc"])
    if setting is not None and item["type"] not in ("value_error", "extra_forbidden"):
        place, said = _at(place), f"expected {_expected(setting)}"
    else:
        said = _said(item)
    where = _shown(place)
    if variable := set_by.get(".".join(map(str, place))):
        where = f"{variable} (which sets {where})"
    return f"{where}: {said}" if where else said


def _at(place: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return the place of the setting that a place lies in: an entry of `models` has its own."""
    inside = len(place) > 2 and place[0] == "models"  # noqa: PLR2004 - its number and its setting
    return place[:3] if inside else place[:1]


def _setting(place: tuple[int | str, ...]) -> Setting | None:
    """Return the setting at a place, or whose form is there; None for a part of a value."""
    at = _at(place)
    setting = catalogue.find(str(at[-1])) if at else None
    if setting is None or (place != at and {"LIST", "MAPPING"} & set(setting.type.split("|"))):
        return None
    return setting


def _expected(setting: Setting) -> str:
    if setting.name in _OWN:
        return _OWN[setting.name]
    *others, last = [_FORMS.get(form, form) for form in setting.type.split("|")]
    forms = f"{', '.join(others)} or {last}" if others else last
    bounds = re.sub(r"^at least (\S+), at most (\S+)$", r"\1 to \2", setting.bounds)
    return f"{forms}, {bounds}" if bounds else forms


def _said(item: ErrorDetails) -> str:
    """Return an error without its place."""
    kind, facts = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown(item["loc"])
    if kind == "missing":
        return "is missing; add it"
    limit = next(
        (words.format(facts[name]) for name, words in _LIMITS.items() if name in facts), None
    )
    forms = (form for beginning, form in _BY_TYPE.items() if kind.startswith(beginning))
    wanted = facts.get("expected") or limit or _FORMS.get(next(forms, ""))
    if kind == "model_type" and item["loc"][:1] == ("models",):
        wanted = "a model's settings: `{model_name: …}`"
    return f"expected {wanted}" if wanted else item["msg"].removeprefix("Value error, ")


def _unknown(place: tuple[int | str, ...]) -> str:
    name = str(place[-1])
    if len(place) == 1:
        return f"no such setting{did_you_mean(name, Settings.model_fields)}"
    if "aliases" in place:
        return f"no such field{did_you_mean(name, AliasSettings.model_fields)}"
    if place[0] == "models" and name in Settings.model_fields:
        return "is set for the whole gateway; move it to the top level"
    fields = ModelOptions.model_fields if place[0] == "models" else ()
    return f"no such setting{did_you_mean(name, fields)}"


def _shown(place: tuple[int | str, ...]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return "".join(parts).removeprefix(".")

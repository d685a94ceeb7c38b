"""Every setting as a person reads it: type, default, bounds, names, and what it is near to.

All of it comes from the fields and from `groups`; nothing is written twice.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from embedding_service.settings.gateway import ENV_PREFIX, Settings
from embedding_service.settings.groups import NAMES, Group, group_of
from embedding_service.settings.model import EngineOptions, ModelOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedding_service.types import Json


_TYPES = {
    "integer": "INTEGER",
    "number": "NUMBER",
    "string": "TEXT",
    "boolean": "true|false",
    "array": "LIST",
    "object": "MAPPING",
}
_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "minLength": "at least {} character",
    "pattern": "matches {}",
}
_UNGROUPED = Group("Others", ())
_MOST_RELATED = 6


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `choices` are all values that it may have, where these can be listed."""

    name: str
    description: str
    type: str
    default: str | None
    bounds: str
    choices: tuple[str, ...]
    group: Group

    @property
    def flag(self) -> str:
        """The flag that sets it."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return ENV_PREFIX + self.name.upper()

    @property
    def scope(self) -> str:
        """Whether entries of `models` have it."""
        if self.name in EngineOptions.model_fields:
            return "each model; at the top level, the default of all models"
        return "each model" if self.name in ModelOptions.model_fields else "the whole gateway"


@cache
def settings() -> dict[str, Setting]:
    """Return all settings by name, in the order of the groups."""
    tree = Settings.model_json_schema()
    return {name: _setting(name, tree) for name in dict.fromkeys((*NAMES, *Settings.model_fields))}


def find(name: str) -> Setting | None:
    """Return the setting of a name, a flag or a variable."""
    return settings().get(_bare(name))


def _bare(name: str) -> str:
    word = name.strip().lstrip("-").replace("-", "_").lower()
    return word.removeprefix(ENV_PREFIX.lower())


def near(name: str) -> list[str]:
    """Return the settings that somebody may have meant by a name, the likeliest first."""
    known, word = list(settings()), _bare(name)
    slips = get_close_matches(word, known, n=1, cutoff=0.8)
    of_a_kind = [setting for setting in known if setting.startswith(f"{word.partition('_')[0]}_")]
    holding = [setting for setting in known if word and word in setting]
    found = [*slips, *of_a_kind[:2], *holding[:5], *get_close_matches(word, known, n=3)]
    return list(dict.fromkeys(found))


def related(setting: Setting) -> list[str]:
    """Return settings that name this one or are named by it, then its neighbours."""
    everything = settings().values()
    linked = [
        other.name
        for other in everything
        if _names(setting.description, other.name) or _names(other.description, setting.name)
    ]
    place = setting.group.names.index(setting.name) if setting.name in setting.group.names else 0
    beside = setting.group.names[max(0, place - 2) : place + 3]
    found = dict.fromkeys([*linked, *beside])
    return [name for name in found if name != setting.name][:_MOST_RELATED]


def _names(text: str, name: str) -> bool:
    """Tell whether a sentence names a setting: words such as `port` alone are no name."""
    return "_" in name and re.search(rf"\b{name}\b", text) is not None


def _setting(name: str, tree: Json) -> Setting:
    forms = list(_forms(tree["properties"][name], tree["$defs"]))
    field = Settings.model_fields[name]
    return Setting(
        name,
        field.description or "",
        type="|".join(dict.fromkeys(map(_type, forms))),
        default=_shown(name, field.get_default(call_default_factory=True)),
        bounds=", ".join(_bounds(forms)),
        choices=tuple(_choices(forms)),
        group=group_of(name) or _UNGROUPED,
    )


def _forms(entry: Json, definitions: Json) -> Iterator[Json]:
    """Yield the schemas of the values that a setting may have, but for null."""
    if "$ref" in entry:
        entry = definitions[entry["$ref"].rpartition("/")[2]]
    for part in entry.get("anyOf", [entry]):
        if part is not entry:
            yield from _forms(part, definitions)
        elif part.get("type") != "null":
            yield part


def _type(form: Json) -> str:
    if "enum" in form or "const" in form:
        return "|".join(form.get("enum", [form.get("const")]))
    if form.get("format") == "path":
        return "PATH"
    return "RATE" if "examples" in form else _TYPES.get(form.get("type", ""), "VALUE")


def _choices(forms: list[Json]) -> Iterator[str]:
    for form in forms:
        if form.get("type") == "boolean":
            yield from ("true", "false")
        yield from form.get("enum", [form["const"]] if "const" in form else [])


def _bounds(forms: list[Json]) -> Iterator[str]:
    for form in forms:
        for key, words in _BOUNDS.items():
            if key in form and "examples" not in form:
                yield words.format(form[key])
        yield from (f"such as {example}" for example in form.get("examples", ()))


def _shown(name: str, default: Any) -> str | None:
    """Return a default as it would be written in YAML, or None if there is nothing to write."""
    if default is None or default in ((), {}, ""):
        return None
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, int) and name.endswith("_bytes"):
        return f"{default} ({default >> 20} MiB)"
    if isinstance(default, BaseModel):
        return default.model_dump_json(exclude_defaults=True)
    return json.dumps(default) if isinstance(default, tuple | dict) else str(default)

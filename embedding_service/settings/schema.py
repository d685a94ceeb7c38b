"""A JSON Schema of a YAML file of settings, for editors: names, types, bounds, sentences.

It accepts the short forms that `load` reads (`aliases: [a]`, `docs: off`), and is stricter where
editors should be: a number in quotes is none.
"""

from __future__ import annotations

import json
from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING

from embedding_service.settings.gateway import OTHER_LEVELS, Settings
from embedding_service.settings.groups import NAMES
from embedding_service.settings.model import ModelOptions, comma_separated

if TYPE_CHECKING:
    from embedding_service.types import Json

_TEXT: Json = {"type": "string"}
_TEXTS: Json = {"type": "array", "items": _TEXT}
# Beside a model's own schema: forms that a validator in front of it turns into the long one.
_SHORT_FORMS: dict[str, list[Json]] = {"aliases": [_TEXTS, _TEXT], "api_keys": [_TEXT]}
_SHORT_ENTRIES: dict[str, list[Json]] = {
    "api_keys": [_TEXT],
    "environment": [_TEXT, _TEXTS, {"type": "null"}],
}
_HEAD: Json = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Settings of embedding-service",
}


def schema() -> Json:
    """Return the schema, its properties in the order of the groups."""
    tree = Settings.model_json_schema()
    definitions = tree["$defs"]
    del tree["title"]
    tree["properties"] = _in_order(_properties(tree["properties"], Settings))
    models = definitions["ModelOptions"]
    models["properties"] = _in_order(_properties(models["properties"], ModelOptions))
    for definition in definitions.values():
        for entry in definition.get("properties", {}).values():
            entry.pop("title", None)
    return _HEAD | tree


@cache
def schema_text() -> str:
    """Return the schema as it is published in config/settings.schema.json."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _in_order(properties: Json) -> Json:
    known = {name: properties[name] for name in NAMES if name in properties}
    return known | properties


def _properties(properties: Json, owner: type[ModelOptions]) -> Json:
    return {name: _loosened(name, entry, owner) for name, entry in properties.items()}


def _loosened(name: str, entry: Json, owner: type[ModelOptions]) -> Json:
    """Return the schema of a setting that also takes its short forms."""
    entry = deepcopy(entry)
    entry.pop("title", None)
    about = {key: entry.pop(key) for key in ("description", "default") if key in entry}
    return about | _with(_entries(name, entry), _others(name, entry, owner))


def _others(name: str, entry: Json, owner: type[ModelOptions]) -> list[Json]:
    """Return the other forms of a setting's value."""
    if name in _SHORT_FORMS:
        return _SHORT_FORMS[name]
    if name == "log_level":
        other = sorted({*OTHER_LEVELS, *map(str.upper, (*entry["enum"], *OTHER_LEVELS))})
        return [{"enum": other}]
    if "off" in entry.get("enum", ()):
        return [{"const": False}]  # as YAML reads a bare `off`
    validators = [getattr(part, "func", None) for part in owner.model_fields[name].metadata]
    return [_TEXT] if comma_separated in validators else []


def _entries(name: str, entry: Json) -> Json:
    """Return the schema of a list or mapping whose entries have short forms, too."""
    for key in ("items", "additionalProperties"):
        if name in _SHORT_ENTRIES and key in entry:
            entry[key] = _with(entry[key], _SHORT_ENTRIES[name])
    return entry


def _with(entry: Json, others: list[Json]) -> Json:
    return {"anyOf": [entry, *others]} if others else entry

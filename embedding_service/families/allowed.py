"""Keys and values that files may have: an allow-list, since vLLM passes over what it does not know.

Each that is not in it is refused with its file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embedding_service.families.checkpoint import ModelRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedding_service.families.checkpoint import Json


def check(place: str, found: Mapping[str, Any], allowed: Mapping[str, Any]) -> None:
    """Raise `ModelRefused` about a key or a value that is not allowed; None allows all values."""
    for key, value in found.items():
        if key not in allowed:
            if value not in (None, False, {}, [], ""):
                raise unknown(place, key, value)
        elif allowed[key] is not None and not _among(value, allowed[key]):
            raise unknown(place, key, value)


def _among(value: Any, allowed: set[Any]) -> bool:
    return value is None or (not isinstance(value, list | dict) and value in allowed)


def unknown(place: str, key: str, value: object) -> ModelRefused:
    """Return the error about a key or a value that is not known."""
    return ModelRefused(
        f"{place} says {key}: {value!r}, which cannot be computed here; if it changes no number, "
        "take it out in a folder of your own and set model_path"
    )


def integer(place: str, config: Json, key: str) -> int:
    """Return a whole number. Raises `ModelRefused` where there is none."""
    if not isinstance(config.get(key), int):
        raise unknown(place, key, config.get(key))
    return int(config[key])

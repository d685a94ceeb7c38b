"""The manifest of a job: what its folder was made of, and how two jobs differ, told to a person."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel

from embedding_service.errors import BadConfiguration
from embedding_service.types import Json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MANIFEST = "_manifest.json"
SPACE = "_space.json"  # of the first engine of a cluster, until the manifest has it
_VERSION = 1


class Manifest(BaseModel):
    """The content of `_manifest.json`: the good rows of each part, and what they were made of.

    `engine` stands for the settings of the engine: others may mean other numbers, or not.
    """

    version: int = _VERSION
    made_of: Json
    engine: str | None = None
    complete: bool
    rows: int
    parts: dict[str, int]


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a folder, None for an empty folder. Raises `BadConfiguration`."""
    path = folder / MANIFEST
    try:
        tree = orjson.loads(path.read_bytes())
        if tree["version"] != _VERSION:
            raise BadConfiguration(f"{path} is of version {tree['version']}; take another folder")
        return Manifest.model_validate(tree)
    except FileNotFoundError:
        if any(entry.name[0] != "." for entry in folder.iterdir()):
            raise BadConfiguration(
                f"{folder} holds something else, and no {MANIFEST}; take another folder"
            ) from None
        return None
    except (ValueError, TypeError, KeyError, OSError):
        raise BadConfiguration(f"{path} is damaged; take another folder") from None


def known_space(folder: Path) -> Json:
    """Return what the engines of a cluster have agreed on, if anything."""
    try:
        return dict(orjson.loads((folder / SPACE).read_bytes()))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, OSError):
        raise BadConfiguration(f"{folder / SPACE} is damaged; take another folder") from None


def differences(found: Json, wanted: Json) -> Iterator[str]:
    """Yield where two identities differ, for a person; `found` may have more.

    Where both know the vector space its hex alone is compared: a model may have several names.
    """
    spaces = found.get("vector_space"), wanted.get("vector_space")
    if all(spaces) and len({hex_of(str(space)) for space in spaces}) == 1:
        wanted = wanted | {"vector_space": spaces[0], "model": found.get("model")}
    yield from _differences(found, wanted)


def hex_of(space: str) -> str:
    """Return the part of a vector space's id that is compared."""
    return space.rpartition("@")[2]


def _differences(found: Any, wanted: Any, place: str = "") -> Iterator[str]:
    if _is_input(found) and _is_input(wanted) and found["path"] == wanted["path"]:
        if found != wanted:
            yield _changed(wanted)
    elif isinstance(found, dict) and isinstance(wanted, dict):
        for name, value in wanted.items():
            where = f"{place}.{name}" if place else str(name)
            yield from _differences(found.get(name, value), value, where)
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for index, (was, value) in enumerate(zip(found, wanted, strict=True)):
            yield from _differences(was, value, f"{place}[{index}]")
    elif found != wanted:
        yield f"its {place} is {_shown(found)}, and not {_shown(wanted)}"


def _is_input(value: Any) -> bool:
    return isinstance(value, dict) and "path" in value


def _changed(source: Json) -> str:
    """Say what is different about an input that has been seen before."""
    if "first_line" in source:
        return "standard input begins with another line"
    if not source["changed_ns"]:
        return f"{source['path']} has been changed"
    when = datetime.fromtimestamp(source["changed_ns"] / 1e9, UTC)
    return f"{source['path']} was changed at {when:%Y-%m-%d %H:%M:%S} UTC"


def _shown(value: Any) -> str:
    text = f"{len(value)} items" if isinstance(value, list | dict) else repr(value)
    return text[:200]

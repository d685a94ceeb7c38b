"""A configuration file as a tree of plain values.

No error quotes a value, which might be a secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from embedding_service.errors import BadConfiguration
from embedding_service.settings.bounded_yaml import FewMerges, TooMuch, check_depth
from embedding_service.settings.gateway import Settings

if TYPE_CHECKING:
    from pathlib import Path

_SHORTEST_SECRET = 4
_MOST_VALUES = 1_000_000
# The reader's words for what is at fault where it begins, if it goes on to the end of the file.
_OPENED = (
    "while scanning a quoted scalar",
    "while parsing a flow sequence",
    "while parsing a flow mapping",
)
_LIST = "`embedding-service settings` lists them"


def read(path: Path) -> dict[str, Any]:
    """Return the settings in a file. Raises `BadConfiguration`, in one line that names the file."""
    tree = _parse(path)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise BadConfiguration(f"{path} holds no settings; write lines such as `port: 8890`")
    for key in tree:
        if not isinstance(key, str):
            raise BadConfiguration(f"{path}: {_shown(key)} is no setting; {_LIST}")
    return tree


def _parse(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        check_depth(text)
        return _ending(yaml.load(text, Loader=_UniqueKeys))  # noqa: S506 - a SafeLoader
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise BadConfiguration(f"{path}: {why}; name a file that can be read") from None
    except TooMuch as error:
        raise BadConfiguration(f"{path} {error}; write it out, and flat") from None
    except yaml.MarkedYAMLError as error:
        raise BadConfiguration(f"{path}: {_not_yaml(error)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadConfiguration(f"{path}: {' '.join(str(error).split())}") from None


def _not_yaml(error: yaml.MarkedYAMLError) -> str:
    """Return the place of an error and what to do; its own text shows secrets of the line."""
    problem, mark = error.problem or "", error.problem_mark
    opened = error.context in _OPENED and "stream" in problem
    if opened and error.context_mark:
        mark, remedy = error.context_mark, "opens a quote or a bracket; close it"
    elif r"'\t'" in problem:
        remedy = "is a tab, which cannot indent YAML; use spaces"
    else:
        remedy = "is not valid YAML; put text with special characters in quotes"
    where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "something in it"
    return f"{where} {remedy}"


def _shown(key: object) -> str:
    """Return a key in quotes if it is the name of a setting, or too short for a secret."""
    short = not isinstance(key, str) and len(repr(key)) < _SHORTEST_SECRET
    return repr(key) if short or key in Settings.model_fields else "a name"


def _ending(tree: Any) -> Any:
    """Return a tree.

    Raises `ValueError` if a value is a part of itself by way of an anchor, or no path could hold
    it, `TooMuch` if anchors make it far larger than the file.
    """
    sizes: dict[int, int] = {}

    def visit(value: Any, above: tuple[int, ...]) -> int:
        if id(value) in above:
            raise ValueError("an anchor's value holds itself; write it out")
        if isinstance(value, str) and "\0" in value:
            raise ValueError("a text in it has a NUL character; take that out")
        if not isinstance(value, dict | list):
            return 1
        if id(value) not in sizes:
            parts = value.values() if isinstance(value, dict) else value
            sizes[id(value)] = 1 + sum(visit(part, (*above, id(value))) for part in parts)
        return sizes[id(value)]

    if visit(tree, ()) > _MOST_VALUES:
        raise TooMuch(f"has more than {_MOST_VALUES} values, where its anchors are written out")
    return tree


class _UniqueKeys(FewMerges, yaml.SafeLoader):
    """YAML in which a key given twice is an error instead of a silent loss."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:  # noqa: FBT001, FBT002
        merge = "tag:yaml.org,2002:merge"  # `<<: *anchor`, which may come more than once
        seen: list[Any] = []
        for key_node in (key for key, _ in node.value if key.tag != merge):
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: {_shown(key)} is given twice; keep one")
            seen.append(key)
        return super().construct_mapping(node, deep)

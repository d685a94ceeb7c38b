"""Environment variables of a system that this service replaces, and the settings they set.

They are data, under the setting `environment`: nothing here knows such a system by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter

from embedding_service.errors import BadConfiguration
from embedding_service.settings.model import Strict

if TYPE_CHECKING:
    from collections.abc import Mapping

_BOOLEANS = {"1": "true", "yes": "true", "on": "true", "0": "false", "no": "false", "off": "false"}


def _long_form(value: object) -> object:
    """Read the short forms: one setting, several, or null for a variable without effect."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"settings": [value]}
    return {"settings": value} if isinstance(value, list) else value


class OldVariable(Strict):
    """The settings that a variable sets, such as `models.0.dtype`.

    `values` translates the replaced system's words; without it the text is taken as it is. With
    `if_folder` a path counts only where there is such a folder, and `default` is the path of a
    variable that is not set.
    """

    settings: tuple[str, ...] = ()
    values: dict[str | bool, Any] = Field(default_factory=dict)
    if_folder: bool = False
    default: str = ""

    def read(self, name: str, text: str) -> Any:
        """Return the setting's value. Raises `BadConfiguration` for a word not in `values`."""
        if not self.values:
            return text
        words = {str(word).lower(): value for word, value in self.values.items()}
        word = text.lower()
        word = _BOOLEANS.get(word, word)
        if word not in words:
            raise BadConfiguration(f"{name} is {text!r}, and must be one of {', '.join(words)}")
        return words[word]


OldVariables = dict[str, Annotated[OldVariable, BeforeValidator(_long_form)]]


def apply(tree: dict[str, Any], environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Write the old variables that are set into `tree`, over the values of the file.

    Returns which variable set each setting, and a warning for every variable without effect.
    Raises `BadConfiguration`, and pydantic's `ValidationError` if `environment` itself is wrong.
    """
    set_by: dict[str, str] = {}
    warnings: list[str] = []
    for name, variable in _described(tree).items():
        given = environ.get(name, "").strip()
        text = given or variable.default
        if not text:
            continue
        if variable.if_folder and not _is_folder(text):
            if given:
                warnings.append(f"{name} is {text}, and there is no such folder; it has no effect")
            continue
        if not variable.settings:
            warnings.append(f"{name} is set and has no effect any more")
            continue
        value = variable.read(name, text)
        for setting in variable.settings:
            _put(tree, setting, value, name=name)
            set_by[setting] = name
    return set_by, warnings


def _is_folder(text: str) -> bool:
    return Path(text).is_dir()


def _described(tree: dict[str, Any]) -> OldVariables:
    environment = tree.get("environment")
    if not isinstance(environment, dict):
        return {}  # there is none, or `Settings` will refuse it
    return TypeAdapter(OldVariables).validate_python(environment)


def _put(tree: dict[str, Any], setting: str, value: object, *, name: str) -> None:
    """Set `models.0.dtype` in a tree of mappings and lists; missing mappings are made."""
    node: Any = tree
    *parents, last = setting.split(".")
    try:
        for key in parents:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        node[last] = value
    except (AttributeError, LookupError, TypeError, ValueError):
        raise BadConfiguration(
            f"{name} sets {setting}, for which the file has no place; write another"
        ) from None

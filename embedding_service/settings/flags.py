"""Flags of the command line: any setting, as `--name value` or `--name=value`."""

from __future__ import annotations

from collections import deque
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import yaml

from embedding_service.errors import BadConfiguration
from embedding_service.settings.gateway import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable


def read(arguments: Iterable[str], options: Iterable[str] = ()) -> dict[str, Any]:
    """Return the settings in flags. Raises `BadConfiguration`.

    `[…]`, `{…}` and `null` are YAML, everything else is text; alone, a flag that may be true is.
    `options` are flags of the command's own, which an unknown one may have been meant for.
    """
    flags: dict[str, Any] = {}
    rest = deque(arguments)
    while rest:
        argument = rest.popleft()
        if not argument.startswith("--"):
            remedy = "write --name value, and a model as --model-name NAME or --model-path FOLDER"
            raise BadConfiguration(f"{_shown(argument)} is not a flag; {remedy}")
        name, equals, text = argument.removeprefix("--").partition("=")
        field = name.replace("-", "_")
        if field not in Settings.model_fields:
            raise BadConfiguration(f"--{name}: no such setting; try {_hint(name, options)}")
        if not equals:
            follows = rest and not rest[0].startswith("--")
            text = rest.popleft() if follows else _alone(name)
        flags[field] = _value(name, text)
    return flags


def _alone(name: str) -> str:
    """Return the value of a flag that none follows."""
    from embedding_service.settings.catalogue import find  # noqa: PLC0415 - seldom needed

    setting = find(name)
    if setting is None or "true" not in setting.choices:
        raise BadConfiguration(f"--{name}: a value is missing; write --{name} VALUE")
    return "true"


def _hint(name: str, options: Iterable[str]) -> str:
    from embedding_service.settings.catalogue import near  # noqa: PLC0415 - only on the way out

    own = get_close_matches(name, [option.lstrip("-") for option in options], n=1, cutoff=0.7)
    meant = [f"--{each.replace('_', '-')}" for each in (*own, *near(name))]
    return " or ".join(meant[:3]) or "`embedding-service settings`, which lists all"


def _shown(argument: str) -> str:
    """Return an argument in quotes if it is the name of a setting: it may be half of a password."""
    name = argument.lstrip("-").replace("-", "_")
    return repr(argument) if name in Settings.model_fields or len(name) == 1 else "an argument"


def _value(name: str, text: str) -> object:
    if text != "null" and not text.startswith(("[", "{")):
        return text
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # whose texts show the value
        raise BadConfiguration(f"--{name}: its value is not valid YAML; put it in quotes") from None

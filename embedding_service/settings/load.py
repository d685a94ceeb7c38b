"""From a YAML file, `EMBEDDING_*` variables and flags, in rising order, to one tree of settings.

What is wrong is told in one line that names the field and never quotes a value, which might be a secret.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from embedding_service.errors import BadConfiguration
from embedding_service.settings.gateway import ENV_PREFIX, Settings
from embedding_service.settings.model import ModelOptions
from embedding_service.settings.presets import apply_old_variables

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


def load(config: Path | None = None, flags: Mapping[str, Any] | None = None) -> tuple[Settings, list[str]]:
    """Read file, environment and flags; return the settings and warnings worth a log line.

    Raises `BadConfiguration` with one line that names the field.
    """
    service_link = os.environ.get(f"{ENV_PREFIX}PORT", "")
    if service_link.startswith("tcp://"):
        raise BadConfiguration(
            f"EMBEDDING_PORT is {service_link!r}, which Kubernetes sets for a service named 'embedding'; "
            "set enableServiceLinks: false on the pod, or rename the service"
        )
    tree = _read_yaml(config) if config else {}
    applied: dict[str, str] = {}
    try:
        ignored = apply_old_variables(tree, os.environ, applied)
        settings: Settings = type("BoundSettings", (Settings,), {"yaml_tree": tree})(**(flags or {}))
    except BadConfiguration:
        raise
    except ValidationError as error:
        raise BadConfiguration(one_line(error, applied)) from None
    except Exception as error:  # noqa: BLE001 - pydantic-settings' own SettingsError, by way of JSON in the environment
        raise BadConfiguration(str(error).splitlines()[0]) from None
    return settings, ignored + _unknown_variables(os.environ, settings.environment)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfiguration(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise BadConfiguration(f"{path}: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise BadConfiguration(f"{path}: expected a mapping of settings, found {type(tree).__name__}")
    for key in tree:
        if not isinstance(key, str):
            raise BadConfiguration(f"{path}: {key!r} is not the name of a setting")
    return tree


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key given twice is an error instead of a silent loss."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        merge = "tag:yaml.org,2002:merge"  # `<<: *anchor`, which may come more than once
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != merge]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key!r} is given twice, line {node.start_mark.line + 1} ff.")
        return super().construct_mapping(node, deep)


def one_line(error: ValidationError, sources: Mapping[str, str] | None = None) -> str:
    """Return every problem with its place and never a value, which might be a secret.

    `sources` names variables that set what is at a place.
    """
    problems = []
    for item in error.errors(include_url=False, include_context=False):
        where = ".".join(str(part) for part in item["loc"])
        what = item["msg"].removeprefix("Value error, ")
        if sources and where in sources:
            where = f"{sources[where]} (which sets {where})"
        if item["type"] == "extra_forbidden":
            fields = ModelOptions.model_fields if item["loc"][0] == "models" else Settings.model_fields
            what = "no such setting" + _did_you_mean(str(item["loc"][-1]), fields)
        problems.append(f"{where}: {what}" if where else what)
    return "; ".join(problems)


def _did_you_mean(name: str, fields: Iterable[str]) -> str:
    from difflib import get_close_matches  # noqa: PLC0415 - only on the way out

    close = get_close_matches(name, fields, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _unknown_variables(environ: Mapping[str, str], old: Iterable[str]) -> list[str]:
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | {f"{ENV_PREFIX}CONFIG", *old}
    kubernetes = re.compile(r"_(SERVICE_(HOST|PORT.*)|PORT_\d+_(TCP|UDP).*)$")
    return [
        f"{name} is set and means nothing here"
        + _did_you_mean(name.removeprefix(ENV_PREFIX).lower(), Settings.model_fields)
        for name in sorted(environ)
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known and not kubernetes.search(name)
    ]

"""From a YAML file, `EMBEDDING_*` variables and flags, in rising order, to one tree of settings.

Every mistake ends in one line that names the field. It never quotes a value, which might be a
secret.
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, InitSettingsSource, SettingsError

from embedding_service.errors import BadConfiguration
from embedding_service.settings import old_variables, service_links, yaml_file
from embedding_service.settings.gateway import ENV_PREFIX, Settings
from embedding_service.settings.problems import did_you_mean, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from embedding_service.types import Json


class PresetRules(Protocol):
    """The part of a preset that is known before anything starts."""

    def check(self, settings: Settings) -> None:
        """Raise `BadConfiguration` if the preset cannot be served with these settings."""


def load(
    config: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    *,
    presets: Callable[[], Mapping[str, PresetRules]] = dict,
) -> tuple[Settings, list[str]]:
    """Read file, environment and flags; return the settings, and warnings worth a log line.

    `presets` returns the names that the setting `preset` may have, and is only called where it is
    set: importing all of them takes a tenth of a second. Raises `BadConfiguration`.
    """
    _refuse_service_link()
    tree = yaml_file.read(config) if config else {}
    set_by: dict[str, str] = {}
    try:
        set_by, warnings = old_variables.apply(tree, os.environ)
        set_by |= _set_by_variables(besides=flags or {})
        settings = _merge(flags or {}, tree)
    except ValidationError as error:
        raise BadConfiguration(one_line(error, set_by)) from None
    except SettingsError as error:  # a variable should hold JSON and does not
        field = re.search(r'field "(\w+)"', str(error))
        name = f"{ENV_PREFIX}{field[1]}".upper() if field else "a variable"
        raise BadConfiguration(f"{name}: expected JSON, such as [{{}}] or {{}}") from None
    if settings.preset is not None:
        _check_preset(settings, settings.preset, presets())
    _check_exposure(settings)
    return settings, [*warnings, *_unknown_variables(settings.environment), *_links_of_vllm()]


def _merge(flags: Mapping[str, Any], tree: Json) -> Settings:
    sources = (
        InitSettingsSource(Settings, dict(flags)),
        EnvSettingsSource(Settings, case_sensitive=False),
        InitSettingsSource(Settings, tree),
    )
    return Settings(_build_sources=(sources, {}))  # type: ignore[call-arg] # BaseSettings takes it


def _set_by_variables(*, besides: Mapping[str, Any]) -> dict[str, str]:
    """Return the variable that sets each setting, if one does and no flag wins over it."""
    given = {name.upper(): name for name, value in os.environ.items() if value}
    variables = {name: f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}
    return {
        name: given[variable]
        for name, variable in variables.items()
        if variable in given and name not in besides
    }


def _refuse_service_link() -> None:
    port = os.environ.get(f"{ENV_PREFIX}PORT", "")
    if port.startswith("tcp://"):
        raise BadConfiguration(
            f"EMBEDDING_PORT is {port!r}, which Kubernetes sets for a service named 'embedding'; "
            "set enableServiceLinks: false on the pod, or rename the service"
        )


def _links_of_vllm() -> list[str]:
    return [
        f"{name} is what Kubernetes sets for a service called 'vllm…'; engines do not see it"
        for name in service_links.of_vllm(os.environ)
    ]


def _check_preset(settings: Settings, name: str, presets: Mapping[str, PresetRules]) -> None:
    if name not in presets:
        raise BadConfiguration(f"preset: expected one of {', '.join(presets) or 'nothing'}")
    presets[name].check(settings)


def _check_exposure(settings: Settings) -> None:
    """Refuse to serve other machines without a key unless the operator asks for that."""
    if settings.has_keys or settings.allow_anonymous:
        return
    if not (settings.uds or _is_loopback(settings.host)):
        raise BadConfiguration(
            f"host: {settings.host} can be reached from other machines; set api_keys or "
            "api_keys_file, or allow_anonymous: true if that is what you want"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _unknown_variables(old: Iterable[str]) -> list[str]:
    """Return a warning for each variable that has our prefix and no setting."""
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    known |= {f"{ENV_PREFIX}CONFIG", *old}
    warnings = []
    for name in sorted(os.environ):
        ours = name.upper().startswith(ENV_PREFIX)
        ours = ours and not service_links.is_service_link(name, os.environ[name])
        if ours and name.upper() not in known:
            setting = name.removeprefix(ENV_PREFIX).lower()
            hint = did_you_mean(setting, Settings.model_fields)
            warnings.append(f"{name} is set and means nothing here{hint}")
    return warnings

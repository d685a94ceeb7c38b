"""API keys and whose they are: from settings, a file, the environment or systemd's credentials.

Only digests are kept. Making and hashing keys for `embedding-service keys` stands here too.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from typing import TYPE_CHECKING

import yaml
from pydantic import TypeAdapter, ValidationError

from embedding_service.errors import BadConfiguration
from embedding_service.settings import KeySettings, one_line
from embedding_service.types import Tenant

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from embedding_service.settings import Settings

_LARGEST_FILE = 1 << 20


def new_key() -> str:
    """Return a fresh key: 256 random bits."""
    return "emb-" + secrets.token_urlsafe(32)


def digest(key: bytes) -> bytes:
    """Return the sha256 of a key."""
    return hashlib.sha256(key).digest()


class KeyRing:
    """All known keys; `reload` swaps them for the current ones in one step."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tenants = _read(settings)

    def __len__(self) -> int:
        return len(self._tenants)

    def reload(self) -> None:
        """Read file and credentials again. Raises `BadConfiguration`, and keeps the keys it has."""
        tenants = _read(self._settings)
        if self._tenants and not tenants:
            raise BadConfiguration("api_keys: none is left, and a running service is not opened to everybody")
        self._tenants = tenants

    def find(self, presented: bytes) -> Tenant | None:
        """Return whose key this is; takes as long for a wrong key as for any right one."""
        sent, found = digest(presented), None
        for known, tenant in self._tenants.items():
            if hmac.compare_digest(sent, known):
                found = tenant
        return found


def _read(settings: Settings) -> dict[bytes, Tenant]:
    served = {name for model in settings.served_models for name in (model.model_name, *model.aliases)}
    tenants: dict[bytes, Tenant] = {}
    names: set[str] = set()
    for where, entry in _entries(settings):
        name = entry.name or f"key-{len(tenants) + 1}"
        if name in names:
            raise BadConfiguration(f"{where}: two keys are called {name!r}; limits are counted by name")
        names.add(name)
        if unknown := set(entry.models or ()) - served:
            raise BadConfiguration(f"{where}: {name}: models: {min(unknown)!r} is not served here")
        models = None if entry.models is None else frozenset(entry.models)
        tenants[entry.digest] = Tenant(name, models, entry.requests, entry.tokens)
    return tenants


def _entries(settings: Settings) -> Iterator[tuple[str, KeySettings]]:
    for entry in settings.api_keys:
        yield "api_keys", entry
    for variable in settings.api_keys_env:
        if value := os.environ.get(variable, "").strip():
            yield variable, _parse(variable, {"name": variable.lower(), "key": value})
    if (path := settings.keys_path) is not None:
        for item in _read_file(path):
            yield str(path), _parse(str(path), item)


def _read_file(path: Path) -> list[object]:
    """Return the entries of a file: a YAML list, or a single key."""
    try:
        with path.open(encoding="utf-8") as file:
            tree = yaml.safe_load(file.read(_LARGEST_FILE))
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfiguration(f"api_keys_file: {path}: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:  # its message quotes the line, and with it perhaps a key
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise BadConfiguration(f"api_keys_file: {path}: line {line} is not valid YAML") from None
    entries = tree if isinstance(tree, list) else [tree]
    if not tree:
        raise BadConfiguration(f"api_keys_file: {path} holds no key")
    return entries


def _parse(where: str, item: object) -> KeySettings:
    try:
        return TypeAdapter(KeySettings).validate_python(item)
    except ValidationError as error:
        raise BadConfiguration(f"{where}: {one_line(error)}") from None

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
from embedding_service.settings.gateway import KeySettings
from embedding_service.settings.load import one_line
from embedding_service.types import Tenant

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from embedding_service.settings.gateway import Settings

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
            raise BadConfiguration(
                "api_keys: none is left, and a running service is not opened to everybody"
            )
        self._tenants = tenants

    def find(self, presented: bytes) -> Tenant | None:
        """Return whose key this is; takes as long for a wrong key as for any right one."""
        sent, found = digest(presented), None
        for known, tenant in self._tenants.items():
            if hmac.compare_digest(sent, known):
                found = tenant
        return found


def _read(settings: Settings) -> dict[bytes, Tenant]:
    served = {
        name for model in settings.served_models for name in (model.model_name, *model.aliases)
    }
    tenants: dict[bytes, Tenant] = {}
    names: set[str] = set()
    for where, entry in _entries(settings):
        name = entry.name or f"key-{hashlib.sha256(b'name of ' + entry.digest).hexdigest()[:8]}"
        if (other := tenants.get(entry.digest)) is not None:
            raise BadConfiguration(
                f"{where}: {name} and {other.name} are the same key; leave one of them out"
            )
        if name in names:
            raise BadConfiguration(
                f"{where}: two keys are called {name!r}; limits are counted by name"
            )
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
        for number, item in enumerate(_read_file(path), 1):
            where = f"api_keys_file: {path}: entry {number}"
            yield where, _parse(where, item)


def _read_file(path: Path) -> list[object]:
    """Return the entries of a file: a YAML list, or a single key. No message quotes what is in it."""
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST_FILE + 1)
        if len(raw) > _LARGEST_FILE:
            raise BadConfiguration(
                f"api_keys_file: {path} is larger than 1 MiB, which a list of keys never is"
            )
        tree = yaml.safe_load(raw.decode())
    except OSError as error:
        raise BadConfiguration(
            f"api_keys_file: {path}: {error.strerror or type(error).__name__}"
        ) from None
    except UnicodeDecodeError:
        raise BadConfiguration(f"api_keys_file: {path} is not a text in UTF-8") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "something in it"
        raise BadConfiguration(
            f"api_keys_file: {path}: {where} is not valid YAML; put keys in quotes"
        ) from None
    if not tree:
        raise BadConfiguration(
            f"api_keys_file: {path} holds no key; `embedding-service keys new` makes one"
        )
    return tree if isinstance(tree, list) else [tree]


def _parse(where: str, item: object) -> KeySettings:
    try:
        return TypeAdapter(KeySettings).validate_python(item)
    except ValidationError as error:
        raise BadConfiguration(f"{where}: {one_line(error)}") from None

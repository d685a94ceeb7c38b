"""API keys and their owners: from settings, a file, the environment or systemd's credentials.

Only digests are kept. `embedding-service keys` makes and hashes keys with the functions here.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from typing import TYPE_CHECKING

import yaml
from pydantic import TypeAdapter, ValidationError

from embedding_service.errors import BadConfiguration
from embedding_service.settings.bounded_yaml import FewMerges, TooMuch, check_depth
from embedding_service.settings.keys import KeySettings
from embedding_service.settings.problems import one_line
from embedding_service.types import ANYONE, Tenant

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    from embedding_service.settings.gateway import Settings

_LARGEST_FILE_BYTES = 1 << 20
# 8,000 keys: 0.6 s in C where PyYAML was built with libyaml, 3.1 s in Python.
_InC = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_ENTRY = TypeAdapter(KeySettings)


class _Loader(FewMerges, _InC):  # type: ignore[misc, valid-type]
    """The loader, whichever there is, of files that others may write."""


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
        self._take(_read(settings))

    def _take(self, tenants: dict[bytes, Tenant]) -> None:
        self._tenants = tenants
        known = tenants.values() or (ANYONE,)
        self._by_name = {tenant.name: tenant for tenant in known}

    @property
    def names(self) -> Collection[str]:
        """The names of all owners; without keys, there is one that stands for everybody."""
        return self._by_name.keys()

    def owner(self, name: str) -> Tenant | None:
        """Return the owner of this name, with the rights that it has now."""
        return self._by_name.get(name)

    def __len__(self) -> int:
        return len(self._tenants)

    def reload(self) -> None:
        """Read file and credentials again. Raises `BadConfiguration`, and keeps the keys it has."""
        tenants = _read(self._settings)
        if self._tenants and not tenants:
            raise BadConfiguration(
                "api_keys: none is left, and a running service is not opened to everybody; add one"
            )
        self._take(tenants)

    def find(self, presented: bytes) -> Tenant | None:
        """Return the owner of a key.

        The time of a look-up may tell how the digest of a guess compares with those that are known.
        That is of no use: nobody can choose a key by its sha256, nor compute a key from it.
        """
        return self._tenants.get(digest(presented))


def _read(settings: Settings) -> dict[bytes, Tenant]:
    served = set[str]().union(*(model.names for model in settings.served_models))
    tenants: dict[bytes, Tenant] = {}
    names: set[str] = set()
    for where, entry in _entries(settings):
        tenant = _tenant(entry)
        if (other := tenants.get(entry.digest)) is not None:
            both = f"{tenant.name} and {other.name}"
            raise BadConfiguration(f"{where}: {both} are the same key; leave one of them out")
        if tenant.name in names:
            raise BadConfiguration(
                f"{where}: two keys are called {tenant.name!r}; give each a name of its own"
            )
        if unknown := (tenant.models or frozenset()) - served:
            raise BadConfiguration(
                f"{where}: {tenant.name}: models: {min(unknown)!r} is not served here; "
                "name models that are"
            )
        names.add(tenant.name)
        tenants[entry.digest] = tenant
    return tenants


def _tenant(entry: KeySettings) -> Tenant:
    """Return the owner; an unnamed one's name is always the same, and no part of the digest."""
    name = entry.name or f"key-{digest(b'name of ' + entry.digest).hex()[:8]}"
    models = None if entry.models is None else frozenset(entry.models)
    return Tenant(name, models, entry.requests, entry.tokens, entry.spaces)


def _entries(settings: Settings) -> Iterator[tuple[str, KeySettings]]:
    """Yield every entry with the place where it was found."""
    for entry in settings.api_keys:
        yield "api_keys", entry
    for variable in settings.api_keys_env:
        if value := os.environ.get(variable, "").strip():
            yield variable, _parse(variable, {"name": variable.lower(), "key": value})
    if (path := settings.keys_path) is not None:
        for number, item in enumerate(_read_file(path), 1):
            where = f"api_keys_file: {path}: entry {number}"
            yield where, _parse(where, item)


def _read_file(path: Path) -> Iterable[object]:
    """Return the entries of a file: a YAML list, or a single key. No error quotes the file."""
    tree = _parse_file(path)
    if not tree:
        raise BadConfiguration(
            f"api_keys_file: {path} holds no key; `embedding-service keys new` makes one"
        )
    return tree if isinstance(tree, list) else [tree]


def _parse_file(path: Path) -> object:
    try:
        if path.is_fifo():  # to open it would wait for a writer, at every SIGHUP again
            raise BadConfiguration(f"api_keys_file: {path} is a pipe; name a file of keys")
        with path.open("rb") as file:
            raw = file.read(_LARGEST_FILE_BYTES + 1)
        if len(raw) > _LARGEST_FILE_BYTES:
            raise BadConfiguration(
                f"api_keys_file: {path} is larger than 1 MiB; name a file of keys"
            )
        text = raw.decode()
        check_depth(text)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - safe, in C or in Python
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise BadConfiguration(
            f"api_keys_file: {path}: {reason}; name a file that can be read"
        ) from None
    except UnicodeDecodeError:
        raise BadConfiguration(
            f"api_keys_file: {path} is not a text in UTF-8; save it as one"
        ) from None
    except TooMuch as error:
        raise BadConfiguration(f"api_keys_file: {path} {error}; write a list of keys") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "something in it"
        raise BadConfiguration(
            f"api_keys_file: {path}: {where} is not valid YAML; put keys in quotes"
        ) from None


def _parse(where: str, item: object) -> KeySettings:
    try:
        return _ENTRY.validate_python(item)
    except ValidationError as error:
        raise BadConfiguration(f"{where}: {one_line(error)}") from None

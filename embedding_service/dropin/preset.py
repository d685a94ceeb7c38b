"""A preset as data: how a replaced system differs from the dialects that everybody speaks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from embedding_service.dialects.dialect import Dialect, Operation, Tree
    from embedding_service.dialects.errors import ErrorShape
    from embedding_service.service.lifecycle import Lifecycle
    from embedding_service.settings.gateway import Settings

_HOW = "Send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."


@dataclass(frozen=True, slots=True)
class KeyRules:
    """Messages for a missing and for a wrong key; `bare` takes a key without `Bearer` too."""

    missing: str = f"You didn't provide an API key. {_HOW}"
    wrong: str = f"Incorrect API key provided. {_HOW}"
    bare: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One replaced system.

    `dialects` are its own: at their paths nobody else answers. `instead` replaces dialects of these
    names by variants. `checks` refuse bodies by path. All errors are written as `errors`, but at
    the paths of `errors_at`. `check` raises `BadConfiguration` for settings that this system would
    not have started with. `metrics` registers the names that its metrics had.
    """

    name: str
    errors: ErrorShape | None = None
    errors_at: Mapping[str, ErrorShape] = field(default_factory=dict)
    dialects: Callable[[Settings], tuple[Dialect, ...]] = lambda _: ()
    instead: Mapping[str, Dialect] = field(default_factory=dict)
    checks: Mapping[str, Callable[[Tree], None]] = field(default_factory=dict)
    keys: KeyRules = KeyRules()
    check: Callable[[Settings], None] = lambda _: None
    metrics: Callable[[Lifecycle], None] | None = None

    def adapt(self, dialect: Dialect) -> Dialect:
        """Return a dialect as this system spoke it."""
        dialect = self.instead.get(dialect.name, dialect)
        return replace(dialect, operations=tuple(map(self._changed, dialect.operations)))

    def _changed(self, operation: Operation) -> Operation:
        if operation.method == "POST" and operation.path in self.checks:
            return replace(operation, check=self.checks[operation.path])
        return operation

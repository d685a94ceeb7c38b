"""Which operation answers where: the table of all paths, made from the dialects and a preset."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING

from starlette.routing import compile_path

from embedding_service.errors import InvalidRequest

if TYPE_CHECKING:
    import re
    from collections.abc import Container, Iterable, Iterator, Mapping

    from embedding_service.dialects.dialect import Dialect, Operation, Tree
    from embedding_service.dialects.errors import ErrorShape


@dataclass(frozen=True, slots=True)
class Mounted:
    """An operation of a dialect at its path, and how its errors are written here."""

    operation: Operation
    dialect: Dialect
    errors: ErrorShape


@dataclass(frozen=True, slots=True)
class Resource:
    """A path, and its operations by method; a body tells apart several under one method.

    `errors` is how errors are written before it is known which operation is meant. `names` are the
    other paths that do the same: those it is an alias of, then their aliases and its own.
    """

    path: str
    errors: ErrorShape
    methods: dict[str, list[Mounted]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    @property
    def alias_of(self) -> list[str]:
        """Return the paths that operations here are aliases of."""
        mounted = chain.from_iterable(self.methods.values())
        return list(dict.fromkeys(filter(None, (each.operation.alias_of for each in mounted))))

    def rated_as(self, rates: Container[str]) -> str:
        """Return the first of this path and its other names that has a rate."""
        return next((path for path in (self.path, *self.names) if path in rates), self.path)

    def parameters(self, path: str) -> dict[str, str]:
        """Return the parts of a path that this template names."""
        found = compile_path(self.path)[0].fullmatch(path) if "{" in self.path else None
        return found.groupdict() if found else {}

    def choose(self, method: str, tree: Tree) -> Mounted:
        """Return the operation that a body means. Raises `InvalidRequest` for none, or several."""
        mounted = self.methods[method]
        if len(mounted) == 1:
            return mounted[0]
        meant = [each for each in mounted if each.operation.when and each.operation.when(tree)]
        default = [each for each in mounted if each.operation.when is None]
        if len(meant) == 1:
            return meant[0]
        if not meant and default:
            return default[0]
        fields = telling_fields(mounted)
        raise InvalidRequest(
            f"send exactly one of {', '.join(fields)}",
            param=next((name for name in fields if name in tree), None),
        )


def telling_fields(mounted: Iterable[Mounted]) -> list[str]:
    """Return the fields that tell these operations apart."""
    predicates = (each.operation.when for each in mounted)
    return list(chain.from_iterable(each.fields for each in predicates if each))


class RouteTable:
    """All paths of this gateway.

    Where a preset has an operation, the dialects' operations for that path and method give way; if
    it has errors of its own, all errors are written so.
    """

    def __init__(
        self,
        dialects: Iterable[Dialect],
        *,
        preset: Iterable[Dialect] = (),
        errors: ErrorShape | None = None,
        errors_at: Mapping[str, ErrorShape] = MappingProxyType({}),
        default_errors: ErrorShape,
    ) -> None:
        self.errors = errors or default_errors
        self._everybodys = errors
        self._errors_at = errors_at
        self._exact: dict[str, Resource] = {}
        self._templates: list[tuple[re.Pattern[str], Resource]] = []
        for dialect in preset:
            self._mount(dialect, {})
        taken = {resource.path: frozenset(resource.methods) for resource in self}
        for dialect in dialects:
            self._mount(dialect, taken)
        self._name_all()

    def __iter__(self) -> Iterator[Resource]:
        yield from self._exact.values()
        yield from (resource for _, resource in self._templates)

    @property
    def with_body(self) -> set[str]:
        """Paths to which a body can be sent."""
        return {resource.path for resource in self if "POST" in resource.methods}

    def is_served(self, path: str) -> bool:
        """Tell whether exactly this path is served, and not by a template."""
        return path in self._exact

    def find(self, path: str) -> Resource | None:
        """Return what is served at a path."""
        resource = self._exact.get(path)
        if resource is None:
            for pattern, candidate in self._templates:
                if pattern.fullmatch(path):
                    return candidate
        return resource

    def _mount(self, dialect: Dialect, taken: Mapping[str, frozenset[str]]) -> None:
        for operation in dialect.operations:
            everybodys = self._errors_at.get(operation.path, self._everybodys)
            errors = everybodys or operation.errors or dialect.errors
            resource = self._resource(operation.path, errors)
            for method in operation.methods:
                if method in taken.get(operation.path, ()):
                    continue
                others = resource.methods.setdefault(method, [])
                others.append(Mounted(operation, dialect, errors))
                _check(others)

    def _name_all(self) -> None:
        """Note the other names of every path; a path may be an alias of two that differ."""
        for resource in self:
            firsts = resource.alias_of
            others = self._aliases_of({resource.path, *firsts})
            resource.names[:] = [*firsts, *(path for path in others if path != resource.path)]

    def _aliases_of(self, paths: set[str]) -> list[str]:
        return [each.path for each in self if not paths.isdisjoint(each.alias_of)]

    def _resource(self, path: str, errors: ErrorShape) -> Resource:
        for resource in self:
            if resource.path == path:
                return resource
        resource = Resource(path, errors)
        if "{" in path:
            self._templates.append((compile_path(path)[0], resource))
        else:
            self._exact[path] = resource
        return resource


def _check(mounted: list[Mounted]) -> None:
    """Refuse two operations at one path that no body could tell apart: a mistake in a dialect."""
    if sum(each.operation.when is None for each in mounted) > 1:
        first, *_, last = (each.dialect.name for each in mounted)
        path = mounted[0].operation.path
        raise ValueError(f"{path}: {first} and {last} both answer it, and no `when` decides")

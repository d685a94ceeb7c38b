"""The columns that are read: of the text, and of the id that joins vectors to their rows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from embedding_service.bulk.inputs import first_lines, reading
from embedding_service.bulk.options import InputFormat
from embedding_service.bulk.rows import Failure, encodes, open_table, parse
from embedding_service.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from embedding_service.bulk.inputs import Source
    from embedding_service.bulk.options import BulkOptions

DEFAULT_ID = "id"
_INT64 = range(-(1 << 63), 1 << 63)


class IdKind(StrEnum):
    """Where ids come from, which decides about their type: whole numbers, but for TEXT."""

    ROW = "row"
    INTEGER = "integer"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of two columns; `key` is None where a row's id is its number."""

    text: str
    key: str | None
    kind: IdKind

    def identify(self, key: object, number: int) -> tuple[int | str | None, Failure | None]:
        """Return the id of a row, and why it has none of its own."""
        if self.kind is IdKind.ROW:
            return number, None
        if type(key) is int and key in _INT64:
            return (key if self.kind is IdKind.INTEGER else str(key)), None
        if type(key) is str and self.kind is IdKind.TEXT:
            if encodes(key):
                return key, None
            return None, Failure("bad_id", f"{self.key} is not UTF-8")
        wanted = "a whole number of 64 bits" if self.kind is IdKind.INTEGER else "text"
        return self.without(number), Failure("bad_id", f"{self.key} is not {wanted}")

    def without(self, number: int) -> int | None:
        """Return the id of a row whose own is not known: its number where that is one."""
        return number if self.kind is IdKind.ROW else None

    def places(self, header: list[str], source: Source) -> tuple[int, int]:
        """Return where a table's columns are, -1 for none. Raises `BadInput`."""
        _require(self.text, header, source)
        if self.key is None:
            return header.index(self.text), -1
        _require(self.key, header, source)
        return header.index(self.text), header.index(self.key)

    def check_schema(self, schema: Any, source: Source) -> None:
        """Raise `BadInput` for a Parquet file without these columns, or with others than text."""
        for name in filter(None, (self.text, self.key)):
            _require(name, schema.names, source)
        kind = _decoded(schema.field(self.text).type)
        if not _is_text(kind):
            raise BadInput(f"{source.name}: the column {self.text!r} is {kind} and no text")
        if self.key is not None:
            kind = schema.field(self.key).type
            self.check_ids(_id_kind(kind), kind, source)

    def check_ids(self, found: IdKind | None, kind: object, source: Source) -> None:
        """Raise `BadInput` where no id of a source could be one of these."""
        if found is None or (found, self.kind) == (IdKind.TEXT, IdKind.INTEGER):
            wanted = "whole numbers, as the first one is," if found else "text or whole numbers,"
            raise BadInput(
                f"{source.name}: ids are {wanted} and the column {self.key!r} is {kind}; name "
                "another with --id, or none: --id ''"
            )


def choose(sources: Sequence[Source], options: BulkOptions) -> Columns:
    """Return the columns that all sources have, as the first one has them.

    Files without anything in them do not count, unless all are empty. Raises `BadInput`.
    """
    filled = [source for source in sources if _kinds(source) is not None]
    if not filled:
        raise BadInput(f"{sources[0].name}: there is nothing in it")
    columns = _of_first(filled[0], options)
    for source in filled:
        if source.format is not InputFormat.LINES:
            _check(source, columns)
    return columns


def _of_first(source: Source, options: BulkOptions) -> Columns:
    wanted = options.id_column
    kinds = _kinds(source) or {}
    key = wanted if wanted is not None else DEFAULT_ID if DEFAULT_ID in kinds else None
    if not key:
        return Columns(options.column, None, IdKind.ROW)
    _require(key, kinds, source)
    kind = kinds[key]
    if kind is None:
        raise BadInput(
            f"{source.name}: ids are text or whole numbers, and the first {key!r} is neither; "
            "name another column with --id, or none: --id ''"
        )
    return Columns(options.column, key, kind)


def _kinds(source: Source) -> dict[str, IdKind | None] | None:
    """Return the columns of a source, each with the kind of id it could be; None: it is empty."""
    if source.format is InputFormat.LINES:
        return {}
    if source.format is InputFormat.PARQUET:
        with reading(source), source.open_parquet() as file:
            return {field.name: _id_kind(field.type) for field in file.schema_arrow}
    if source.format is InputFormat.JSONL:
        kinds = {int: IdKind.INTEGER, str: IdKind.TEXT}
        record = _first_record(source)
        return record and {name: kinds.get(type(value)) for name, value in record.items()}
    return dict.fromkeys(_header(source), IdKind.TEXT) or None


def _check(source: Source, columns: Columns) -> None:
    if source.format is InputFormat.PARQUET:
        with reading(source), source.open_parquet() as file:
            columns.check_schema(file.schema_arrow, source)
        return
    names = (_kinds(source) or ()) if source.format is InputFormat.JSONL else _header(source)
    for name in filter(None, (columns.text, columns.key)):
        _require(name, names, source)
    if columns.key is not None and source.format is not InputFormat.JSONL:
        columns.check_ids(IdKind.TEXT, "text", source)


def _first_record(source: Source) -> dict[str, Any] | None:
    """Return the first object of JSONL. Raises `BadInput` if the first line holds none."""
    for count, line in enumerate(first_lines(source), 1):
        if line.isspace():
            continue
        record = parse(line)
        if isinstance(record, str):
            raise BadInput(f"{source.name}:{count}: {record} (--input-format lines: plain texts)")
        return record
    return None


def _header(source: Source) -> list[str]:
    return open_table(source, first_lines(source))[1]


def _require(name: str, names: Iterable[str], source: Source) -> None:
    found = list(names)
    if name not in found:
        known = ", ".join(found)[:300] or "none"
        raise BadInput(f"{source.name}: there is no column {name!r}; it has {known}")
    if found.count(name) > 1:
        raise BadInput(f"{source.name}: there are {found.count(name)} columns {name!r}")


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _decoded(kind: Any) -> Any:
    from pyarrow import types

    return kind.value_type if types.is_dictionary(kind) else kind


def _id_kind(kind: Any) -> IdKind | None:
    from pyarrow import types

    kind = _decoded(kind)
    if types.is_integer(kind):
        return IdKind.INTEGER
    return IdKind.TEXT if _is_text(kind) else None

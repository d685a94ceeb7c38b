"""Rows of the inputs, one after another: text, id and place, whatever the format."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass, replace
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import orjson

from embedding_service.bulk.inputs import LONGEST_LINE_BYTES, lines_of, reading
from embedding_service.bulk.options import BadLines, InputFormat
from embedding_service.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from embedding_service.bulk.columns import Columns
    from embedding_service.bulk.inputs import Source

_PARQUET_ROWS = 1024  # at a time
_MISSING = object()
_UNCLOSED = "unexpected end of data"  # as the csv module says it


class Failure(NamedTuple):
    """Why a row has no vectors."""

    code: str
    reason: str


class Row(NamedTuple):
    """One row of the inputs; `number` counts from 0 over all of them."""

    number: int
    id: int | str | None
    text: str
    place: str
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Corpus:
    """All inputs, and how they are read."""

    sources: list[Source]
    columns: Columns
    bad_lines: BadLines = BadLines.STOP

    @property
    def bytes(self) -> int | None:
        """The size of all files, if it is known."""
        sizes = [source.size for source in self.sources]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def is_piped(self) -> bool:
        """Whether some of it is standard input, which may end anywhere."""
        return any(source.filesystem is None for source in self.sources)

    def reader(self) -> Reader:
        """Return what reads them from the start."""
        return Reader(self)

    def reader_from(self, row: int, rows_of_sources: Sequence[int], *, most: int) -> Reader:
        """Return what reads `most` rows from one on, without opening the files before it."""
        first, before = 0, 0
        while first < len(self.sources) and before + rows_of_sources[first] <= row:
            before += rows_of_sources[first]
            first += 1
        reader = Reader(replace(self, sources=self.sources[first:]), before)
        reader.skip(row - before)
        reader.left = most
        return reader


class Reader:
    """All rows of some sources. `skip` passes over rows without parsing them."""

    def __init__(self, corpus: Corpus, number: int = 0) -> None:
        self.number = number
        self.left = sys.maxsize  # rows that `take` still gives
        self.bytes_read = 0  # of the files, as far as they have been read
        self._finished_bytes = 0
        self._columns = corpus.columns
        self._bad_lines = corpus.bad_lines
        self._to_skip = 0
        self._tell: Callable[[], int] = int
        self._rows = self._read(corpus.sources)
        self._ahead: list[Row] = []

    def skip(self, rows: int) -> int:
        """Pass over so many rows; return how many there were."""
        if not rows:
            return 0
        ahead, self._ahead = self._ahead, []
        self._to_skip = rows - len(ahead)
        after = next(self._rows, None)
        left, self._to_skip = self._to_skip, 0
        self._note_bytes()
        if after is None:
            return rows - left
        self._ahead = [after]
        return rows

    def take(self, rows: int, characters: int) -> list[Row]:
        """Return the next rows: none at the end, else as many as stay within both bounds."""
        taken, self._ahead = self._ahead, []
        size = sum(len(row.text) for row in taken)
        for row in islice(self._rows, min(rows, self.left) - len(taken)):
            taken.append(row)
            size += len(row.text)
            if size >= characters:
                break
        self.left -= len(taken)
        self._note_bytes()
        return taken

    def _note_bytes(self) -> None:
        self.bytes_read = self._finished_bytes + self._tell()

    def _read(self, sources: Iterable[Source]) -> Iterator[Row]:
        for source in sources:
            with reading(source):
                if source.format is InputFormat.PARQUET:
                    yield from self._read_parquet(source)
                else:
                    yield from self._read_stream(source)
            self._tell = int
            self._finished_bytes += source.size or 0

    def _passes(self, rows: int = 1) -> bool:
        """Whether the next rows are to be passed over; counts them if they are."""
        if self._to_skip < rows:
            return False
        self._to_skip -= rows
        self.number += rows
        return True

    def _row(self, text: object, key: object, place: str) -> Row:
        number = self.number
        self.number += 1
        name, failure = self._columns.identify(key, number)
        if type(text) is not str:
            reason = f"{self._columns.text!r} is {_kind(text)}, not text"
            failure = failure or Failure("not_text", reason)
        elif not text:
            failure = failure or Failure("empty", "the text is empty")
        elif not encodes(text):
            failure = failure or Failure("not_utf8", "the text is not UTF-8")
        return Row(number, name, "" if failure else str(text), place, failure)

    def _bad(self, place: str, reason: str) -> Row:
        """Return a row that stands for a line which cannot be read. Raises `BadInput`."""
        if self._bad_lines is BadLines.STOP:
            raise BadInput(
                f"{place}: {reason}; --bad-lines skip passes over such lines and goes on in the "
                "same folder; a mended file is another job, for a new folder"
            )
        number = self.number
        self.number += 1
        return Row(number, self._columns.without(number), "", place, Failure("bad_line", reason))

    def _read_stream(self, source: Source) -> Iterator[Row]:
        kinds = {InputFormat.JSONL: self._read_jsonl, InputFormat.LINES: self._read_lines}
        read = kinds.get(source.format, self._read_table)
        with source.open() as (stream, self._tell):
            yield from read(source, stream)

    def _read_jsonl(self, source: Source, stream: IO[bytes]) -> Iterator[Row]:
        text, key = self._columns.text, self._columns.key
        for count, line in enumerate(lines_of(source, stream), 1):
            if line.isspace() or self._passes():
                continue
            place = f"{source.name}:{count}"
            record = parse(line)
            if isinstance(record, str):
                yield self._bad(place, record)
            else:
                yield self._row(record.get(text, _MISSING), key and record.get(key), place)

    def _read_lines(self, source: Source, stream: IO[bytes]) -> Iterator[Row]:
        for count, line in enumerate(lines_of(source, stream), 1):
            if not self._passes():
                text = line.rstrip(b"\r\n").decode(errors="surrogateescape")
                yield self._row(text, None, f"{source.name}:{count}")

    def _read_table(self, source: Source, stream: IO[bytes]) -> Iterator[Row]:
        table, header = open_table(source, lines_of(source, stream))
        if not header:
            return
        text, key = self._columns.places(header, source)
        while True:
            began = table.line_num + 1
            try:
                for fields in table:
                    place, began = f"{source.name}:{table.line_num}", table.line_num + 1
                    if not fields or self._passes():
                        continue
                    if len(fields) == len(header):
                        yield self._row(fields[text], fields[key] if key >= 0 else None, place)
                    else:
                        reason = f"{len(fields)} fields under {len(header)} names"
                        yield self._bad(place, reason)
            except csv.Error as error:
                if str(error) == _UNCLOSED:
                    raise BadInput(f"{source.name}:{began}: a quote that is never closed") from None
                if not self._passes():
                    yield self._bad(f"{source.name}:{table.line_num}", str(error))
            else:
                return

    def _read_parquet(self, source: Source) -> Iterator[Row]:
        names = [name for name in (self._columns.text, self._columns.key) if name]
        with source.open_parquet() as file:
            self._columns.check_schema(file.schema_arrow, source)
            read, whole = 0, max(1, file.metadata.num_rows)
            self._tell = lambda: (source.size or 0) * read // whole
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if not self._passes(rows):
                    yield from self._read_group(file, group, names, f"{source.name}:row {{}}", read)
                read += rows

    def _read_group(
        self, file: Any, group: int, names: list[str], place: str, read: int
    ) -> Iterator[Row]:
        batches = file.iter_batches(_PARQUET_ROWS, row_groups=[group], columns=names)
        for batch in batches:
            if self._passes(len(batch)):
                read += len(batch)
                continue
            values = [_plain(batch.column(name)) for name in names]
            keys = values[1] if len(values) > 1 else [None] * len(batch)
            for text, key in zip(values[0], keys, strict=True):
                if not self._passes():
                    yield self._row(text, key, place.format(read))
                read += 1


def _plain(column: Any) -> list[Any]:
    """Return the values of an Arrow column; bytes that are not UTF-8 as in other formats."""
    import pyarrow as pa

    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        found = column.cast(pa.large_binary()).to_pylist()
    return [value and value.decode(errors="surrogateescape") for value in found]


def parse(line: bytes) -> dict[str, Any] | str:
    """Return the object in a line of JSONL, or why there is none."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"not JSON: {error}"
    return record if isinstance(record, dict) else "not a JSON object"


def open_table(source: Source, lines: Iterable[bytes]) -> tuple[Any, list[str]]:
    """Return a reader of CSV or TSV, and its header, which has been read."""
    csv.field_size_limit(LONGEST_LINE_BYTES)
    delimiter = "\t" if source.format is InputFormat.TSV else ","
    table = csv.reader(_decoded(lines), delimiter=delimiter, strict=True)
    try:
        return table, next(table, [])
    except csv.Error as error:
        reason = "a quote that is never closed" if str(error) == _UNCLOSED else error
        raise BadInput(f"{source.name}:1: {reason}") from None


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    for line in lines:
        yield line.decode(errors="surrogateescape")


def encodes(text: str) -> bool:
    """Whether a text has a form in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    if value is _MISSING:
        return "missing"
    kinds = {type(None): "null", bool: "a boolean", int: "a number", float: "a number"}
    return kinds.get(type(value)) or ("a list" if isinstance(value, list) else "an object")

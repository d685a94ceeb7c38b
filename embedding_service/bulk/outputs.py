"""Parts: files of vectors, each written under a temporary name and renamed once it is complete."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import orjson

from embedding_service.bulk.columns import IdKind
from embedding_service.bulk.options import OutputFormat
from embedding_service.disk import sync
from embedding_service.types import EmbedDtype, Output

if TYPE_CHECKING:
    from pathlib import Path

    from embedding_service.bulk.options import BulkOptions

    ByOutput = dict[Output, Any]

_NUMBERS = {
    EmbedDtype.FLOAT32: "<f4",
    EmbedDtype.FLOAT16: "<f2",
    EmbedDtype.INT8: "i1",
    EmbedDtype.BINARY: "i1",
    EmbedDtype.UINT8: "u1",
    EmbedDtype.UBINARY: "u1",
}
# A Parquet row group has as many rows, or fewer if these are large.
_GROUP_ROWS, _GROUP_BYTES = 8192, 32 << 20


class Writer(ABC):
    """Writes the rows of one part in their order."""

    @abstractmethod
    def write(self, ids: list[Any], by_output: ByOutput) -> None:
        """Add rows, at least one."""

    def close(self) -> None:  # noqa: B027 - most have nothing left
        """Write what is left."""

    def abandon(self) -> None:  # noqa: B027
        """Write nothing any more, of a part that will not be complete."""


class Layout:
    """The shape of rows, which all parts of a job share. Numbers are those of `embed_dtype`."""

    def __init__(self, options: BulkOptions, ids: IdKind, example: ByOutput) -> None:
        self.format = options.format
        self.outputs = options.outputs
        self.ids = ids
        self.number = number_type(options.embed_dtype)
        self.width = {
            output: np.asarray(rows[0]).shape[-1]
            for output, rows in example.items()
            if output is not Output.SPARSE
        }

    def name(self, number: int) -> str:
        """Return the name of a part's file."""
        return part_name(number, self.format)

    def writer(self, file: IO[bytes], beside: Path) -> Writer:
        """Return what writes one part into `file`, and ids that have no room there `beside` it."""
        if self.format is OutputFormat.JSONL:
            return _Jsonl(file, self)
        if self.format is OutputFormat.NPY:
            return _Npy(file, beside, self)
        return _Parquet(file, self)


def part_name(number: int, form: OutputFormat) -> str:
    """Return the name of a part's file."""
    return f"part-{number:06d}.{form}"


def number_type(dtype: EmbedDtype) -> np.dtype[Any]:
    """Return the type of the numbers in vectors of a format."""
    return np.dtype(_NUMBERS[dtype])


class _Jsonl(Writer):
    """A line for each row: `id`, then a field for each output."""

    def __init__(self, file: IO[bytes], layout: Layout) -> None:
        self._file = file
        self._outputs = layout.outputs

    def write(self, ids: list[Any], by_output: ByOutput) -> None:
        options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
        for index, name in enumerate(ids):
            record = {"id": name}
            for output in self._outputs:
                record[output.value] = _plain(output, by_output[output][index])
            self._file.write(orjson.dumps(record, option=options))


def _plain(output: Output, row: Any) -> Any:
    if output is Output.SPARSE:
        return {"indices": row.indices, "values": row.values}
    # orjson knows no half precision
    return np.ascontiguousarray(row, np.float32) if row.dtype == np.float16 else row


class _Npy(Writer):
    """Dense vectors as one array (rows, dimensions), and its ids as another one."""

    def __init__(self, file: IO[bytes], beside: Path, layout: Layout) -> None:
        self._file = file
        self._beside = beside
        self._layout = layout
        self._ids: list[Any] = []
        self._write_header()

    def _write_header(self) -> None:
        header = {
            "descr": self._layout.number.str,
            "fortran_order": False,
            "shape": (len(self._ids), self._layout.width[Output.DENSE]),
        }
        # numpy leaves room for a longer shape, so that it can be written over.
        np.lib.format.write_array_header_1_0(self._file, header)  # type: ignore[no-untyped-call]

    def write(self, ids: list[Any], by_output: ByOutput) -> None:
        self._ids += ids
        self._file.write(np.ascontiguousarray(by_output[Output.DENSE]).data)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        ids = np.array(self._ids, np.str_ if self._layout.ids is IdKind.TEXT else np.int64)
        with self._beside.open("wb") as file:
            np.save(file, ids, allow_pickle=False)
            sync(file)


class _Parquet(Writer):
    """Columns `id` and one for each output; vectors are lists of fixed size."""

    def __init__(self, file: IO[bytes], layout: Layout) -> None:
        from pyarrow import parquet

        self._layout = layout
        self._schema = schema(layout)
        self._batches: list[Any] = []
        self._writer = parquet.ParquetWriter(
            file,
            self._schema,
            # Floats gain nothing from either, and would cost more than all the rest.
            compression="NONE",
            use_dictionary=False,
            write_statistics=["id"],
        )

    def write(self, ids: list[Any], by_output: ByOutput) -> None:
        import pyarrow as pa

        columns = [pa.array(ids, self._schema.field("id").type)]
        columns += [
            _column(output, by_output[output], self._schema.field(output).type)
            for output in self._layout.outputs
        ]
        self._batches.append(pa.record_batch(columns, schema=self._schema))
        rows, size = sum(map(len, self._batches)), sum(batch.nbytes for batch in self._batches)
        if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._batches:
            table = pa.Table.from_batches(self._batches)
            self._batches = []
            self._writer.write_table(table, row_group_size=len(table))

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def abandon(self) -> None:
        self._writer.is_open = False  # it would write its footer when it is collected


def schema(layout: Layout) -> Any:
    """Return the Arrow schema of a job's rows."""
    import pyarrow as pa

    number = pa.from_numpy_dtype(layout.number)
    text = layout.ids is IdKind.TEXT
    fields = [pa.field("id", pa.string() if text else pa.int64())]
    for output in layout.outputs:
        if output is Output.SPARSE:
            lists = pa.list_(pa.int32()), pa.list_(pa.float32())
            kind = pa.struct([("indices", lists[0]), ("values", lists[1])])
        else:
            kind = pa.list_(number, layout.width[output])
        if output is Output.COLBERT:
            kind = pa.list_(kind)
        fields.append(pa.field(output, kind))
    return pa.schema(fields)


def _column(output: Output, rows: Any, kind: Any) -> Any:
    """Return rows of one output as an Arrow array, without copying large ones."""
    import pyarrow as pa

    if output is Output.SPARSE:
        indices = _lists([row.indices for row in rows], pa.int32())
        values = _lists([row.values for row in rows], pa.float32())
        return pa.StructArray.from_arrays([indices, values], fields=list(kind))
    if output is Output.DENSE:
        flat = pa.array(np.ascontiguousarray(rows).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    flat = pa.array(np.concatenate(rows).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, type=kind.value_type)
    return pa.ListArray.from_arrays(_offsets(rows), vectors)


def _lists(rows: list[Any], number: Any) -> Any:
    import pyarrow as pa

    flat = pa.array(np.concatenate(rows), number)
    return pa.ListArray.from_arrays(_offsets(rows), flat)


def _offsets(rows: list[Any]) -> Any:
    return np.cumsum([0, *map(len, rows)], dtype=np.int32)


def count_rows(path: Path) -> int:
    """Return how many rows a complete part has."""
    from pyarrow import parquet

    if path.suffix == ".parquet":
        return int(parquet.read_metadata(path).num_rows)
    if path.suffix == ".npy":
        return len(np.load(path, mmap_mode="r"))
    return count_lines(path)


def count_lines(path: Path) -> int:
    """Return how many lines a file has, none where it is not there."""
    try:
        with path.open("rb") as file:
            return sum(1 for _ in file)
    except FileNotFoundError:
        return 0

"""Shared by the tests of bulk jobs: corpora, and runs of the command within this process."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.dataset as ds
import structlog
from pyarrow import parquet

from embedding_service.bulk import inputs, run
from embedding_service.bulk.options import BulkOptions
from embedding_service.settings.gateway import Settings
from tests.conftest import FAKE
from tests.in_process import ThreadWorker

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import pytest

    from embedding_service.bulk.options import InputFormat


def texts_of(count: int, start: int = 0) -> list[str]:
    """Return different texts."""
    return [f"w{i} w{i % 7}" for i in range(start, start + count)]


def write_jsonl(path: Path, records: Iterable[Any]) -> Path:
    """Write objects, or lines as they are."""
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def corpus(path: Path, count: int) -> Path:
    """Write a corpus of JSONL, with ids of its own."""
    return write_jsonl(
        path, ({"id": 10 * i, "text": text} for i, text in enumerate(texts_of(count)))
    )


def embed(
    *names: Path | str,
    out: Path | None,
    read_as: InputFormat | None = None,
    model: str | None = None,
    servers: Sequence[str] = (),
    ray: str | None = None,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Run the command with the fake engine in a thread; return its log."""
    log: list[dict[str, Any]] = []

    def keep(_: object, level: str, event: dict[str, Any]) -> dict[str, Any]:
        if level != "debug":
            log.append({"level": level, **event})
        raise structlog.DropEvent

    work = run.Work(
        list(map(str, names)),
        read_as,
        BulkOptions(**options),
        out,
        model,
        None if servers else Settings(**FAKE | (settings or {})),
        tuple(servers),
        ray=ray,
        start_worker=ThreadWorker.start,
    )
    asyncio.run(run.do(work, structlog.wrap_logger(None, processors=[keep])))
    return log


def pipe(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have these bytes on standard input, as if nothing had looked at it."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    inputs._standard_input.cache_clear()


def files_of(out: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def rows_of(out: Path) -> dict[Any, list[float]]:
    """Return the vector of each id, as a reader of the data set sees it."""
    table = ds.dataset(out, format="parquet").to_table()
    ids = table["id"].to_pylist()
    assert len(set(ids)) == len(ids), "a row is there twice"
    return dict(zip(ids, table["dense"].to_pylist(), strict=True))


def errors_of(out: Path) -> list[dict[str, Any]]:
    """Return the list of errors."""
    return list(map(orjson.loads, (out / "_errors.jsonl").read_bytes().splitlines()))


def write_parquet(path: Path, **columns: Any) -> Path:
    """Write a Parquet file of several row groups."""
    parquet.write_table(pa.table(columns), path, row_group_size=100)
    return path

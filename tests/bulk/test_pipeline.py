"""Jobs with the fake engine: the right rows in whole parts, and every failure by itself."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import structlog
from pyarrow import parquet

from embedding_service.bulk import pipeline, progress, run
from embedding_service.bulk.embedder import EngineEmbedder
from embedding_service.bulk.options import BadLines, OutputFormat
from embedding_service.engine.states import State
from embedding_service.errors import BadInput, JobStopped, RowsFailed
from embedding_service.types import EmbedDtype, InputType, Output, Truncate
from tests.bulk.jobs import (
    corpus,
    embed,
    errors_of,
    files_of,
    pipe,
    rows_of,
    texts_of,
    write_jsonl,
    write_parquet,
)
from tests.calls import unit_vectors
from tests.test_layers import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from embedding_service.bulk.embedder import Answer
    from embedding_service.types import Batch, BatchResult
    from tests.conftest import RunningGateway

THREE = {"outputs": ["dense", "sparse", "colbert"]}


def test_rows_become_parts(tmp_path: Path) -> None:
    """Every row is in its part, under its id, with the vector that the server would send."""
    out = tmp_path / "out"
    log = embed(corpus(tmp_path / "a.jsonl", 700), out=out, rows_per_part=300)
    assert [path.name for path in sorted(out.iterdir())] == [
        "_manifest.json", "part-000000.parquet", "part-000001.parquet", "part-000002.parquet",
    ]  # fmt: skip
    found = rows_of(out)
    assert list(found) == [10 * i for i in range(700)]
    np.testing.assert_array_equal(
        np.array(list(found.values()), np.float32), unit_vectors(*texts_of(700))
    )
    manifest = orjson.loads((out / "_manifest.json").read_bytes())
    assert manifest["complete"]
    assert list(manifest["parts"].values()) == [300, 300, 100]
    assert log[-1] | {"rows": 700, "failed": 0} == log[-1]
    assert log[-1]["tokens_per_s"] > 0


def test_vectors_may_lie_below_the_texts(tmp_path: Path) -> None:
    """Parts are no inputs of the job that makes them."""
    corpus(tmp_path / "a.jsonl", 700)
    out = tmp_path / "vectors"
    embed(tmp_path, out=out, rows_per_part=300)
    (out / "part-000001.parquet").unlink()
    embed(tmp_path, out=out, rows_per_part=300)
    assert len(rows_of(out)) == 700


@pytest.mark.parametrize("bad", [0, 2])
def test_a_complete_job_is_left_alone(
    bad: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once more, nothing is loaded and nothing written, and rows that failed are told again."""
    records = [{"text": text} for text in [*texts_of(5), *[""] * bad]]
    path, out = write_jsonl(tmp_path / "a.jsonl", records), tmp_path / "out"
    ends = pytest.raises(RowsFailed, match="2 rows have") if bad else contextlib.nullcontext()
    with ends:
        embed(path, out=out)
    before = files_of(out)
    monkeypatch.setattr(run, "local_service", None)
    with ends:
        log = embed(path, out=out)
        assert [entry["event"] for entry in log] == ["complete"]
    assert files_of(out) == before


def test_a_pipe_that_was_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last part is made anew with the rows behind it; a shorter one than before is refused."""
    lines = [orjson.dumps({"id": i, "text": text}) + b"\n" for i, text in enumerate(texts_of(47))]
    out, whole = tmp_path / "out", tmp_path / "whole"
    for count in (25, 25, 30, 38, 47):
        pipe(b"".join(lines[:count]), monkeypatch)
        embed("-", out=out, rows_per_part=10)
        assert list(rows_of(out)) == list(range(count))
    pipe(b"".join(lines), monkeypatch)
    embed("-", out=whole, rows_per_part=10)
    assert files_of(out) == files_of(whole)
    for count in (5, 20, 45):
        pipe(b"".join(lines[:count]), monkeypatch)
        with pytest.raises(BadInput, match=f"the inputs end after {count} rows, and .* has 47"):
            embed("-", out=out, rows_per_part=10)
        assert list(rows_of(out)) == list(range(47))


def test_vectors_below_the_texts_by_another_path_are_no_inputs(tmp_path: Path) -> None:
    """A folder may be named through a link, or with dots."""
    texts = tmp_path / "texts"
    texts.mkdir()
    corpus(texts / "a.jsonl", 30)
    (tmp_path / "link").symlink_to(texts)
    for out in (tmp_path / "link" / "out", texts / ".." / "texts" / "out"):
        for _ in range(2):
            embed(texts, out=out, rows_per_part=10)
            (out / "part-000001.parquet").unlink()


def test_no_rows_make_an_empty_data_set(tmp_path: Path) -> None:
    """It has the columns of one that is not empty."""
    path = write_parquet(tmp_path / "a.parquet", text=pa.array([], pa.string()))
    embed(path, out=tmp_path / "out")
    assert ds.dataset(tmp_path / "out", format="parquet").schema.names == ["id", "dense"]


@pytest.mark.parametrize("done", [[0], [1], [0, 2], [1, 2]])
def test_whatever_is_done_is_kept(tmp_path: Path, done: list[int]) -> None:
    """Whichever parts are there when it starts, they stay and the others are the same as ever."""
    bad = {3: "", 310: 7, 650: "fault-reject"}
    records = ({"id": i, "text": bad.get(i, text)} for i, text in enumerate(texts_of(700)))
    path, out = write_jsonl(tmp_path / "a.jsonl", records), tmp_path / "out"
    with pytest.raises(RowsFailed, match="3 rows have no vectors"):
        embed(path, out=out, rows_per_part=300)
    undisturbed = files_of(out)
    parts = [out / f"part-{number:06d}.parquet" for number in range(3)]
    kept = {number: parts[number].stat().st_ino for number in done}
    for number in {0, 1, 2} - set(done):
        parts[number].unlink()
    (out / ".part-000001.parquet.tmp").write_bytes(b"half a part")
    if 1 not in done:  # killed between a part's errors and the part
        (out / "_errors" / "part-000001.jsonl").write_bytes(b"{}\n")
    with pytest.raises(RowsFailed, match="3 rows have no vectors"):
        embed(path, out=out, rows_per_part=300)
    assert {number: parts[number].stat().st_ino for number in done} == kept
    assert files_of(out) == undisturbed


def test_parts_count_where_the_manifest_lags(tmp_path: Path) -> None:
    """A manifest without the last parts, or that is gone, loses none: they are counted again."""
    path, out = corpus(tmp_path / "a.jsonl", 700), tmp_path / "out"
    embed(path, out=out, rows_per_part=300)
    before = files_of(out)
    tree = orjson.loads(before["_manifest.json"])
    tree |= {"complete": False, "parts": {}, "rows": 0}
    (out / "_manifest.json").write_bytes(orjson.dumps(tree))
    log = embed(path, out=out, rows_per_part=300)
    assert log[-1]["done_before"] == 700
    assert log[-1]["rows"] == 0
    assert files_of(out) == before


def test_errors_of_an_earlier_try_are_forgotten(tmp_path: Path) -> None:
    """A row whose part was not complete is not in both lists after another try."""
    path, out = corpus(tmp_path / "a.jsonl", 30), tmp_path / "out"
    embed(path, out=out, rows_per_part=10)
    before = files_of(out)
    (out / "part-000001.parquet").unlink()
    (out / "_errors").mkdir()
    (out / "_errors" / "part-000001.jsonl").write_bytes(b'{"row": 12}\n')
    embed(path, out=out, rows_per_part=10)
    assert files_of(out) == before


FAILING = [
    ({"text": "w1 " * 600}, "context_length_exceeded", "context length is 512 tokens, however"),
    ({"text": ""}, "empty", "the text is empty"),
    ({"text": None}, "not_text", "'text' is null, not text"),
    ({"text": 5}, "not_text", "'text' is a number, not text"),
    ({"text": ["w1"]}, "not_text", "'text' is a list, not text"),
    ({"text": {"a": "w1"}}, "not_text", "'text' is an object, not text"),
    ({"body": "w1"}, "not_text", "'text' is missing, not text"),
    ({"text": "fault-reject"}, "engine_failed", "refuses this"),
    ({"text": "fault-nan"}, "not_finite", "not finite"),
    ({"id": "x", "text": "w1"}, "bad_id", "id is not a whole number"),
    ({"id": 1 << 63, "text": "w1"}, "bad_id", "id is not a whole number"),
]


@pytest.mark.parametrize("apart", [1, 40])
def test_a_row_fails_by_itself(apart: int, tmp_path: Path) -> None:
    """It is listed with place and reason; all its neighbours have their vectors."""
    records = [{"id": i, "text": text} for i, text in enumerate(texts_of(500))]
    places = [20 + apart * i for i in range(len(FAILING))]
    for place, (wrong, _, _) in zip(places, FAILING, strict=True):
        records[place] = {"id": place} | wrong
    path, out = write_jsonl(tmp_path / "a.jsonl", records), tmp_path / "out"
    with pytest.raises(RowsFailed, match=r"^11 rows have no vectors; see .*_errors\.jsonl$"):
        embed(path, out=out, rows_per_part=300)
    for error, place, (_, code, reason) in zip(errors_of(out), places, FAILING, strict=True):
        assert (error["row"], error["place"]) == (place, f"{path}:{place + 1}")
        assert error["code"] == code
        assert reason in error["reason"]
        assert "{" not in error["reason"]
        assert "[0]" not in error["reason"]
    good = [i for i in range(500) if i not in places]
    found = rows_of(out)
    assert list(found) == good
    expected = unit_vectors(*(texts_of(500)[i] for i in good))
    np.testing.assert_array_equal(np.array(list(found.values()), np.float32), expected)


def test_a_text_that_ends_the_engine_is_found(tmp_path: Path) -> None:
    """Engines die of it, and are replaced; every other row is done."""
    records = [{"id": i, "text": text} for i, text in enumerate(texts_of(600))]
    records[130]["text"] = records[450]["text"] = "w3 fault-die"
    out = tmp_path / "out"
    with pytest.raises(RowsFailed, match="2 rows"):
        embed(write_jsonl(tmp_path / "a.jsonl", records), out=out, rows_per_part=300)
    assert [(error["row"], error["code"]) for error in errors_of(out)] == [
        (130, "engine_failed"), (450, "engine_failed"),
    ]  # fmt: skip
    assert len(rows_of(out)) == 598


def test_an_engine_that_cannot_be_replaced_stops_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished work is kept, and the same command goes on with another engine."""
    path, out = corpus(tmp_path / "a.jsonl", 900), tmp_path / "out"
    compute = EngineEmbedder._compute
    calls = 0

    async def dying(self: EngineEmbedder, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 5:
            await self._model.engine.stop()
        return await compute(self, batch)

    monkeypatch.setattr(EngineEmbedder, "_compute", dying)
    with pytest.raises(JobStopped, match="died too often"):
        embed(path, out=out, rows_per_part=300)
    monkeypatch.undo()
    done = files_of(out)
    assert not any(name.startswith(".") for name in done)
    assert "part-000002.parquet" not in done
    embed(path, out=out, rows_per_part=300)
    assert len(rows_of(out)) == 900
    assert {name: files_of(out)[name] for name in done if "part" in name} == {
        name: content for name, content in done.items() if "part" in name
    }


def test_broken_lines_are_rows_if_they_may_be(tmp_path: Path) -> None:
    """With `--bad-lines skip` a job that was stopped by one goes on in the same folder."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "w1"}, "{broken", "[1]", {"text": "w2"}])
    out = tmp_path / "out"
    with pytest.raises(Exception, match=r"a\.jsonl:2: not JSON"):
        embed(path, out=out)
    with pytest.raises(RowsFailed):
        embed(path, out=out, bad_lines=BadLines.SKIP)
    assert [(error["place"], error["code"]) for error in errors_of(out)] == [
        (f"{path}:2", "bad_line"), (f"{path}:3", "bad_line"),
    ]  # fmt: skip
    assert list(rows_of(out)) == [0, 3]


@pytest.mark.parametrize("dtype", EmbedDtype)
@pytest.mark.parametrize("form", OutputFormat)
def test_every_format_holds_the_same_numbers(
    form: OutputFormat, dtype: EmbedDtype, tmp_path: Path
) -> None:
    """Parquet, JSONL and npy have the ids and the numbers of the format that was asked for."""
    from embedding_service.service.vectors import quantise

    out = tmp_path / "out"
    embed(
        corpus(tmp_path / "a.jsonl", 500),
        out=out,
        rows_per_part=300,
        format=form,
        embed_dtype=dtype,
    )
    expected = quantise(unit_vectors(*texts_of(500)), dtype)
    parts = sorted(out.glob(f"part-??????.{form}"))
    if form is OutputFormat.NPY:
        found = np.concatenate([np.load(part) for part in parts])
        ids = np.concatenate([np.load(part.with_suffix(".ids.npy")) for part in parts]).tolist()
    elif form is OutputFormat.JSONL:
        lines = [orjson.loads(line) for part in parts for line in part.read_bytes().splitlines()]
        ids, found = [line["id"] for line in lines], np.array([line["dense"] for line in lines])
    else:
        table = ds.dataset(out, format="parquet").to_table()
        ids, found = table["id"].to_pylist(), np.array(table["dense"].to_pylist())
    assert ids == [10 * i for i in range(500)]
    np.testing.assert_array_equal(found.astype(expected.dtype), expected)
    if form is OutputFormat.NPY:
        assert found.dtype == expected.dtype


def test_text_ids_fit_npy(tmp_path: Path) -> None:
    """Ids that are text are an array of text, of any length."""
    ids = ["a", "ein längerer", ""]
    path = write_parquet(tmp_path / "a.parquet", id=ids, text=texts_of(3))
    out = tmp_path / "out"
    embed(path, out=out, format=OutputFormat.NPY)
    assert np.load(out / "part-000000.ids.npy").tolist() == ids


@pytest.mark.parametrize("form", [OutputFormat.PARQUET, OutputFormat.JSONL])
def test_three_outputs_of_one_pass(
    form: OutputFormat, tmp_path: Path, shared_gateway: Callable[..., RunningGateway]
) -> None:
    """Dense, sparse and ColBERT are those of the server."""
    from tests.conftest import FAKE

    texts = texts_of(40)
    fields = {"model": "fake", "input": texts, "return_sparse": True, "return_colbert": True}
    with shared_gateway(**FAKE, engine_args=THREE).client() as client:
        answer = client.post("/v1/embeddings", json=fields).json()["data"]
    out = tmp_path / "out"
    embed(
        corpus(tmp_path / "a.jsonl", 40),
        out=out,
        format=form,
        outputs=(Output.DENSE, Output.SPARSE, Output.COLBERT),
        settings={"engine_args": THREE},
    )
    if form is OutputFormat.JSONL:
        found = list(map(orjson.loads, (out / "part-000000.jsonl").read_bytes().splitlines()))
    else:
        found = ds.dataset(out, format="parquet").to_table().to_pylist()
    assert len(found) == 40
    for row, item in zip(found, answer, strict=True):
        np.testing.assert_allclose(row["dense"], item["dense_embedding"], rtol=1e-6)
        np.testing.assert_allclose(row["colbert"], item["colbert_embedding"], rtol=1e-6)
        sparse = dict(zip(map(str, row["sparse"]["indices"]), row["sparse"]["values"], strict=True))
        assert sparse == pytest.approx(item["sparse_embedding"])


@pytest.mark.parametrize("asked", [
    {"truncate": Truncate.CHUNK_MEAN},
    {"truncate": Truncate.LEFT, "dimensions": 16},
    {"input_type": InputType.QUERY, "normalize": False, "truncate": Truncate.RIGHT},
    {"prompt_name": "title", "truncate": Truncate.RIGHT},
])  # fmt: skip
def test_options_are_those_of_the_server(
    asked: dict[str, Any], tmp_path: Path, shared_gateway: Callable[..., RunningGateway]
) -> None:
    """Prompts, cutting and scaling are those of a request, also beside rows that fail."""
    from tests.conftest import FAKE

    settings = {
        "matryoshka": True,
        "engine_args": {"prompts": {"query": "w9 w9 ", "title": "w8 "}, "normalizes": False},
    }
    texts = [*texts_of(20), "w1 w2 " * 700, "w5 " * 509, "w6"]
    with shared_gateway(**FAKE, **settings).client() as client:
        fields = {"model": "fake", "input": texts, **asked}
        answer = client.post("/v1/embeddings", json=fields).json()["data"]
    texts.insert(4, "fault-nan")
    out = tmp_path / "out"
    path = write_jsonl(tmp_path / "a.jsonl", ({"text": text} for text in texts))
    with pytest.raises(RowsFailed, match="1 row has"):
        embed(path, out=out, settings=settings, **asked)
    found = list(rows_of(out).values())
    np.testing.assert_allclose(found, [item["embedding"] for item in answer], rtol=1e-6)


def test_memory_is_bounded_by_what_is_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow the engine is, no more rows are read than keep it busy."""
    taken = landed = most = 0
    take, land = pipeline.Pipeline._read, pipeline.Pipeline._land

    async def read(self: pipeline.Pipeline, work: Any, *arguments: int) -> Any:
        nonlocal taken, most
        rows = await take(self, work, *arguments)
        taken += len(rows) if isinstance(rows, list) else 0
        most = max(most, taken - landed)
        return rows

    async def count(self: pipeline.Pipeline) -> None:
        nonlocal landed
        rows = len(self._in_flight[0].rows)
        await land(self)
        landed += rows

    monkeypatch.setattr(pipeline.Pipeline, "_read", read)
    monkeypatch.setattr(pipeline.Pipeline, "_land", count)
    embed(corpus(tmp_path / "a.jsonl", 9000), out=tmp_path / "out")
    assert taken == landed == 9000
    assert 2048 <= most <= 2048 + 256


def test_groups_are_computed_beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several are on their way at a time, so that the engine has the next before it asks."""
    running = most = 0
    answer, all_run = EngineEmbedder.embed, asyncio.Event()

    async def watched(self: EngineEmbedder, texts: list[str]) -> Answer:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if most == 8:
            all_run.set()
        if len(texts) > 1:  # not the one that finds out the vectors' size
            await asyncio.wait_for(all_run.wait(), 30)
        try:
            return await answer(self, texts)
        finally:
            running -= 1

    monkeypatch.setattr(EngineEmbedder, "embed", watched)
    embed(corpus(tmp_path / "a.jsonl", 4000), out=tmp_path / "out")
    assert most == 8


def test_large_rows_make_small_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of one row group is bounded in bytes, whatever a row has."""
    from embedding_service.bulk import outputs

    monkeypatch.setattr(outputs, "_GROUP_BYTES", 100_000)
    out = tmp_path / "out"
    embed(corpus(tmp_path / "a.jsonl", 3000), out=out)
    metadata = parquet.read_metadata(out / "part-000000.parquet")
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sum(sizes) == 3000
    assert max(sizes) == 768


def test_the_example_for_qdrant_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/bulk.md's code fills a collection that finds a text by its own vectors."""
    page = (ROOT / "docs" / "bulk.md").read_text(encoding="utf-8")
    (code,) = [block for block in page.split("```python\n") if "qdrant_client" in block]
    code = code.partition("```")[0].replace('"http://localhost:6333"', '":memory:"')
    embed(
        corpus(tmp_path / "a.jsonl", 30),
        out=tmp_path / "vectors",
        outputs=(Output.DENSE, Output.SPARSE),
        settings={"engine_args": {"outputs": ["dense", "sparse"]}},
    )
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code.replace("size=1024", "size=32"), names)
    found = names["client"].query_points(
        "pages", unit_vectors(*texts_of(30))[7].tolist(), using="dense", limit=1
    )
    assert [point.id for point in found.points] == [70]


def test_quarantine_ends_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines in quarantine are not waited for."""
    compute = EngineEmbedder._compute

    async def quarantined(self: EngineEmbedder, batch: Batch) -> BatchResult:
        for replica in self._model.engine.replicas:
            replica.state = State.QUARANTINED
        return await asyncio.wait_for(compute(self, batch), 30)

    monkeypatch.setattr(EngineEmbedder, "_compute", quarantined)
    with pytest.raises(JobStopped, match="in quarantine"):
        embed(corpus(tmp_path / "a.jsonl", 3), out=tmp_path / "out")


def test_the_time_left_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Now and then a line says how far it is, going by the bytes of the inputs."""
    monkeypatch.setattr(progress, "_EVERY_S", 0)
    log = embed(corpus(tmp_path / "a.jsonl", 6000), out=tmp_path / "out", rows_per_part=3000)
    lines = [entry for entry in log if entry["event"] == "embedding"]
    assert [line["rows"] for line in lines] == sorted(line["rows"] for line in lines)
    assert "left_s" not in lines[-1]  # all bytes are read, which says nothing about the rows
    assert lines[-1]["rows"] == 6000
    counts = progress.Progress(structlog.get_logger(), total_bytes=1000)
    counts.add(1, 1, 0, bytes_read=500)
    counts._began -= 3600
    assert counts.left_s == pytest.approx(3600, abs=60)

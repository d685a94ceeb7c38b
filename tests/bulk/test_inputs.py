"""Every kind of input is read as the same rows, wherever it comes from."""

from __future__ import annotations

import bz2
import gzip
import os
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from embedding_service.bulk import inputs as module
from embedding_service.bulk.columns import choose
from embedding_service.bulk.inputs import find
from embedding_service.bulk.options import BulkOptions, InputFormat
from embedding_service.bulk.rows import Corpus
from embedding_service.errors import BadInput
from tests.bulk.jobs import corpus, pipe, texts_of, write_jsonl, write_parquet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from embedding_service.bulk.rows import Reader, Row

TEXTS = texts_of(450)
IDS = [10 * i for i in range(450)]


def reader(*inputs: Path | str, form: InputFormat | None = None, **options: object) -> Reader:
    """Return a reader of some inputs."""
    chosen = BulkOptions(**options)  # type: ignore[arg-type]
    sources = find(map(str, inputs), form)
    return Corpus(sources, choose(sources, chosen), chosen.bad_lines).reader()


def rows(*inputs: Path | str, form: InputFormat | None = None, **options: object) -> list[Row]:
    """Return all rows of some inputs."""
    return reader(*inputs, form=form, **options).take(1 << 30, 1 << 40)


def compressed(path: Path, codec: str) -> Path:
    """Compress a file."""
    new = path.with_name(f"{path.name}.{codec}")
    if codec == "zst":
        with pa.CompressedOutputStream(new, "zstd") as file:
            file.write(path.read_bytes())
    else:
        new.write_bytes({"gz": gzip, "bz2": bz2}[codec].compress(path.read_bytes()))
    path.unlink()
    return new


def csv_of(path: Path, separator: str = ",") -> Path:
    """Write a table, every text of which has a line break and a separator in it."""
    lines = [f'{i}{separator}"{text}{separator}\n\nx"' for i, text in zip(IDS, TEXTS, strict=True)]
    path.write_text(f"id{separator}text\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


MAKE: dict[str, Callable[[Path], Path]] = {
    "jsonl": lambda folder: corpus(folder / "a.jsonl", 450),
    "gzip": lambda folder: compressed(corpus(folder / "a.jsonl", 450), "gz"),
    "zstd": lambda folder: compressed(corpus(folder / "a.jsonl", 450), "zst"),
    "bzip2": lambda folder: compressed(corpus(folder / "a.jsonl", 450), "bz2"),
    "parquet": lambda folder: write_parquet(folder / "a.parquet", other=TEXTS, id=IDS, text=TEXTS),
    "dictionary": lambda folder: write_parquet(
        folder / "a.parquet", id=IDS, text=pa.array(TEXTS).dictionary_encode()
    ),
}


@pytest.mark.parametrize("kind", MAKE)
def test_kinds_have_the_same_rows(kind: str, tmp_path: Path) -> None:
    """JSONL, compressed or not, and Parquet give texts, ids and places."""
    path = MAKE[kind](tmp_path)
    found = rows(path)
    assert [(row.number, row.id, row.text) for row in found] == list(
        zip(range(450), IDS, TEXTS, strict=True)
    )
    assert {row.failure for row in found} == {None}
    assert found[7].place == f"{path}:{'row 7' if path.suffix == '.parquet' else '8'}"


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
def test_tables_have_texts_over_several_lines(suffix: str, separator: str, tmp_path: Path) -> None:
    """CSV and TSV: quoted line breaks belong to a text; ids are text."""
    found = rows(csv_of(tmp_path / f"a.{suffix}", separator))
    assert [row.id for row in found] == list(map(str, IDS))
    assert [row.text for row in found] == [f"{text}{separator}\n\nx" for text in TEXTS]


def test_lines_are_rows_with_their_number(tmp_path: Path) -> None:
    """Plain lines, also of Windows; an empty one is a row that failed, so that numbers agree."""
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\ntwo, three\n\nfö\xa0ur".encode())
    found = rows(path)
    assert [(row.id, row.text) for row in found] == [
        (0, "one"), (1, "two, three"), (2, ""), (3, "fö\xa0ur"),
    ]  # fmt: skip
    assert [row.failure and row.failure.code for row in found] == [None, None, "empty", None]


@pytest.mark.parametrize("kind", [*MAKE, "csv", "lines"])
@pytest.mark.parametrize("steps", [[0, 1, 1, 99], [100, 100], [130, 7], [449], [450], [500]])
def test_skipped_rows_count_as_read(kind: str, steps: list[int], tmp_path: Path) -> None:
    """After skipping, taking goes on with the very rows that a reader without it would have."""
    if kind == "csv":
        path = csv_of(tmp_path / "a.csv")
    elif kind == "lines":
        path = tmp_path / "a.txt"
        path.write_text("\n".join(TEXTS), encoding="utf-8")
    else:
        path = MAKE[kind](tmp_path)
    whole, resumed = rows(path), reader(path)
    place = 0
    for step in steps:
        assert resumed.skip(step) == min(step, 450 - place)
        place = min(place + step, 450)
        taken = resumed.take(3, 1 << 20)
        assert taken == whole[place : place + 3]
        place += len(taken)
    assert resumed.take(1 << 20, 1 << 30) == whole[place:]


def test_texts_bound_what_is_taken(tmp_path: Path) -> None:
    """No more is taken at a time than has so many characters, and at least a row."""
    source = reader(write_jsonl(tmp_path / "a.jsonl", ({"text": "x" * 50} for _ in range(9))))
    assert [len(source.take(100, characters)) for characters in (1, 100, 101, 10_000)] == [
        1, 2, 3, 3,
    ]  # fmt: skip


def test_several_inputs_are_one_after_another(tmp_path: Path) -> None:
    """Patterns, folders and URLs; rows are numbered over all, and hidden files are none."""
    for name in ("b/1.jsonl", "b/2.jsonl", "a/3.jsonl", "a/_hidden.jsonl", "a/.x/4.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(tmp_path / name, [{"text": name}])
    by_pattern = rows(f"{tmp_path}/b/*.jsonl", f"{tmp_path}/a/3.jsonl")
    assert [(row.number, row.text) for row in by_pattern] == [
        (0, "b/1.jsonl"), (1, "b/2.jsonl"), (2, "a/3.jsonl"),
    ]  # fmt: skip
    below = [row.text for row in rows(tmp_path)]
    assert below == ["a/3.jsonl", "b/1.jsonl", "b/2.jsonl"]
    assert [row.text for row in rows(f"file://{tmp_path}")] == below
    assert [row.text for row in rows(f"file://{tmp_path}/b/*.jsonl")] == below[1:]
    assert [row.text for row in rows(f"{tmp_path}/**/[0-9].jsonl")] == below


def test_an_id_may_be_named_or_left_out(tmp_path: Path) -> None:
    """The column `id` unless another is named, or none."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": 5, "key": "k", "body": "w1"}] * 2)
    assert [row.id for row in rows(path, column="body")] == [5, 5]
    assert [row.id for row in rows(path, column="body", id_column="key")] == ["k", "k"]
    assert [row.id for row in rows(path, column="body", id_column="")] == [0, 1]
    other = write_jsonl(tmp_path / "b.jsonl", [{"body": "w1"}])
    assert [row.id for row in rows(other, column="body")] == [0]


def test_lines_without_a_break_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is one endless line does not fill the memory."""
    monkeypatch.setattr(module, "LONGEST_LINE_BYTES", 100)
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "w1"}, {"text": "x" * 200}])
    with pytest.raises(BadInput, match=r"a\.jsonl:2: a line of more than 100 bytes"):
        rows(path)
    for name in ("b.jsonl", "b.txt", "b.csv"):
        path = write_jsonl(tmp_path / name, [{"text": "x" * 200}])
        with pytest.raises(BadInput, match=rf"{name}:1: a line of more than 100 bytes"):
            rows(path)


@pytest.mark.parametrize("start", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_a_pipe_has_the_rows_of_a_file(start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blank lines before the first object do not count, and a text may have megabytes."""
    text = "x" * (3 << 20)
    pipe(start + b'{"text": "%s"}\n{"text": "w1"}\n' % text.encode(), monkeypatch)
    assert [row.text for row in rows("-")] == [text, "w1"]


def test_bytes_that_are_no_text_fail_alone(tmp_path: Path) -> None:
    """In texts and in ids, of tables and of Parquet, whatever the column's encoding."""
    (tmp_path / "a.csv").write_bytes(b"id,text\n\xff,w1\nb,\xff\nc,w3\n")
    ids, texts = (
        pa.array(values, pa.binary()).view(pa.string())
        for values in ([b"\xff", b"b", b"c"], [b"w1", b"\xff", b"w3"])
    )
    write_parquet(tmp_path / "a.parquet", id=ids, text=texts)
    coded = {"id": ids.dictionary_encode(), "text": texts.dictionary_encode()}
    write_parquet(tmp_path / "b.parquet", **coded)
    for name in ("a.csv", "a.parquet", "b.parquet"):
        found = rows(tmp_path / name)
        assert [row.id for row in found] == [None, "b", "c"]
        assert [row.failure and row.failure.code for row in found] == ["bad_id", "not_utf8", None]


def test_a_quote_that_is_never_closed_swallows_no_rows(tmp_path: Path) -> None:
    """It is told with the line on which it opens, also where bad lines are passed over."""
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,w1\n2,"w2\n3,w3\n4,w4\n', encoding="utf-8")
    for bad_lines in ("stop", "skip"):
        with pytest.raises(BadInput, match=r"a\.csv:3: a quote that is never closed"):
            rows(path, bad_lines=bad_lines)
    path.write_text('id,text\n1,"w1\n2,"w2"\n', encoding="utf-8")
    with pytest.raises(BadInput, match=r"a\.csv:3: ',' expected after"):
        rows(path)


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    """Given by itself or in a folder."""
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl")
    with open(name, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write('{"text": "w1"}\n')
    for given in (name, tmp_path):
        with pytest.raises(BadInput, match="a name that is not UTF-8; rename it"):
            rows(given)


def test_names_are_read_in_any_case(tmp_path: Path) -> None:
    """Suffixes of formats and of codecs."""
    path = compressed(corpus(tmp_path / "a.jsonl", 3), "gz")
    assert len(rows(path.rename(tmp_path / "A.JSONL.GZ"))) == 3


def test_ids_may_be_dictionary_encoded(tmp_path: Path) -> None:
    """As pandas writes categories."""
    ids = pa.array(["a", "b", "a"]).dictionary_encode()
    path = write_parquet(tmp_path / "a.parquet", id=ids, text=["w"] * 3)
    assert [row.id for row in rows(path)] == ["a", "b", "a"]


def test_reading_is_told_in_bytes(tmp_path: Path) -> None:
    """Progress counts the bytes of all files, up to their whole size."""
    paths = [corpus(tmp_path / f"{i}.jsonl", 5000) for i in range(2)]
    source = reader(*paths)
    source.take(1, 1)
    sizes = [path.stat().st_size for path in paths]
    assert 0 < source.bytes_read <= sizes[0]
    source.take(1 << 20, 1 << 30)
    assert source.bytes_read == sum(sizes)


def test_empty_files_among_others_do_not_count(tmp_path: Path) -> None:
    """Systems that write shards leave some without a row."""
    for name in ("a.jsonl", "b.csv", "c.txt"):
        (tmp_path / name).touch()
    write_parquet(tmp_path / "d.parquet", text=pa.array([], pa.string()))
    corpus(tmp_path / "e.jsonl", 3)
    assert [row.id for row in rows(tmp_path / "a.jsonl", tmp_path / "e.jsonl")] == [0, 10, 20]
    assert [row.text for row in rows(tmp_path)] == texts_of(3)

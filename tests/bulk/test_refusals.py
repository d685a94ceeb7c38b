"""A job that cannot be done is refused in one line, before anything is written."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pytest
from pyarrow import parquet

from embedding_service.bulk import command
from embedding_service.bulk.inputs import find
from embedding_service.bulk.options import InputFormat, OutputFormat
from embedding_service.errors import BadConfiguration, BadInput, StartupError
from embedding_service.types import EmbedDtype, InputType, Output, Truncate
from tests.bulk.jobs import corpus, embed, files_of, rows_of, texts_of, write_jsonl, write_parquet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def refusal(*inputs: Path | str, out: Path, **asked: Any) -> str:
    """Return the one line with which a job is refused; nothing is written."""
    before = files_of(out) if out.is_dir() else None
    with pytest.raises(StartupError) as caught:
        embed(*inputs, out=out, **asked)
    assert (files_of(out) if out.is_dir() else None) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def broken_parquet(folder: Path) -> Path:
    path = write_parquet(folder / "a.parquet", text=texts_of(1000))
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    return path


def two_columns(folder: Path) -> Path:
    table = pa.table([["w1"], ["w2"]], names=["text", "text"])
    parquet.write_table(table, folder / "a.parquet")
    return folder / "a.parquet"


def damaged(folder: Path, name: str) -> Path:
    path = corpus(folder / "a.jsonl", 5000)
    with pa.CompressedOutputStream(folder / name, {"z": "gzip", "t": "zstd"}[name[-1]]) as file:
        file.write(path.read_bytes())
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(b"x" * 20 + content[20:])
    return folder / name


# No store answers there; `discard` is served by nobody.
NOBODY = "scheme=http&endpoint_override=127.0.0.1:9"

INPUTS: dict[str, tuple[Callable[[Path], Path], dict[str, Any], str]] = {
    "missing column": (
        lambda folder: write_jsonl(folder / "a.jsonl", [{"body": "w1", "title": "w2"}]),
        {},
        "a.jsonl: there is no column 'text'; it has body, title",
    ),
    "missing column of Parquet": (
        lambda folder: write_parquet(folder / "a.parquet", body=["w1"]),
        {},
        "a.parquet: there is no column 'text'; it has body",
    ),
    "column of numbers": (
        lambda folder: write_parquet(folder / "a.parquet", text=[1, 2]),
        {},
        "a.parquet: the column 'text' is int64 and no text",
    ),
    "ids that are none": (
        lambda folder: write_parquet(folder / "a.parquet", id=[1.5], text=["w1"]),
        {},
        "the first 'id' is neither; name another column with --id",
    ),
    "ids of lists": (
        lambda folder: write_jsonl(folder / "a.jsonl", [{"id": [1], "text": "w1"}]),
        {},
        "the first 'id' is neither; name another column with --id",
    ),
    "missing id": (
        lambda folder: write_jsonl(folder / "a.jsonl", [{"text": "w1"}]),
        {"id_column": "key"},
        "a.jsonl: there is no column 'key'; it has text",
    ),
    "no JSON": (
        lambda folder: write_jsonl(folder / "a.jsonl", ["hello"]),
        {},
        "a.jsonl:1: not JSON",
    ),
    "no object": (
        lambda folder: write_jsonl(folder / "a.jsonl", ['"hello"']),
        {},
        "a.jsonl:1: not a JSON object",
    ),
    "nothing": (
        lambda folder: write_jsonl(folder / "a.jsonl", []),
        {},
        "a.jsonl: there is nothing in it",
    ),
    "missing column of CSV": (
        lambda folder: write_jsonl(folder / "a.csv", ["a,b", "1,2"]),
        {},
        "a.csv: there is no column 'text'; it has a, b",
    ),
    "a column that is there twice": (
        lambda folder: write_jsonl(folder / "a.csv", ["text,text", "1,2"]),
        {},
        "a.csv: there are 2 columns 'text'",
    ),
    "a column of Parquet that is there twice": (
        two_columns,
        {},
        "a.parquet: there are 2 columns 'text'",
    ),
    "broken Parquet": (broken_parquet, {}, "a.parquet: "),
    "no Parquet": (
        lambda folder: write_jsonl(folder / "a.parquet", [{"text": "w1"}]),
        {},
        "a.parquet: ",
    ),
    "no gzip": (
        lambda folder: write_jsonl(folder / "a.jsonl.gz", [{"text": "w1"}]),
        {},
        "a.jsonl.gz: ",
    ),
    "no file": (lambda folder: folder / "a.jsonl", {}, "a.jsonl: there is no such file"),
    "no match": (lambda folder: folder / "*.jsonl", {}, "*.jsonl: there is no such file"),
    "unknown kind": (
        lambda folder: write_jsonl(folder / "a.json", []),
        {},
        "a.json: say with --input-format how to read it: jsonl, parquet, csv, tsv, lines",
    ),
    "unreachable bucket": (
        lambda _: f"gs://anonymous@bucket/a.jsonl?{NOBODY}&retry_limit_seconds=0.1",
        {},
        "gs://anonymous@bucket/a.jsonl",
    ),
    "unknown scheme": (lambda _: "ftp://host/a.jsonl", {}, "ftp://host/a.jsonl: "),
}  # type: ignore[dict-item]


@pytest.mark.soak
def test_an_unreachable_store_of_amazon_is_told(tmp_path: Path) -> None:
    """Its client tries for six seconds, and cannot be told to try for less."""
    url = f"s3://bucket/a.jsonl?region=none&{NOBODY}"
    assert "s3://bucket/a.jsonl" in refusal(url, out=tmp_path / "out")


@pytest.mark.parametrize("case", INPUTS)
def test_inputs_are_refused_in_a_line(case: str, tmp_path: Path) -> None:
    """Exit status 10 or 2, a line with the file's name, and no folder."""
    make, asked, reason = INPUTS[case]
    out = tmp_path / "out"
    assert reason in refusal(make(tmp_path), out=out, **asked)
    assert not out.exists()


@pytest.mark.parametrize(("name", "line"), [
    ("a.jsonl", "a.jsonl:351: not JSON"),
    ("a.csv", "a.csv:352: 3 fields under 1 names"),
])  # fmt: skip
def test_a_broken_line_ends_the_job(name: str, line: str, tmp_path: Path) -> None:
    """It is named with file and line; the parts before it are kept."""
    texts = texts_of(700)
    if name.endswith("csv"):
        path = write_jsonl(tmp_path / name, ["text", *texts[:350], "a,b,c", *texts[350:]])
    else:
        lines: list[Any] = [{"text": text} for text in texts]
        path = write_jsonl(tmp_path / name, [*lines[:350], '{"text": "w1', *lines[350:]])
    out = tmp_path / "out"
    with pytest.raises(BadInput, match=line) as caught:
        embed(path, out=out, rows_per_part=300)
    assert "\n" not in str(caught.value)
    assert sorted(files_of(out)) == ["_manifest.json", "part-000000.parquet"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_damaged_file_ends_the_job(name: str, tmp_path: Path) -> None:
    """A compressed file that is damaged, or ends too early, is named."""
    path = corpus(tmp_path / "a.jsonl", 5000)
    with pa.CompressedOutputStream(
        tmp_path / name, "gzip" if name[-2:] == "gz" else "zstd"
    ) as file:
        file.write(path.read_bytes())
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-50])
    with pytest.raises(BadInput, match=rf"{name}: ") as caught:
        embed(tmp_path / name, out=tmp_path / "out")
    assert "\n" not in str(caught.value)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "column": ({"column": "body"}, "settings.column is 'text', and not 'body'"),
    "id": ({"id_column": ""}, "settings.id_column is None, and not ''"),
    "dimensions": ({"dimensions": 16}, "settings.dimensions is None, and not 16"),
    "type": ({"input_type": InputType.QUERY}, "settings.input_type is None, and not 'query'"),
    "dtype": ({"embed_dtype": EmbedDtype.INT8}, "embed_dtype is 'float32', and not 'int8'"),
    "truncate": ({"truncate": Truncate.LEFT}, "truncate is None, and not 'left'"),
    "format": ({"format": OutputFormat.JSONL}, "format is 'parquet', and not 'jsonl'"),
    "rows": ({"rows_per_part": 5}, "rows_per_part is 20000, and not 5"),
    "outputs": ({"outputs": (Output.SPARSE,)}, "outputs[0] is 'dense', and not 'sparse'"),
    "model": ({"settings": {"model_name": "other"}}, "model is 'fake', and not 'other'"),
    "weights": ({"settings": {"engine_args": {"dimension": 48}}}, "vector_space is '"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_job_is_refused_with_what_differs(case: str, tmp_path: Path) -> None:
    """The same folder takes no other model, column or setting, and stays as it is."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": 1, "text": "w1", "body": "w2"}])
    out = tmp_path / "out"
    embed(path, out=out)
    (out / "part-000000.parquet").unlink()  # so that there is something to do
    asked, reason = OTHERS[case]
    asked = {"settings": {"matryoshka": True}} | asked
    text = refusal(path, out=out, **asked)
    assert text.startswith(f"{out} is of another job: its ")
    assert reason in text


def test_a_complete_folder_is_of_its_model(tmp_path: Path) -> None:
    """Other settings of the engine are compared by starting it; the same model is let in."""
    path, out = write_jsonl(tmp_path / "a.jsonl", [{"text": "w1"}]), tmp_path / "out"
    embed(path, out=out, settings={"matryoshka": True})
    for settings, reason in (
        (
            {"model_name": "other", "engine_args": {"dimension": 48}},
            "model is 'fake', and not 'oth",
        ),
        ({"engine_args": {"dimension": 48}}, "vector_space is 'fake@"),
    ):
        assert reason in refusal(path, out=out, settings={"matryoshka": True} | settings)
    log = embed(path, out=out, settings={"matryoshka": True, "max_batch_size": 3})
    assert [entry["event"] for entry in log][-1] == "complete"


def test_an_aliass_prompt_counts(tmp_path: Path) -> None:
    """The same model with another text before each is another job."""
    path, out = write_jsonl(tmp_path / "a.jsonl", [{"text": "w1"}]), tmp_path / "out"
    settings = {
        "engine_args": {"prompts": {"query": "w9 "}},
        "aliases": {"asking": {"prompt_name": "query"}},
    }
    embed(path, out=out, settings=settings)
    assert "its prompt is '', and not 'w9 '" in refusal(
        path, out=out, settings=settings, model="asking"
    )


def test_ids_of_another_kind_are_refused_before_all_their_rows_fail(tmp_path: Path) -> None:
    """Where no id of a file could be one, it is one line, not a million; numbers may be texts."""
    first = write_parquet(tmp_path / "a.parquet", id=[1, 2], text=["w1", "w2"])
    texts = write_parquet(tmp_path / "b.parquet", id=["x", "y"], text=["w3", "w4"])
    table = tmp_path / "c.csv"
    table.write_text("id,text\n5,w5\n")
    for other in (texts, table):
        said = refusal(first, other, out=tmp_path / "out")
        assert said.startswith(f"{other}: ids are whole numbers, as the first one is, and the col")
    embed(texts, first, table, out=tmp_path / "out")
    assert list(rows_of(tmp_path / "out")) == ["x", "y", "1", "2", "5"]


def test_other_inputs_are_refused(tmp_path: Path) -> None:
    """A file that has changed, another one, or one more."""
    path, out = corpus(tmp_path / "a.jsonl", 5), tmp_path / "out"
    other = corpus(tmp_path / "b.jsonl", 5)
    embed(path, out=out)
    assert f"inputs[0].path is '{path}', and not '{other}'" in refusal(other, out=out)
    assert "inputs is 1 items, and not 2 items" in refusal(path, other, out=out)
    corpus(path, 6)
    assert f"of another job: {path} was changed at 20" in refusal(path, out=out)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """Neither files of others, nor a damaged manifest, nor a file in the folder's place."""
    path, out = corpus(tmp_path / "a.jsonl", 5), tmp_path / "out"
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    assert f"{out} holds something else, and no _manifest.json" in refusal(path, out=out)
    for damaged in ("{}", "[]", "{", '{"version": 1}', '{"version": 1, "made_of": 5, "parts": []}'):
        (out / "_manifest.json").write_text(damaged)
        assert "_manifest.json is damaged" in refusal(path, out=out)
    (out / "_manifest.json").write_text('{"version": 7}')
    assert "_manifest.json is of version 7" in refusal(path, out=out)
    assert f"{path} is a file; --out has to be a folder" in refusal(path, out=path)
    assert f"{path} is a file; --out has to be a folder" in refusal(path, out=path / "below")
    (out / "_manifest.json").unlink()
    (out / "_manifest.json").mkdir()
    assert "_manifest.json is damaged" in refusal(path, out=out)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nothing")
    assert f"{link} is a link to nothing" in refusal(path, out=link)


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """Return a folder into which nobody can write."""
    folder = tmp_path / "locked"
    folder.mkdir(0o500)
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]  # rights do not bind root
    is_root = not os.geteuid()
    if is_root and subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this root can write anywhere")
    yield folder
    if is_root:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_locked_folder_is_told_before_a_model_loads(locked: Path, tmp_path: Path) -> None:
    """Before the model could be asked about `dimensions`, and of the folder that is there."""
    path = corpus(tmp_path / "a.jsonl", 5)
    for out in (locked, locked / "new" / "folder"):
        assert refusal(path, out=out, dimensions=16).startswith(f"--out: {locked}: ")


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    """A second process is refused as long as the first one is there."""
    from embedding_service.bulk.folder import Folder

    path, out = corpus(tmp_path / "a.jsonl", 5), tmp_path / "out"
    out.mkdir()
    first = Folder(out, {})
    assert "another process is writing to it" in refusal(path, out=out)
    first.close()
    embed(path, out=out)


ASKED: dict[str, tuple[dict[str, Any], str]] = {
    "output": ({"outputs": (Output.SPARSE,)}, "fake gives dense and no sparse"),
    "dimensions": ({"dimensions": 16}, "--dimensions must be 32"),
    "prompt": ({"prompt_name": "x"}, "prompt_name is not one of this model's prompts"),
    "instruction": ({"instruction": "x"}, "was not trained with instructions"),
    "scale": ({"embed_dtype": EmbedDtype.INT8, "normalize": False}, "made from unit vectors"),
    "model": ({"model": "other"}, "--model: 'other' is none of fake"),
    "scores": ({"settings": {"engine_args": {"outputs": ["score"]}}}, "does not embed"),
}


@pytest.mark.parametrize("case", ASKED)
def test_a_model_is_asked_before_anything_is_written(case: str, tmp_path: Path) -> None:
    """An output that it cannot give is one line, and there is no folder."""
    asked, reason = ASKED[case]
    out = tmp_path / "out"
    assert reason in refusal(corpus(tmp_path / "a.jsonl", 5), out=out, **asked)
    assert not out.exists()


def test_inputs_that_make_no_sense(tmp_path: Path) -> None:
    """None at all, one twice, and Parquet through a pipe."""
    path = str(corpus(tmp_path / "a.jsonl", 1))
    for names, form, reason in (
        ([], None, "there is no input"),
        ([path, path], None, "a.jsonl is named twice"),
        (["-"], InputFormat.PARQUET, "Parquet cannot be read from standard input"),
    ):
        with pytest.raises(BadConfiguration, match=reason):
            find(names, form)


def test_flags_of_settings_are_told_from_inputs() -> None:
    """Settings have values, so that whatever follows one is no input."""
    arguments = ["a.jsonl", "--model-name", "x", "-", "--dtype=float32", "b.jsonl", "--port"]
    assert command.split(arguments) == (
        ["a.jsonl", "-", "b.jsonl"],
        ["--model-name", "x", "--dtype=float32", "--port"],
    )


@pytest.mark.parametrize(("text", "form", "reason"), [
    ("dense,score", OutputFormat.PARQUET, "--outputs: 'score' is none of dense, sparse, colbert"),
    (",", OutputFormat.PARQUET, "--outputs: name at least one"),
    ("dense,sparse", OutputFormat.NPY, "--format npy holds dense vectors alone"),
])  # fmt: skip
def test_outputs_are_checked(text: str, form: OutputFormat, reason: str) -> None:
    """Only vectors can be written, and sparse ones are no array."""
    with pytest.raises(BadConfiguration, match=reason):
        command._read_outputs(text, form)


def test_a_clusters_space_counts_before_the_manifest_has_it(tmp_path: Path) -> None:
    """Parts that a cluster had begun are not gone on with by another model."""
    path, out = corpus(tmp_path / "a.jsonl", 5), tmp_path / "out"
    embed(path, out=out)
    manifest = orjson.loads((out / "_manifest.json").read_bytes())
    space = {name: manifest["made_of"].pop(name) for name in ("model", "vector_space")}
    (out / "_manifest.json").write_bytes(orjson.dumps(manifest | {"complete": False}))
    (out / "_space.json").write_bytes(orjson.dumps(space))
    other = {"model_name": "other"}
    assert "model is 'fake', and not 'other'" in refusal(path, out=out, settings=other)
    embed(path, out=out)

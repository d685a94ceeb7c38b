"""Where a model's files are, and folders that are none: refused before vLLM is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from embedding_service.errors import ModelNotLoaded
from embedding_service.settings.model import ModelOptions
from embedding_service.worker import loading
from embedding_service.worker.backend import ModelRefused
from embedding_service.worker.location import Location, resolve_model

if TYPE_CHECKING:
    from pathlib import Path

# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 12345\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a model's files, as far as this looks."""
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"weights" * 1000)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    return tmp_path


def location(folder: Path) -> Location:
    return resolve_model(ModelOptions(model_path=str(folder)))


def test_a_folder_is_its_own_place(folder: Path) -> None:
    """A folder of the operator's has no commit, and its files are looked at."""
    assert location(folder) == Location(str(folder))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "1_Pooling/config.json", "sparse_linear.pt"]
)
def test_a_pointer_of_git_lfs_is_named(folder: Path, name: str) -> None:
    """A clone without Git LFS is told as such, and not as too little memory or no tokenizer."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(POINTER, encoding="utf-8")
    with pytest.raises(ModelRefused, match=rf"{name} is a Git-LFS pointer.*git lfs pull") as caught:
        location(folder)
    assert loading.explain(caught.value, ModelOptions()) == str(caught.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "onnx/model.onnx", "onnx/config.json"])
def test_a_pointer_that_nobody_reads_is_left(folder: Path, name: str) -> None:
    """The same weights in another format may be left out of a clone."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(POINTER, encoding="utf-8")
    assert location(folder).model == str(folder)


@pytest.mark.parametrize("name", ["s3://bucket/model", "someone/model:Q4_K_M", "/srv/model"])
def test_other_names_are_vllms_business(name: str) -> None:
    """Only a name of the hub is looked up there."""
    assert resolve_model(ModelOptions(model_name=name)) == Location(name)


def test_what_is_not_installed_is_told() -> None:
    """Installed with pip alone there is no vLLM: the line says what to install."""
    for name in ("torch", "vllm", "transformers"):
        line = loading.explain(ModuleNotFoundError(name=name), ModelOptions())
        assert line.startswith(f"{name} is not installed: ")
        assert "pip install 'embedding-service[cuda]'" in line
        assert "requirements-cpu.txt" in line
    other = loading.explain(ModuleNotFoundError("No module named 'x'", name="x"), ModelOptions())
    assert other == "ModuleNotFoundError: No module named 'x'"


def test_the_hubs_refusal_is_told_as_it_is() -> None:
    """Errors of the hub's side are a line already."""
    assert loading.explain(ModelNotLoaded("a/b is not there"), ModelOptions()) == "a/b is not there"

"""Each file and setting of a real model: what it does to both ids, and to the vectors.

The same space has the same directions within the bar of the number format; where directions
differ, so do spaces, and the canaries of the one refuse the other.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from importlib import resources
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from safetensors.numpy import load_file, save_file

from embedding_service.canary import pin_here
from embedding_service.service import canaries
from embedding_service.settings.gateway import Settings
from tests.conftest import MINILM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from _pytest.mark.structures import ParameterSet

    from embedding_service.service.canaries import Pinned

pytestmark = pytest.mark.engine
SPACE, BUILD, NEITHER = "space", "build", "neither"
FIRST = {"another place", "weights", "pooling", "a prompt", "lower-casing", "number format"}


def _keep_case(folder: Path) -> None:
    """Have the tokenizer leave capitals as they are."""
    tree = json.loads((folder / "tokenizer.json").read_text())
    _json(folder / "tokenizer.json", normalizer=tree["normalizer"] | {"lowercase": False})
    _json(folder / "tokenizer_config.json", do_lower_case=False)


# For each kind of file a change, what differs after it, and whether the canaries still pass.
FILES: dict[str, tuple[Callable[[Path], object], str, bool]] = {
    "another place": (lambda folder: None, NEITHER, True),
    "files for people": (lambda folder: (folder / "README.md").unlink(), NEITHER, True),
    "saved again": (lambda folder: _json(folder / "config.json", _comment="x"), SPACE, True),
    "weights": (lambda folder: _scale(folder / "model.safetensors"), SPACE, False),
    "pooling": (
        lambda folder: _json(
            folder / "1_Pooling/config.json",
            pooling_mode_cls_token=True,
            pooling_mode_mean_tokens=False,
        ),
        SPACE,
        False,
    ),
    "a prompt": (
        lambda folder: _json(
            folder / "config_sentence_transformers.json", prompts={"query": "find: "}
        ),
        SPACE,
        False,
    ),
    "length": (
        lambda folder: _json(folder / "sentence_bert_config.json", max_seq_length=128),
        SPACE,
        False,
    ),
    "lower-casing": (_keep_case, SPACE, False),
    "vocabulary": (lambda folder: _swap(folder / "tokenizer.json"), SPACE, False),
}
SETTINGS: dict[str, tuple[dict[str, Any], str, bool]] = {
    "number format": ({"dtype": "bfloat16"}, BUILD, True),
    "size of steps": ({"max_batch_size": 7}, BUILD, True),
    "two devices": ({"tensor_parallel_size": 2}, BUILD, True),
    "length": ({"max_model_len": 100}, SPACE, False),
}


def _json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _scale(path: Path) -> None:
    """Make the queries of one layer's attention a little larger."""
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if name.endswith("query.weight"))
    save_file({**tensors, name: tensors[name] * 1.2}, path, metadata={"format": "pt"})


def _swap(path: Path) -> None:
    """Have two words change their ids."""
    tree = json.loads(path.read_text())
    words = tree["model"]["vocab"]
    words["the"], words["of"] = words["of"], words["the"]
    path.write_text(json.dumps(tree))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of MiniLM's files."""
    package, _, place = MINILM["model_path"].removeprefix("package:").partition("/")
    copy = tmp_path_factory.mktemp("space") / "model"
    with resources.as_file(resources.files(package)) as installed:
        shutil.copytree(installed / place, copy)
    return copy


def load(tmp_path: Path, **options: Any) -> Pinned:
    """Load a model, and return its ids and the vectors of the canaries."""
    settings = Settings(**{**MINILM, **options})
    return asyncio.run(pin_here(settings, structlog.get_logger(), tmp_path / "canaries.json", None))


@pytest.fixture(scope="module")
def pinned(tmp_path_factory: pytest.TempPathFactory) -> Pinned:
    """Return what the installed model gives in float32."""
    return load(tmp_path_factory.mktemp("pinned"))


def check(pinned: Pinned, found: Pinned, expected: str, *, passes: bool) -> None:
    """Compare both ids and the vectors."""
    differs = BUILD if pinned.build != found.build else NEITHER
    space = pinned.space.rpartition("@")[2] != found.space.rpartition("@")[2]
    assert (SPACE if space else differs) == expected
    cosine, place = canaries.worst(pinned, [canary.vectors for canary in found.texts])
    least = canaries.threshold(pinned.dtype, found.dtype)
    assert (cosine >= least) == passes, (cosine, found.texts[place].text)


def _in_soak(changes: Iterable[str]) -> list[ParameterSet]:
    """Return all changes; those that are not of the first importance are for `make soak`."""
    marks = {change: () if change in FIRST else pytest.mark.soak for change in changes}
    return [pytest.param(change, marks=mark, id=change) for change, mark in marks.items()]


@pytest.mark.parametrize("change", _in_soak(FILES))
def test_files(pinned: Pinned, folder: Path, tmp_path: Path, change: str) -> None:
    """A file of the model that is changed."""
    edit, expected, passes = FILES[change]
    model = shutil.copytree(folder, tmp_path / "model")
    edit(model)
    found = load(tmp_path, model_path=str(model), model_name="mine")
    check(pinned, found, expected, passes=passes)


@pytest.mark.parametrize("change", _in_soak(SETTINGS))
def test_settings(pinned: Pinned, tmp_path: Path, change: str) -> None:
    """A setting that is changed; a machine with other devices has the same space."""
    options, expected, passes = SETTINGS[change]
    check(pinned, load(tmp_path, **options), expected, passes=passes)

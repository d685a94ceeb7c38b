"""Which files make a model's numbers, and that they are read by nobody who does not need to know."""

from __future__ import annotations

import os
import shutil
import threading
from typing import TYPE_CHECKING

import pytest

from embedding_service.engine import loaded
from embedding_service.families.weights import weights_digest, weights_stamp
from tests.calls import embed
from tests.conftest import FAKE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import RunningGateway


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return what looks like a model."""
    model = tmp_path / "model"
    (model / "onnx").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "1.pt", "onnx/model.bin", "README.md"):
        (model / name).write_text(name)
    return model


def digest(folder: Path) -> str:
    return weights_digest(str(folder), stamp=weights_stamp(str(folder)))


def test_a_copy_has_the_same_digest(folder: Path, tmp_path: Path) -> None:
    """Neither the place nor the time of files counts, nor those that are for people or other
    runtimes.
    """
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    (copy / "README.md").unlink()
    (copy / "onnx" / "model.bin").write_text("other")
    assert weights_stamp(str(copy)) != weights_stamp(str(folder))
    assert digest(copy) == digest(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "1.pt"])
def test_every_file_that_makes_numbers_counts(folder: Path, name: str) -> None:
    """One byte more or another name is another digest, and another stamp."""
    known = {digest(folder), weights_stamp(str(folder))}
    (folder / name).write_text(f"{name}!")
    known |= {digest(folder), weights_stamp(str(folder))}
    (folder / name).rename(folder / f"other-{name}")
    known |= {digest(folder), weights_stamp(str(folder))}
    assert len(known) == 6


def test_files_that_have_changed_since_are_not_believed(folder: Path) -> None:
    """What is on disk is not what was loaded if size or time say so, and is not called by its
    digest then.
    """
    stamp = weights_stamp(str(folder))
    os.utime(folder / "config.json", ns=(1, 1))
    assert weights_digest(str(folder), stamp=stamp) == stamp
    shutil.rmtree(folder)
    assert weights_digest(str(folder), stamp=stamp) == stamp


def test_weights_are_read_when_somebody_asks(
    start_gateway: Callable[..., RunningGateway], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starting, embedding and caching read none of them; records need their checksum, and they are
    read once for it.
    """
    read = []

    def watch(folder: str, *, stamp: str) -> str:
        read.append(folder)
        return weights_digest(folder, stamp=stamp)

    monkeypatch.setattr(loaded, "weights_digest", watch)
    gateway = start_gateway(**FAKE, cache_max_bytes=1 << 20, model_path=str(folder))
    with gateway.client() as http:
        assert [embed(http, input="w1").headers.get("x-cache") for _ in range(2)] == [None, "1/1"]
        assert read == []
        asked = [
            http.post("/prepare-and-embed", json={"title": "w1"}).json()["model_checksum"]
            for _ in range(2)
        ]
        assert embed(http, input="w1").headers.get("x-cache") == "1/1", (
            "what was known before is forgotten"
        )
    assert asked[0] == asked[1] != "0" * 12
    assert read == [str(folder)]
    gateway.stop()


def test_health_waits_for_the_checksum(
    start_gateway: Callable[..., RunningGateway], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who compares matching-service's checksum with a stored one never sees another than the true
    one with a 200.
    """
    go_on = threading.Event()

    def wait(folder: str, *, stamp: str) -> str:
        go_on.wait(60)
        return weights_digest(folder, stamp=stamp)

    monkeypatch.setattr(loaded, "weights_digest", wait)
    gateway = start_gateway(**FAKE, preset="matching-service", model_path=str(folder))
    with gateway.client() as http:
        early = http.get("/health")
        assert (early.status_code, early.json()["status"]) == (503, "reading weights")
        go_on.set()
        checksum = http.post("/embed", json={"text": "w1"}).json()["model_checksum"]
        health = http.get("/health")
        assert (health.status_code, health.json()["model_checksum"]) == (200, checksum)
    gateway.stop()

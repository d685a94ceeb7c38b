"""Which files make a model's numbers, and that they are read once, beside the start."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from embedding_service.families.weights import sha256
from embedding_service.worker import fingerprint as kept
from embedding_service.worker.backend import ModelRefused
from embedding_service.worker.fingerprint import Fingerprint, cache_folder, fingerprint

if TYPE_CHECKING:
    from pathlib import Path

# Every kind of file that a model of ours has, and one of a kind that nobody has heard of.
COUNTED = (
    "config.json", "model.safetensors", "2_Dense/model.safetensors", "1_Pooling/config.json",
    "sparse_linear.pt", "spiece.model", "vocab.txt", "merges.txt", "tokenizer.json",
    "chat_template.jinja", "modeling.py", "weights.new", "tf/pytorch_model.bin",
)  # fmt: skip
IGNORED = (
    "README.md", "LICENSE", ".gitattributes", ".cache/x.json", "onnx/model.bin", "a.png",
    "pytorch_model.bin", "model.onnx", "tf_model.h5", "openvino_model.xml", "model.onnx.data",
    "training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth",
    "rng_state_0.pth", "trainer_state.json", "all_results.json", "my_eval_sts_results.txt",
    "runs/Jan01/events.out.tfevents.1", "events.out.tfevents.2", "train.log", "nohup.out",
    "requirements.txt", "Dockerfile", "SHA256SUMS", "Thumbs.db", "config.json.bak", "config.json~",
    "gitattributes",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return what looks like a model."""
    model = tmp_path / "model"
    for name in COUNTED + IGNORED:
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(name)
    return model


def digest(folder: Path) -> str:
    return Fingerprint(str(folder)).result()


def test_a_copy_has_the_same_digest(folder: Path, tmp_path: Path) -> None:
    """Neither place nor time of files counts: the hub's links to its store are like a folder."""
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    store = shutil.copytree(folder, tmp_path / "store")
    snapshot = tmp_path / "snapshot"
    for name in COUNTED:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(store / name)
    assert digest(copy) == digest(folder) == digest(snapshot)


@pytest.mark.parametrize("name", COUNTED)
def test_every_file_that_may_make_numbers_counts(folder: Path, name: str) -> None:
    """One byte more, another name, or its absence is another digest."""
    known = {digest(folder)}
    (folder / name).write_text(f"{name}!")
    known.add(digest(folder))
    (folder / name).rename((folder / name).with_name("other"))
    known.add(digest(folder))
    (folder / name).with_name("other").unlink()
    known.add(digest(folder))
    assert len(known) == 4


@pytest.mark.parametrize("name", IGNORED)
def test_files_for_others_do_not_count(folder: Path, name: str) -> None:
    """Those for people and other programs, and weights that are there as safetensors, too."""
    before = digest(folder)
    (folder / name).write_text("other")
    assert digest(folder) == before


def test_linked_folders_count_as_folders(folder: Path, tmp_path: Path) -> None:
    """The engine follows links: those to a folder above are passed over, and not for ever."""
    linked = shutil.copytree(folder, tmp_path / "linked")
    (linked / "2_Dense").rename(tmp_path / "elsewhere")
    (linked / "2_Dense").symlink_to(tmp_path / "elsewhere")
    assert digest(linked) == digest(folder)
    (linked / "1_Pooling" / "around").symlink_to(linked)
    assert digest(linked) == digest(folder)
    (tmp_path / "elsewhere" / "model.safetensors").write_text("others")
    assert digest(linked) != digest(folder)


def test_files_that_change_meanwhile_are_refused(folder: Path) -> None:
    """Nobody knows which of the two the engine has read: it is to be started again."""
    reading = Fingerprint(str(folder))
    reading._thread.join()
    (folder / "vocab.txt").write_text("others")
    with pytest.raises(ModelRefused, match="changed while the engine read them") as caught:
        reading.result()
    assert "\n" not in str(caught.value)
    reading = Fingerprint(str(folder))
    reading._thread.join()
    shutil.rmtree(folder)
    with pytest.raises(ModelRefused):
        reading.result()


def test_contents_count_and_not_their_circumstances(folder: Path) -> None:
    """Another mode, time or inode while the engine loads, or a file of no effect, changes no id."""
    known = digest(folder)
    reading = Fingerprint(str(folder))
    reading._thread.join()
    (folder / "vocab.txt").chmod(0o600)
    os.utime(folder / "config.json", ns=(1, 1))
    shutil.copyfile(folder / "merges.txt", folder / "merges.part~")
    (folder / "merges.part~").replace(folder / "merges.txt")
    assert reading.result() == known


def test_a_name_in_another_encoding(folder: Path) -> None:
    """A file's name is bytes, which need not be text."""
    known = digest(folder)
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("coffee")
    assert digest(folder) != known


def test_a_file_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its contents may count, so that no id is right without them."""

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(kept, "sha256", refuse)
    with pytest.raises(ModelRefused, match=r"config\.json cannot be read.*Permission denied"):
        digest(folder)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the files that are read."""
    names: list[str] = []

    def watch(path: Path) -> bytes:
        names.append(path.name)
        return sha256(path)

    monkeypatch.setattr(kept, "sha256", watch)
    return names


def test_large_files_are_read_once(folder: Path, reads: list[str]) -> None:
    """The next start finds the digest, unless the file has changed: also one of the same size and
    time, as a container's image may have it.
    """
    large = folder / "model.safetensors"
    large.write_bytes(bytes(1 << 20))
    first = digest(folder)
    assert reads.count(large.name) == 2, "2_Dense has a small one"
    assert digest(folder) == first
    assert reads.count(large.name) == 3
    before = large.stat()
    large.write_bytes(b"1" + bytes((1 << 20) - 1))
    os.utime(large, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digest(folder) != first
    (entry,) = cache_folder().iterdir()
    entry.write_text("nonsense")
    assert digest(folder) != first
    assert entry.read_text() != "nonsense"


def test_a_cache_that_cannot_be_written_costs_time_only(
    folder: Path, reads: list[str], tmp_path: Path
) -> None:
    """Where no digest can be kept, the files are read each time."""
    (folder / "model.safetensors").write_bytes(bytes(1 << 20))
    (tmp_path / "cache").write_text("a file, where the folder should be")
    assert digest(folder) == digest(folder)
    assert reads.count("model.safetensors") == 4


def test_a_name_has_no_files() -> None:
    """vLLM looks up a name itself."""
    assert fingerprint("org/model") is fingerprint("") is None


def test_a_user_without_a_home_keeps_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers run as users that no file knows: a start costs them the reading, and no more."""
    expected = Fingerprint(str(folder)).result()

    def homeless() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(kept.Path, "home", homeless)
    assert Fingerprint(str(folder)).result() == expected

"""The runtime directory: ours alone, short enough, or refused in one line."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

import pytest

from embedding_service.engine.start import make_runtime_dir
from embedding_service.errors import BadConfiguration
from embedding_service.settings.gateway import Settings


def test_the_runtime_directory_is_ours_alone() -> None:
    """Sockets of workers, which ask for no key, lie in a fresh folder of mode 0700."""
    with tempfile.TemporaryDirectory() as short:
        parent = Path(short, "run")
        folders = [make_runtime_dir(Settings(runtime_dir=parent)) for _ in range(2)]
        assert folders[0] != folders[1]
        for folder in folders:
            assert folder.parent == parent
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_runtime_directory_that_is_too_long_is_told(tmp_path: Path) -> None:
    """A folder whose sockets could not be bound is refused by its setting, and not left behind."""
    parent = tmp_path / ("x" * 60)
    with pytest.raises(BadConfiguration, match=r"^runtime_dir: "):
        make_runtime_dir(Settings(runtime_dir=parent))
    assert list(parent.iterdir()) == []


def test_a_long_tmpdir_is_left_for_a_shorter_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sockets of workers go elsewhere where TMPDIR is too long for them."""
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = make_runtime_dir(Settings())
    assert len(str(folder)) < 66
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(long.iterdir()) == []
    folder.rmdir()


def test_a_runtime_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """A folder inside a file is refused under the setting's name, in one line."""
    (tmp_path / "file").touch()
    with pytest.raises(BadConfiguration, match=r"^runtime_dir: .*set another$"):
        make_runtime_dir(Settings(runtime_dir=tmp_path / "file" / "run"))

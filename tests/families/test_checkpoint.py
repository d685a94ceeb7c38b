"""The small files of a checkpoint, in a folder or in the Hub's cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from embedding_service.families.checkpoint import Files, ModelRefused

if TYPE_CHECKING:
    from pathlib import Path

COMMIT = "a" * 40


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return a cache of the Hub's with one repository, as huggingface_hub lays it out."""
    repository = tmp_path / "models--org--model"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text('{"architectures": ["BertModel"]}')
    return tmp_path


def test_a_repository_is_read_from_the_cache(cache: Path) -> None:
    """Without the Hub, as these tests are, what is in the cache is found, and the rest absent."""
    files = Files("org/model", cache_dir=str(cache))
    assert files.json("modules.json") == {}
    assert files.json("config.json") == {"architectures": ["BertModel"]}
    assert files.path("chat_template.jinja") is None
    assert Files("org/other", cache_dir=str(cache)).json("config.json") == {}


def test_a_folder_is_read_as_it_is(tmp_path: Path) -> None:
    """Files that are there are read, and one that is no JSON is named."""
    (tmp_path / "modules.json").write_text("[]")
    (tmp_path / "config.json").write_text("no JSON")
    files = Files(str(tmp_path))
    assert files.json("modules.json") == []
    assert files.path("1_Pooling/config.json") is None
    with pytest.raises(ModelRefused, match=r"config\.json is not JSON"):
        files.json("config.json")

"""The calibration file: what is read, and what is refused at the start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from embedding_service.errors import BadConfiguration
from embedding_service.service.vectors import read_ranges

if TYPE_CHECKING:
    from pathlib import Path


def test_ranges_are_read(tmp_path: Path) -> None:
    """The minimum of each dimension is the first row, the maximum the second."""
    (tmp_path / "ranges.json").write_text(
        '{"min": [-1, 0.5], "max": [1, 0.5], "note": "kept by whoever wrote it"}'
    )
    assert read_ranges(tmp_path / "ranges.json").tolist() == [[-1, 0.5], [1, 0.5]]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"min": [1]}',
        '{"min": [], "max": []}',
        '{"min": 1, "max": 2}',
        '{"min": [0, 0], "max": [1]}',
        '{"min": [0], "max": ["a"]}',
        '{"min": [0], "max": [NaN]}',
        '{"min": [[0]], "max": [[1]]}',
        '{"min": [2], "max": [1]}',
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str) -> None:
    """All but two lists of as many finite numbers, smaller ones first, end the start by name."""
    (tmp_path / "ranges.json").write_text(text)
    with pytest.raises(
        BadConfiguration, match=r"calibration_file: .*ranges\.json: it has to hold `min` and `max`"
    ):
        read_ranges(tmp_path / "ranges.json")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A file that is not there is named with the reason."""
    with pytest.raises(BadConfiguration, match=r"calibration_file: .*absent\.json: No such file"):
        read_ranges(tmp_path / "absent.json")

"""The file that says what int8 and uint8 are scaled by: the least and the largest value of every dimension."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from embedding_service.errors import BadConfiguration

if TYPE_CHECKING:
    from pathlib import Path

    from embedding_service.types import Floats


def read_ranges(path: Path) -> Floats:
    """Return the rows `min` and `max` (2, dimension) of a JSON file. Raises `BadConfiguration`."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        ranges = np.array([tree["min"], tree["max"]], np.float32)
    except OSError as error:
        raise BadConfiguration(f"calibration_file: {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError):
        ranges = np.empty((0, 0), np.float32)
    usable = ranges.ndim == 2 and ranges.size and np.isfinite(ranges).all()  # noqa: PLR2004
    if not usable or (ranges[0] > ranges[1]).any():
        raise BadConfiguration(
            f"calibration_file: {path}: it has to hold `min` and `max`, two lists of as many finite numbers, "
            "no minimum above its maximum"
        )
    return ranges

"""The file with the least and the largest value of every dimension, for int8 and uint8."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jiter
import numpy as np

from embedding_service.errors import BadConfiguration

if TYPE_CHECKING:
    from pathlib import Path

    from embedding_service.types import Floats


def read_ranges(path: Path) -> Floats:
    """Return the rows `min` and `max` (2, dimension) of a JSON file. Raises `BadConfiguration`."""
    try:
        tree = jiter.from_json(path.read_bytes())
        ranges = np.array([tree["min"], tree["max"]], np.float32)
    except OSError as error:
        raise BadConfiguration(
            f"calibration_file: {path}: {error.strerror}; name a file that can be read"
        ) from None
    except (ValueError, TypeError, KeyError):
        ranges = np.empty((0, 0), np.float32)
    usable = ranges.ndim == 2 and ranges.size and np.isfinite(ranges).all()  # noqa: PLR2004
    if not usable or (ranges[0] > ranges[1]).any():
        raise BadConfiguration(
            f"calibration_file: {path}: it has to hold `min` and `max`, two lists of as many "
            "finite numbers, no minimum above its maximum"
        )
    return ranges

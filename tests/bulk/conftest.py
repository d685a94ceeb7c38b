"""Fixtures of all tests of bulk jobs."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True, scope="package")
def _objects_are_seen_once() -> Iterator[None]:
    """Leave the objects of the test run frozen between jobs, each of which has a service of its own.

    To collect them all at every start was most of what a small job took.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "unfreeze", lambda: None)
        yield
    gc.unfreeze()

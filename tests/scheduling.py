"""Which tests run beside which with `pytest -n 2`: by module, shared engines in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    import pytest

# Tests that use the gateways `minilm` and `tiny`: each has an engine of 0.8 GB, which takes 11 s of a
# core to start.
SHARING_ENGINES = (
    "tests/clients/",
    "tests/docs/test_start_picture.py",
    *(f"tests/worker/test_{name}.py" for name in ("latency", "parity", "tensor_parallel")),
)


class ByModule(LoadScopeScheduling):
    """Hands out modules in the order in which they were collected."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return "engines" if module.startswith(SHARING_ENGINES) else module


def longest_first(items: list[pytest.Item]) -> None:
    """Put modules with real engines first: no process works through them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("engine")}
    items.sort(
        key=lambda item: (item.path not in slow, not item.nodeid.startswith(SHARING_ENGINES))
    )

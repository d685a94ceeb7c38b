"""One model spread over two ranks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.worker.test_parity import FEW, FLOAT32_ERROR, embed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningGateway
    from tests.worker.conftest import Checkpoint, Gateways

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        len(os.sched_getaffinity(0)) < 2,
        reason="tensor parallelism on a CPU needs a core for each rank",
    ),
]


def test_two_ranks_equal_one(
    start_gateway: Callable[..., RunningGateway], checkpoint: Checkpoint, tiny: Gateways
) -> None:
    """`tensor_parallel_size: 2` gives the vectors of size 1, to 1e-5."""
    name = "tiny-qwen3-embedding"
    spread = start_gateway(
        model_name=name,
        model_path=str(checkpoint("tiny_qwen3_embedding")),
        tensor_parallel_size=2,
        dtype="float32",
        max_model_len=1024,
        enforce_eager=True,
        port=0,
        request_timeout_s=300,
    )
    with tiny[name].client(timeout=300) as one, spread.client(timeout=300) as two:
        expected, answer = embed(one, name, FEW), embed(two, name, FEW)
    assert spread.stop() == 0
    assert answer.tokens == expected.tokens
    assert np.abs(answer.vectors - expected.vectors).max() <= FLOAT32_ERROR

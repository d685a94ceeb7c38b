"""Steps without vLLM's scheduler, up to vLLM's runner; in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.worker.direct import ROOT

pytestmark = pytest.mark.engine

PROGRAM = """
from types import SimpleNamespace
import numpy as np
from vllm import PoolingParams
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.request import Request
from embedding_service.worker.steps import _ByRunner

launched, params = [], PoolingParams(task="embed")
limits = SimpleNamespace(max_num_seqs=4, max_num_batched_tokens=64)
steps = _ByRunner(SimpleNamespace(
    model_executor=SimpleNamespace(execute_model=lambda step, non_block: launched.append(step)),
    vllm_config=SimpleNamespace(scheduler_config=limits),
))
steps.add("a", np.array([101, 7, 102], np.int32), params)
steps.launch()
request = Request("a", [101, 7, 102], None, params)
theirs = NewRequestData.from_request(request, (), request._all_token_ids)
assert launched[0].scheduled_new_reqs == [theirs], launched[0]
"""


def test_requests_are_as_the_scheduler_writes_them() -> None:
    """With the tokens that vLLM's second runner asks for, which a GPU has and no test does."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

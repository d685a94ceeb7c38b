"""Arguments of an operator's own for vLLM; reckoned in a process of its own, and nothing loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.worker.direct import ROOT

if TYPE_CHECKING:
    from tests.worker.conftest import Checkpoint

pytestmark = pytest.mark.engine

PROGRAM = """
import json, sys
from embedding_service.settings.model import ModelOptions
from embedding_service.worker.backend import ModelRefused
from embedding_service.worker.planning import planned
from embedding_service.worker.vllm_arguments import engine_arguments

found = []
for own in json.loads(sys.argv[2]):
    options = ModelOptions(model_name="m", model_path=sys.argv[1], engine_args=own)
    try:
        found.append(engine_arguments(planned(options), options, "cpu").load_format)
    except ModelRefused as refused:
        found.append(str(refused))
print(json.dumps(found))
"""
OWN = [
    {},
    {"load_format": "auto"},
    {"load_format": "safetensors"},
    {"enable_chunked_prefill": False},
    {"enable_chunked_prefill": True, "max_num_batched_tokens": 64},
]


def test_what_would_change_numbers_is_not_passed_on(checkpoint: Checkpoint) -> None:
    """Neither the choice of other weights, nor parts of texts for an encoder."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(checkpoint("tiny_bge_m3", heads=())), json.dumps(OWN)],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *formats, refused = json.loads(done.stdout.splitlines()[-1])
    assert formats == ["hf", "hf", "safetensors", "hf"]
    assert "enable_chunked_prefill" in refused

"""`VllmCore` by itself, in a process of its own: what it refuses does it no harm."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from embedding_service.engine.process import environment
from embedding_service.options import ModelOptions
from tests.conftest import MINILM
from tests.engine.direct import ROOT

pytestmark = pytest.mark.engine

OPTIONS = {**{k: v for k, v in MINILM.items() if k in ModelOptions.model_fields}, "max_model_len": 64}
PROGRAM = """
import json, sys
import numpy as np
from embedding_service.engine.core import InputRejected
from embedding_service.engine.vllm_compat import VllmCore
from embedding_service.options import ModelOptions
from embedding_service.types import Output

core = VllmCore(ModelOptions(**json.loads(sys.argv[1])))
texts = {"empty": [], "long": [7] * 65, "negative": [101, -1, 102], "unknown": [101, 30522, 102]}
texts |= {"last": [101, 30521, 102], "longest": [7] * 64, "aborted": [101, 7, 102]}
told = {}
for name, ids in texts.items():
    try:
        core.add(name, np.array(ids, np.int32), outputs=frozenset({Output.DENSE}), boundary=None)
    except InputRejected as error:
        told[name] = str(error)
core.abort(["aborted", "empty"])
while core.unfinished:
    for name, result in core.step():
        told[name] = len(result[Output.DENSE])
print(json.dumps(told))
"""


def test_what_is_refused_leaves_the_rest_unharmed() -> None:
    """Inputs that would end the engine are told what is wrong; those beside them are computed, aborted ones are not."""
    wanted = environment(ModelOptions.model_validate(OPTIONS), replica=0)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(OPTIONS)],
        cwd=ROOT,
        env=os.environ | wanted | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "empty": "an input has 0 tokens; this model takes 1 to 64",
        "long": "an input has 65 tokens; this model takes 1 to 64",
        "negative": "an input has a token id outside 0 to 30521",
        "unknown": "an input has a token id outside 0 to 30521",
        "last": 384,
        "longest": 384,
    }

"""`VllmBackend` by itself, in a process of its own: what it refuses does it no harm."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from embedding_service.engine.environment import environment
from embedding_service.settings.model import ModelOptions
from tests.conftest import MINILM
from tests.worker.direct import ROOT

pytestmark = pytest.mark.engine

OPTIONS = {
    **{k: v for k, v in MINILM.items() if k in ModelOptions.model_fields},
    "max_model_len": 64,
}
REFUSALS = """
import json, sys
import numpy as np
from embedding_service.worker.backend import InputRejected
from embedding_service.worker.vllm_backend import VllmBackend
from embedding_service.settings.model import ModelOptions
from embedding_service.types import Output

backend = VllmBackend(ModelOptions(**json.loads(sys.argv[1])))
texts = {"empty": [], "long": [7] * 65, "negative": [101, -1, 102], "unknown": [101, 30522, 102]}
texts |= {"last": [101, 30521, 102], "longest": [7] * 64, "aborted": [101, 7, 102]}
told = {}
for name, ids in texts.items():
    try:
        backend.add(name, np.array(ids, np.int32), outputs=frozenset({Output.DENSE}), boundary=None)
    except InputRejected as error:
        told[name] = str(error)
backend.abort(["aborted", "empty"])
while backend.unfinished:
    backend.launch()
    for name, result in backend.collect():
        told[name] = result[Output.DENSE].shape[1]
print(json.dumps(told))
"""
STRAIGHT = """
import json, sys
import numpy as np
from embedding_service.worker.cpu_encoder import straighten
from embedding_service.worker.vllm_backend import VllmBackend
from embedding_service.settings.model import ModelOptions
from embedding_service.types import Output
from vllm.model_executor.models.bert import BertEncoder

backend = VllmBackend(ModelOptions(**json.loads(sys.argv[1])))

def model(change):
    (found,) = backend._engine.collective_rpc("apply_model", args=(change,))
    return found

def vectors():
    random = np.random.default_rng(1)
    for i, length in enumerate((1, 7, 7, 50, 64)):
        ids = random.integers(1000, 30000, length, np.int32)
        backend.add(str(i), ids, outputs=frozenset({Output.DENSE}), boundary=None)
    found = {}
    while backend.unfinished:
        backend.launch()
        found |= {name: result[Output.DENSE] for name, result in backend.collect()}
    return np.stack([found[name] for name in sorted(found)])

encoder = model(lambda model: next(m for m in model.modules() if isinstance(m, BertEncoder)))
line = encoder.__dict__["forward"]
class Counted(type(line)):
    calls = 0
    def __call__(self, hidden_states):
        Counted.calls += 1
        return super().__call__(hidden_states)
line.__class__ = Counted
straight = vectors()
del encoder.forward
off = np.abs(straight - vectors()).max()
told = {"calls": Counted.calls, "off": float(off), "scale": float(np.abs(straight).max())}
told["again"] = model(straighten)
del encoder.forward, encoder.layer[3].output.dense.cpu_linear
told["quantised"] = model(straighten)
print(json.dumps(told))
"""

UNSCHEDULED = """
import json, sys
import numpy as np
from embedding_service.worker import steps
from embedding_service.worker.vllm_backend import VllmBackend
from embedding_service.settings.model import ModelOptions
from embedding_service.types import Output

backend = VllmBackend(ModelOptions(**json.loads(sys.argv[1])))
chosen, told = backend._steps, {}
told["kind"] = type(chosen).__name__

def vectors(turn):
    # More texts than a step holds, of which one is aborted before its step, and one after.
    random = np.random.default_rng(2)
    for i in range(11):
        ids = random.integers(1000, 30000, random.integers(3, 60), np.int32)
        backend.add(f"{turn}{i:02}", ids, outputs=frozenset({Output.DENSE}), boundary=None)
    backend.abort([f"{turn}02"])
    found, in_steps = {}, []
    while backend.unfinished:
        backend.launch()
        if not in_steps:
            backend.abort([f"{turn}03"])
        finished = backend.collect()
        in_steps.append(len(finished))
        found |= {name[1:]: result[Output.DENSE] for name, result in finished}
    return found, in_steps

ours, told["ours"] = vectors("a")
backend._steps = steps._ByScheduler(backend._engine)
theirs, told["theirs"] = vectors("b")
backend._steps = steps._ByRunner(backend._engine)
without, told["without"] = vectors("d")
backend._steps, chosen._tokens = chosen, 64
again, in_steps = vectors("c")
told["by_tokens"] = len(in_steps) > 3
told["names"] = sorted(ours) == sorted(theirs) == sorted(without) and len(ours)
told["off"] = max(
    float(np.abs(ours[name] - other[name]).max()) for other in (theirs, without) for name in ours
)
told["again"] = max(float(np.abs(ours[name] - again[name]).max()) for name in ours)
print(json.dumps(told))
"""


def run(program: str, **more: object) -> dict[str, object]:
    """Return what a program printed last, as an engine process of its own."""
    options = OPTIONS | more
    wanted = environment(ModelOptions.model_validate(options), replica=0)
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(options)],
        cwd=ROOT,
        env=os.environ | wanted | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_what_is_refused_leaves_the_rest_unharmed() -> None:
    """Inputs that would end the engine are told so; those beside them are computed."""
    assert run(REFUSALS) == {
        "empty": "an input has 0 tokens; this model takes 1 to 64",
        "long": "an input has 65 tokens; this model takes 1 to 64",
        "negative": "an input has a token id outside 0 to 30521",
        "unknown": "an input has a token id outside 0 to 30521",
        "last": 384,
        "longest": 384,
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_encoder_in_a_straight_line_computes_the_same(dtype: str) -> None:
    """Its vectors are those of vLLM's own layers, with vLLM's attention where the machine has AMX;
    products that vLLM has in another form leave an encoder as it was.
    """
    told = run(STRAIGHT, dtype=dtype)
    off, scale = told.pop("off"), told.pop("scale")
    assert isinstance(off, float)
    assert isinstance(scale, float)
    assert off <= 1e-6 * max(1.0, scale)
    assert told == {"calls": 1, "again": 1, "quantised": 0}


def test_an_encoder_needs_no_scheduler_and_no_runner() -> None:
    """Its vectors, and the texts of its steps, are those that vLLM's own lead to."""
    told = run(UNSCHEDULED, max_batch_size=4)
    off, again = told.pop("off"), told.pop("again")
    assert isinstance(off, float)
    assert isinstance(again, float)
    assert off <= 2e-6
    assert again <= 2e-5  # in other company
    assert told == {
        "kind": "Direct",
        "ours": [3, 4, 2],
        "without": [3, 4, 2],
        "theirs": [3, 4, 2],
        "names": 9,
        "by_tokens": True,
    }

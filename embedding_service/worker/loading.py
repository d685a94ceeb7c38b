"""From a model's options to a backend that has proven itself, or to one line that says why not."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from embedding_service.errors import ModelNotLoaded
from embedding_service.families import refusals
from embedding_service.types import Output
from embedding_service.worker.backend import ModelRefused
from embedding_service.worker.fingerprint import fingerprint
from embedding_service.worker.location import resolve_model
from embedding_service.worker.planning import planned
from embedding_service.worker.progress import memory, say, stage

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from embedding_service.settings.model import ModelOptions
    from embedding_service.types import TokenIds
    from embedding_service.worker.backend import Backend

_NOT_FINITE = "the model answers a plain English sentence with numbers that are not finite"
_ENGINE = frozenset({"vllm", "torch", "transformers"})
_INSTALL = (
    "engines need vLLM, which is `pip install 'embedding-service[cuda]'` on hosts with an NVIDIA "
    "GPU, and `pip install --no-deps -r requirements-cpu.txt` on others (README.md says more)"
)
_WARM_UP_TEXT = "The quick brown fox jumps over the lazy dog."


class _Input(NamedTuple):
    """Token ids; for a pair, how many of them are its first text."""

    ids: TokenIds
    boundary: int | None = None


def load(options: ModelOptions) -> Backend:
    """Return a loaded model. Raises `ModelRefused`, and whatever vLLM raises."""
    if options.engine == "fake":
        from embedding_service.worker.fake import FakeBackend  # noqa: PLC0415

        return FakeBackend(options)
    with stage("model files") as facts:
        plan = planned(options)  # what can be refused at once need not wait for vLLM
        location = resolve_model(options)
        refusals.check_weights(Path(plan.model))
        refusals.check_vocabulary(Path(plan.model))
        facts["detail"] = str(location)
    for name in plan.unread:
        say(f"{name} has no effect without a modules.json, as in sentence-transformers")
    files = fingerprint(location.model)  # read beside the imports, and the loading
    with stage("import of vLLM"):
        gc.disable()  # all that an import makes stays: looking for garbage takes a tenth of it
        from embedding_service.worker.vllm_backend import (  # noqa: PLC0415 - takes seconds
            VllmBackend,
        )

        gc.freeze()
        gc.enable()
    with stage("weights and compilation"):
        return VllmBackend(options, files)


def explain(error: BaseException, options: ModelOptions) -> str:
    """Say in one line why a model could not be loaded."""
    if isinstance(error, ModelRefused | ModelNotLoaded):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name in _ENGINE:
        return f"{error.name} is not installed: {_INSTALL}"
    if vllm_backend := sys.modules.get("embedding_service.worker.vllm_backend"):
        return vllm_backend.explain(error, options)
    return " ".join(f"{type(error).__name__}: {error}".split())


def warm_up(backend: Backend) -> int | None:
    """Compute a real text, then a full step; return the dimension of a dense vector.

    The first proves that the model works, the second pays for what kernels prepare on first use.
    """
    with stage("warm-up") as facts:
        width = _try(backend)
        facts.update(memory())
    return width


def _try(backend: Backend) -> int | None:
    from tokenizers import Tokenizer  # noqa: PLC0415 - the worker alone needs it only here

    tokenizer = Tokenizer.from_str(backend.tokenizer_json.decode())
    facts = backend.facts(None)
    # Files may fill texts up to 128 tokens (MiniLM's), and a model may be set to take fewer.
    tokenizer.no_padding()
    tokenizer.enable_truncation(facts.max_tokens)
    output = facts.outputs[0]
    asked = _pair(tokenizer) if output is Output.SCORE else _text(tokenizer)
    width = _compute(backend, [asked], output)
    texts = min(backend.limits.texts, backend.limits.tokens // len(asked.ids))
    _compute(backend, [asked] * texts, output)
    return width if output is Output.DENSE else None


def _text(tokenizer: Tokenizer) -> _Input:
    return _Input(np.array(tokenizer.encode(_WARM_UP_TEXT).ids, np.int32))


def _pair(tokenizer: Tokenizer) -> _Input:
    """Return a pair as the tokenizer makes it, its segments numbered as requests have them."""
    pair = tokenizer.encode(_WARM_UP_TEXT, _WARM_UP_TEXT)
    first = pair.type_ids.index(1) if any(pair.type_ids) else None
    return _Input(np.array(pair.ids, np.int32), first)


def _compute(backend: Backend, inputs: list[_Input], output: Output) -> int:
    """Compute inputs, and return the width of their rows. Raises `ModelRefused`."""
    width = 0
    for index, (ids, boundary) in enumerate(inputs):
        backend.add(f"warm-up:{index}", ids, outputs=frozenset({output}), boundary=boundary)
    while backend.unfinished:
        backend.launch()
        for _, rows in backend.collect():
            if not np.isfinite(rows[output]).all():
                raise ModelRefused(_NOT_FINITE)
            width = rows[output].shape[1]
    return width

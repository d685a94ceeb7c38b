"""A core without a model: deterministic vectors, and faults on demand. Used by most tests.

It runs in a real worker process behind the real wire, so that only the model is missing. A text
is split at spaces. These words do something (`FAULTS`); every other word is just a word.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from embedding_service.engine.protocol import ModelFacts
from embedding_service.families.weights import weights_stamp
from embedding_service.types import Output
from embedding_service.worker.backend import InputRejected, ModelRefused, StepLimits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from embedding_service.settings.model import ModelOptions
    from embedding_service.types import Floats, TokenIds

CLS, SEP, UNKNOWN = 0, 1, 2
FAULTS = {"fault-slow": 10, "fault-die": 11, "fault-hang": 12, "fault-nan": 13, "fault-reject": 14, "fault-raise": 15}
VOCABULARY = 5_000
DIMENSION = 32


class FakeBackend:
    """Vectors that depend on the token ids alone; `engine_args` may set `step_s`, `outputs` and faults."""

    def __init__(self, options: ModelOptions) -> None:
        knobs = options.engine_args
        if "refuse" in knobs:
            raise ModelRefused(str(knobs["refuse"]))
        time.sleep(float(knobs.get("load_s", 0)))
        self.options = options
        self.outputs = tuple(Output(name) for name in knobs.get("outputs", ["dense"]))
        self.step_s = float(knobs.get("step_s", 0))
        texts = 32 if options.max_batch_size == "auto" else options.max_batch_size
        self.limits = StepLimits(texts=texts, tokens=2048)
        self.tokenizer_json = fake_tokenizer().to_str().encode()
        self._queue: dict[str, tuple[list[int], frozenset[Output]]] = {}
        if "die_after_s" in knobs:
            threading.Timer(float(knobs["die_after_s"]), os.kill, (os.getpid(), signal.SIGKILL)).start()

    def add(self, key: str, ids: TokenIds, *, outputs: frozenset[Output], boundary: int | None) -> None:
        """Queue one input; `fault-reject` is refused."""
        del boundary
        if FAULTS["fault-reject"] in ids:
            raise InputRejected("the fake engine was told to refuse this")
        self._queue[key] = (ids.tolist(), outputs)

    def abort(self, keys: Iterable[str]) -> None:
        """Forget inputs."""
        for key in keys:
            self._queue.pop(key, None)

    @property
    def unfinished(self) -> int:
        """Inputs waiting for the next step."""
        return len(self._queue)

    def step(self) -> list[tuple[str, Mapping[Output, Floats]]]:
        """Answer everything that waits, unless a fault was asked for."""
        batch, self._queue = self._queue, {}
        time.sleep(self.step_s)
        seen = {token for ids, _ in batch.values() for token in ids}
        if FAULTS["fault-slow"] in seen:
            time.sleep(0.5)
        if FAULTS["fault-hang"] in seen:
            time.sleep(3600)
        if FAULTS["fault-raise"] in seen:
            raise RuntimeError("the fake engine was told to break")
        if FAULTS["fault-die"] in seen:
            os.kill(os.getpid(), signal.SIGKILL)
        return [
            (key, {output: fake_vectors(ids, output) for output in outputs}) for key, (ids, outputs) in batch.items()
        ]

    def facts(self, dimension: int | None) -> ModelFacts:
        """Describe a model that does not exist, but for the files that `model_path` may have."""
        folder = self.options.model_path
        return ModelFacts(
            architecture="Fake",
            model_type="fake",
            outputs=self.outputs,
            dimension=dimension,
            max_tokens=self.options.max_model_len or 512,
            vocab_size=VOCABULARY,
            pooling="CLS",
            dtype="float32",
            device="cpu",
            revision=None,
            weights=weights_stamp(folder) if folder else "fake",
            engine_version="fake",
            prompts=self.options.engine_args.get("prompts", {}),
            default_prompt_name=None,
            matryoshka=() if self.options.matryoshka else None,
            special_ids=(CLS, SEP, UNKNOWN),
            folder=folder,
        )


def fake_vectors(ids: list[int], output: Output) -> Floats:
    """Return the vector(s) of one input: seeded by its ids, NaN where `fault-nan` is among them."""
    seed = hashlib.sha256(np.asarray(ids, np.int32).tobytes() + output.encode()).digest()
    random = np.random.default_rng(np.frombuffer(seed, np.uint32))
    shape: dict[Output, tuple[int, ...]] = {
        Output.DENSE: (DIMENSION,),
        Output.SPARSE: (len(ids),),
        Output.COLBERT: (len(ids) - 1, DIMENSION),
        Output.HIDDEN_STATES: (len(ids), DIMENSION),
    }
    vector = random.standard_normal(shape.get(output, (1,))).astype(np.float32)
    if output is Output.SPARSE:
        vector = np.maximum(vector, 0)
    if output is Output.COLBERT:
        vector /= np.linalg.norm(vector, axis=1, keepdims=True)
    if FAULTS["fault-nan"] in ids:
        vector[...] = np.nan
    return vector


def fake_tokenizer() -> Tokenizer:
    """Return a word tokenizer: [CLS] words [SEP], with byte fallback by way of character pieces."""
    words = {"[CLS]": CLS, "[SEP]": SEP, "[UNK]": UNKNOWN, **FAULTS}
    words |= {f"w{i}": 100 + i for i in range(VOCABULARY - 100)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))  # noqa: S106 - not a password
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return tokenizer

"""A backend without a model: deterministic vectors, and faults on demand. Used by most tests.

It runs in a real worker process behind the real wire, so that only the model is missing. A text
is split at spaces. These words do something (`FAULTS`); every other word is just a word.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections import deque
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from embedding_service.engine.protocol import ModelFacts
from embedding_service.families import bge_m3, lexical, profiles
from embedding_service.types import Output
from embedding_service.worker.backend import InputRejected, ModelRefused, StepLimits
from embedding_service.worker.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from embedding_service.settings.model import ModelOptions
    from embedding_service.types import Floats, Rows, TokenIds

    Outputs = frozenset[Output]

CLS, SEP, UNKNOWN = 0, 1, 2
FAULTS = {
    "fault-slow": 10,
    "fault-die": 11,
    "fault-hang": 12,
    "fault-nan": 13,
    "fault-reject": 14,
    "fault-raise": 15,
}
SPECIAL_IDS = CLS, SEP, UNKNOWN
VOCABULARY = 5_000
DIMENSION = 32
_SCORE = bge_m3.Part(slice(1), width=1)  # the one output that BGE-M3 has not


def _break() -> None:
    raise RuntimeError("the fake engine breaks, as asked")


class FakeBackend:
    """Vectors that depend on the token ids alone; `engine_args` may set `step_s` and `outputs`.

    Also `dimension`, `steps_ahead`, `load_s`, `normalizes` and `cuts_left` of its facts, `refuse`
    with the reason why it should not be loaded, and `tokenizer` with the file of another one.
    """

    def __init__(self, options: ModelOptions) -> None:
        knobs = options.engine_args
        self._files = fingerprint(options.model_path or "")
        self._start(**knobs)
        self.options = options
        self.outputs = tuple(map(Output, knobs.get("outputs", ["dense"])))
        self.step_s = float(knobs.get("step_s", 0))
        self.dimension = int(knobs.get("dimension", DIMENSION))
        texts = 32 if options.max_batch_size == "auto" else options.max_batch_size
        self.limits = StepLimits(texts=texts, tokens=2048)
        self.steps_ahead = int(knobs.get("steps_ahead", 1))
        self.tokenizer_json = _tokenizer_json(knobs.get("tokenizer"))
        self._queue: dict[str, tuple[list[int], Outputs]] = {}
        self._launched: deque[dict[str, tuple[list[int], Outputs]]] = deque()
        self._failures: dict[str, Callable[[], None]] = {
            "fault-slow": partial(self.sleep, 0.5),
            "fault-hang": partial(self.sleep, 3600),
            "fault-raise": _break,
            "fault-die": self.die,
        }

    def _start(self, refuse: str = "", load_s: float = 0, **_: Any) -> None:
        if refuse:
            raise ModelRefused(refuse)
        self.sleep(load_s)

    def sleep(self, seconds: float) -> None:
        """Do nothing for so long."""
        time.sleep(seconds)

    def die(self) -> None:
        """Be gone at once, as if killed."""
        os.kill(os.getpid(), signal.SIGKILL)

    def add(self, key: str, ids: TokenIds, *, outputs: Outputs, boundary: int | None) -> None:
        """Queue one input; `fault-reject` is refused."""
        del boundary  # no token counts more than another here
        if FAULTS["fault-reject"] in ids:
            raise InputRejected("the fake engine refuses this, as asked")
        self._queue[key] = (ids.tolist(), outputs)

    def abort(self, keys: Iterable[str]) -> None:
        """Forget inputs."""
        batches = (self._queue, *self._launched)
        for key, batch in product(keys, batches):
            batch.pop(key, None)

    @property
    def unfinished(self) -> int:
        """Inputs added that have not come back yet."""
        return len(self._queue) + sum(map(len, self._launched))

    def launch(self) -> None:
        """Make a step of everything that waits."""
        self._launched.append(self._queue)
        self._queue = {}

    def collect(self) -> list[tuple[str, Rows]]:
        """Answer the oldest step, unless a fault was asked for."""
        batch = self._launched.popleft()
        self.sleep(self.step_s)
        seen = set(chain.from_iterable(ids for ids, _ in batch.values()))
        for word, fail in self._failures.items():
            if FAULTS[word] in seen:
                fail()
        return [(key, self._rows(*asked)) for key, asked in batch.items()]

    def _rows(self, ids: list[int], outputs: Outputs) -> Rows:
        return {output: fake_vectors(ids, output, self.dimension) for output in outputs}

    @property
    def _name(self) -> str:
        """The weights of a model without files, which differ as those of two models would."""
        return f"{self.options.model_name}@{self.options.revision}"

    def facts(self, dimension: int | None) -> ModelFacts:
        """Describe a model that does not exist, but for the files that `model_path` may have."""
        options = self.options
        return ModelFacts(
            architecture="Fake",
            model_type="fake",
            outputs=self.outputs,
            dimension=dimension,
            max_tokens=options.max_model_len or 512,
            vocab_size=VOCABULARY,
            pooling="CLS",
            dtype="float32" if options.dtype in ("auto", "half") else options.dtype,
            device="cpu" if options.device == "auto" else options.device,
            revision=None,
            weights=self._files.result() if self._files else self._name,
            engine_version="fake",
            prompts=options.engine_args.get("prompts", {}),
            default_prompt_name=None,
            matryoshka=() if options.matryoshka else None,
            normalizes=options.engine_args.get("normalizes", False),
            cuts_left=options.engine_args.get("cuts_left", False),
            family=profiles.find(model_name=options.model_name).name,
        )


def _tokenizer_json(path: str | None) -> bytes:
    return Path(path).read_bytes() if path else fake_tokenizer().to_str().encode()


def fake_vectors(ids: list[int], output: Output, dimension: int = DIMENSION) -> Floats:
    """Return the rows of one input: seeded by its ids, NaN where `fault-nan` is among them."""
    seed = hashlib.sha256(np.asarray(ids, np.int32).tobytes() + output.encode()).digest()
    random = np.random.default_rng(np.frombuffer(seed, np.uint32))
    part = bge_m3.PARTS.get(output, _SCORE)
    rows = random.standard_normal(part.shape(len(ids), dimension)).astype(np.float32)
    if part.unit:
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    if FAULTS["fault-nan"] in ids:
        rows[...] = np.nan
    if output is Output.SPARSE:
        return lexical.of_tokens(np.array(ids), rows[:, 0], skip_ids=SPECIAL_IDS)
    return rows


def fake_tokenizer() -> Tokenizer:
    """Return a word tokenizer: [CLS] words [SEP], with byte fallback by way of character pieces."""
    words = {"[CLS]": CLS, "[SEP]": SEP, "[UNK]": UNKNOWN, **FAULTS}
    words |= {f"w{i}": 100 + i for i in range(VOCABULARY - 100)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))  # noqa: S106 - not a password
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    return tokenizer

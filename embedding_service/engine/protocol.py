"""Messages between the gateway and an engine worker.

Multipart ZeroMQ messages: one msgpack header, then raw little-endian numpy frames; messages that are
sent at one time may come in one multipart message, see `split`. Nothing here is ever pickled, and a message whose
frames are not as long as its header says is refused. Two sockets per worker generation: `jobs` (PAIR, towards
the worker, answered with `Pong`) and `results` (PUSH from the worker).
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from embedding_service.types import Output, Priority

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from embedding_service.types import Floats, TokenIds


SIZE_CLASSES = 13  # of `Pong.batch_sizes`: steps of up to 4,096 texts


class ProtocolError(Exception):
    """A message that the other side cannot have meant."""


class Launch(msgspec.Struct, frozen=True):
    """What a worker is told at birth; `model` is a dumped `ModelOptions`."""

    generation: int
    jobs_address: str
    results_address: str
    step_path: str
    model: dict[str, Any]


class Message(msgspec.Struct, frozen=True, tag_field="kind", tag=str.lower):
    """Base of every header; `generation` numbers the worker processes of one replica."""

    generation: int


class Run(Message, frozen=True):
    """Compute `outputs` for every input. Frame: lengths (n,), then token ids (total,), int32.

    `boundaries` holds, for pairs, the number of tokens of the first segment (token type 0).
    `deadline` is on CLOCK_MONOTONIC, which both processes share. `more_coming` tells that other
    requests are on their way to this worker, so that an idle engine may gather for a moment.
    """

    job: int
    outputs: tuple[Output, ...]
    n: int
    total: int
    priority: Priority
    deadline: float
    boundaries: tuple[int, ...] | None = None
    more_coming: bool = False


class Cancel(Message, frozen=True):
    """Forget the job; nothing is answered."""

    job: int


class Ping(Message, frozen=True):
    """Answered with `Pong` by the worker's receiving thread, however long a step takes."""


class Stop(Message, frozen=True):
    """Exit; what is still queued is dropped."""


class Pong(Message, frozen=True):
    """Progress of the worker: `steps` completed, `texts` and `tokens` computed in `busy_s` seconds.

    `running` texts with `running_tokens` are in the engine, `waiting` ones are queued before it.
    `batch_sizes[k]` counts the steps of more than 2 ** (k - 1) and at most 2 ** k texts.
    """

    steps: int
    texts: int
    tokens: int
    busy_s: float
    running: int
    running_tokens: int
    waiting: int
    batch_sizes: tuple[int, ...]


class ModelFacts(msgspec.Struct, frozen=True):
    """What a loaded model is, as the worker found it; the gateway reads no model files.

    `dimension` is None for a model that only scores. `matryoshka` lists the allowed sizes, is
    empty for "any", and None for "no". `special_ids` (cls, eos, pad, unk) carry no lexical weight.
    `weights` is the hub's commit, or the stamp of the files in `folder`, see `engine/identity.py`.
    """

    architecture: str
    model_type: str
    outputs: tuple[Output, ...]
    dimension: int | None
    max_tokens: int
    vocab_size: int
    pooling: str
    dtype: str
    device: str
    revision: str | None
    weights: str
    engine_version: str
    prompts: dict[str, str]
    default_prompt_name: str | None
    matryoshka: tuple[int, ...] | None
    special_ids: tuple[int, ...] = ()
    folder: str | None = None


class Hello(Message, frozen=True):
    """The model is loaded and has embedded a real text. Frame: the fast tokenizer as JSON."""

    facts: ModelFacts


class Done(Message, frozen=True):
    """Results of a job: one float32 frame for each output asked for, in `Output`'s order.

    dense (n, dimension), not normalised; sparse (total,), a weight for every token, or for a
    model that weighs its vocabulary (rows, 2), see `splade`; colbert (total - n, dimension), all
    tokens but each input's first; score (n, labels), raw; hidden states (total, dimension). `steps` is
    the number of engine steps between the arrival of the job and its end, `queued_s` the time until
    its first input was computed.
    """

    job: int
    shapes: tuple[tuple[int, ...], ...]
    steps: int
    queued_s: float


class Failed(Message, frozen=True):
    """A job (or, with job 0, the start of the worker) came to nothing.

    `reason`: `expired`, `rejected` (the core refused the input) or `startup`.
    """

    job: int
    reason: str
    message: str


AnyMessage = Run | Cancel | Ping | Stop | Pong | Hello | Done | Failed


@cache
def in_order(outputs: frozenset[Output]) -> tuple[Output, ...]:
    """Return outputs in the order that a `Done` has them."""
    return tuple(output for output in Output if output in outputs)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: Message, *frames: np.ndarray | bytes) -> list[bytes | memoryview]:
    """Return the parts of a multipart message; arrays are sent without a copy."""
    return [_encoder.encode(message), *map(_buffer, frames)]


def _buffer(frame: np.ndarray | bytes) -> bytes | memoryview:
    return frame if isinstance(frame, bytes) else np.ascontiguousarray(frame).reshape(-1).view(np.uint8).data


def decode(header: bytes | memoryview) -> AnyMessage:
    """Read a header. Raises `ProtocolError`."""
    try:
        message: AnyMessage = _decoder.decode(header)
    except msgspec.DecodeError as error:
        raise ProtocolError(str(error)) from None
    return message


def split(parts: Sequence[memoryview]) -> Iterator[tuple[AnyMessage, Sequence[memoryview]]]:
    """Yield the messages that came together, each with its frames. Raises `ProtocolError`."""
    start = 0
    while start < len(parts):
        message = decode(parts[start])
        end = start + 1 + _frames(message)
        if end > len(parts):
            raise ProtocolError(f"a {type(message).__name__} came without its frames")
        yield message, parts[start + 1 : end]
        start = end


def _frames(message: AnyMessage) -> int:
    if isinstance(message, Done):
        return len(message.shapes)
    return 1 if isinstance(message, Run | Hello) else 0


def run_frame(message: Run, frame: memoryview) -> tuple[TokenIds, TokenIds]:
    """Return (lengths, flat token ids) of a `Run`. Raises `ProtocolError`."""
    numbers = _array(frame, "<i4")
    lengths, ids = numbers[: message.n], numbers[message.n :]
    adds_up = len(lengths) == message.n and len(ids) == message.total == int(lengths.sum())
    if not adds_up or (lengths < 0).any():
        raise ProtocolError("the frame of a run is not as long as its header says")
    return lengths, ids


def done_frames(message: Done, frames: Sequence[memoryview]) -> list[Floats]:
    """Return the arrays of a `Done`, float32, in its shapes. Raises `ProtocolError`."""
    arrays = []
    for frame, shape in zip(frames, message.shapes, strict=True):
        array = _array(frame, "<f4")
        if array.size != math.prod(shape) or min(shape, default=0) < 0:
            raise ProtocolError(f"a result of shape {shape} came as {array.size} numbers")
        arrays.append(array.reshape(shape))
    return arrays


def _array(frame: memoryview, dtype: str) -> np.ndarray[Any, Any]:
    """Read a frame of four-byte numbers. Raises `ProtocolError`."""
    if frame.nbytes % 4:
        raise ProtocolError(f"a frame of {frame.nbytes} bytes does not hold four-byte numbers")
    return np.frombuffer(frame, np.dtype(dtype))

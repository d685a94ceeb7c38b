"""Messages between the gateway and an engine worker.

Multipart ZeroMQ messages: one msgpack header, then raw little-endian numpy frames; messages that
are sent at one time may come in one multipart message, see `split`. Nothing here is ever pickled,
and a message whose frames are not as long as its header says is refused. Two sockets per worker
generation: `jobs` (PAIR, towards the worker, answered with `Pong`) and `results` (PUSH from it).
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from embedding_service.types import BatchResult, Output, Priority

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from embedding_service.types import Floats, Rows, TokenIds


PROGRESS = "embedding-service: "  # begins lines of a worker's output that belong in the log
SIZE_CLASSES = 13  # of `Pong.batch_sizes`: steps of up to 4,096 texts


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line behind `PROGRESS`: a stage of the start begins, or took so long; or a download.

    `detail` is for people.
    """

    stage: str | None = None
    seconds: float | None = None
    detail: str | None = None
    done_bytes: int | None = None
    total_bytes: int | None = None
    memory_bytes: int | None = None
    device_memory_bytes: int | None = None

    @classmethod
    def read(cls, line: str) -> Progress:
        """Return what a line says; words alone are a detail."""
        try:
            return msgspec.json.decode(line, type=cls)
        except msgspec.MsgspecError:
            return cls(detail=line)


class ProtocolError(Exception):
    """A message that the other side cannot have meant."""


class Launch(msgspec.Struct, frozen=True):
    """The worker's options, on its standard input; `model` is a dumped `ModelOptions`."""

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
    """A loaded model as the worker found it; the gateway reads no model files.

    `dimension` is None for a model that only scores. `matryoshka` lists the allowed sizes, is
    empty for "any", and None for "no".
    `family` names its profile. `normalizes`: the checkpoint's last module scales vectors to length
    1, which the service does. Tokens of a prompt are left out of the vector unless `pools_prompts`.
    `cuts_left`: its tokenizer cuts off the beginning of a longer text.
    `weights` is the digest of the contents of all its files, see `worker/fingerprint.py`.
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
    family: str = "plain"
    normalizes: bool = False
    pools_prompts: bool = True
    cuts_left: bool = False


class Hello(Message, frozen=True):
    """The model is loaded and has embedded a real text. Frame: the fast tokenizer as JSON."""

    facts: ModelFacts


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """One output of a job, as a float32 frame of rows: `counts` are the rows of each input."""

    output: Output
    width: int
    counts: tuple[int, ...]


class Done(Message, frozen=True):
    """Results of a job, with the frames that `frames` describes; see `BatchResult`."""

    job: int
    frames: tuple[Frame, ...]
    steps: int
    queued_s: float


class Failed(Message, frozen=True):
    """A job (or, with job 0, the start of the worker) came to nothing.

    `reason`: `expired`, `rejected` (the backend refused the input) or `startup`.
    """

    job: int
    reason: str
    message: str


AnyMessage = Run | Cancel | Ping | Stop | Pong | Hello | Done | Failed


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: Message, *frames: np.ndarray | bytes) -> list[bytes | memoryview]:
    """Return the parts of a multipart message; arrays are sent without a copy."""
    return [_encoder.encode(message), *map(_buffer, frames)]


def _buffer(frame: np.ndarray | bytes) -> bytes | memoryview:
    return (
        frame
        if isinstance(frame, bytes)
        else np.ascontiguousarray(frame).reshape(-1).view(np.uint8).data
    )


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
        return len(message.frames)
    return 1 if isinstance(message, Run | Hello) else 0


def run_frame(message: Run, frame: memoryview) -> tuple[TokenIds, TokenIds]:
    """Return (lengths, flat token ids) of a `Run`. Raises `ProtocolError`."""
    numbers = _array(frame, "<i4")
    lengths, ids = numbers[: message.n], numbers[message.n :]
    adds_up = len(lengths) == message.n and len(ids) == message.total == int(lengths.sum())
    if not adds_up or (lengths < 0).any():
        raise ProtocolError("the frame of a run is not as long as its header says")
    return lengths, ids


def pack(results: Sequence[Mapping[Output, Floats]]) -> tuple[tuple[Frame, ...], list[Floats]]:
    """Return the headers and the arrays of a `Done`, from the rows of each input."""
    frames, arrays = [], []
    for output in results[0]:
        rows = [result[output] for result in results]
        frames.append(Frame(output, rows[0].shape[1], tuple(map(len, rows))))
        arrays.append(np.concatenate(rows))
    return tuple(frames), arrays


def unpack(done: Done, frames: Sequence[memoryview]) -> BatchResult:
    """Return what `pack` was given, as views of the frames. Raises `ProtocolError`."""
    outputs = [header.output for header in done.frames]
    if len({len(header.counts) for header in done.frames}) > 1:
        raise ProtocolError("two outputs came for different numbers of inputs")
    columns = map(_by_input, done.frames, frames)
    inputs = zip(*columns, strict=True)
    results: list[Rows] = [dict(zip(outputs, rows, strict=True)) for rows in inputs]
    return BatchResult(results, done.steps, done.queued_s)


def _by_input(header: Frame, frame: memoryview) -> Iterable[Floats]:
    """Return the rows of each input, in order. Raises `ProtocolError`."""
    rows, counts = _matrix(header, frame), header.counts
    if counts.count(1) == len(counts):  # a vector each: numpy makes the views
        return rows[:, None]
    ends = accumulate(counts)
    return [rows[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _matrix(header: Frame, frame: memoryview) -> Floats:
    """Read all rows of an output. Raises `ProtocolError`."""
    numbers: Floats = _array(frame, "<f4")
    total = sum(header.counts)
    if (
        header.width < 1
        or min(header.counts, default=0) < 0
        or numbers.size != total * header.width
    ):
        raise ProtocolError(f"{total} rows of {header.width} came as {numbers.size} numbers")
    return numbers.reshape(total, header.width)


def _array(frame: memoryview, dtype: str) -> np.ndarray[Any, Any]:
    """Read a frame of four-byte numbers. Raises `ProtocolError`."""
    if frame.nbytes % 4:
        raise ProtocolError(f"a frame of {frame.nbytes} bytes does not hold four-byte numbers")
    return np.frombuffer(frame, np.dtype(dtype))

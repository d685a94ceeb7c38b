"""Messages on the wire: they come back as they were sent, and nothing else comes in."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_service.engine import protocol
from embedding_service.types import Output, Priority

FACTS = protocol.ModelFacts(
    architecture="A",
    model_type="a",
    outputs=(Output.DENSE, Output.SPARSE),
    dimension=None,
    max_tokens=512,
    vocab_size=1000,
    pooling="CLS",
    dtype="float32",
    device="cpu",
    revision=None,
    weights="w",
    engine_version="0",
    prompts={"query": "Q: "},
    default_prompt_name=None,
    matryoshka=(),
)
RUN = protocol.Run(
    3,
    job=1,
    outputs=(Output.DENSE,),
    n=2,
    total=5,
    priority=Priority.BULK,
    deadline=1.5,
    boundaries=(1, 2),
)
FLOATS = np.ones(6, np.float32)
MESSAGES = [
    RUN,
    protocol.Run(1, 2, (Output.SCORE,), 1, 1, Priority.INTERACTIVE, 0.0, more_coming=True),
    protocol.Cancel(3, job=2**40),
    protocol.Ping(0),
    protocol.Stop(7),
    protocol.Pong(
        1,
        2,
        texts=3,
        tokens=4,
        busy_s=0.5,
        running=6,
        running_tokens=7,
        waiting=8,
        batch_sizes=(1, 0, 2),
    ),
    protocol.Hello(1, facts=FACTS),
    protocol.Done(
        1,
        2,
        (protocol.Frame(Output.DENSE, 32, (1, 1)), protocol.Frame(Output.SPARSE, 2, (3, 0))),
        3,
        0.25,
    ),
    protocol.Failed(1, job=0, reason="startup", message="naïve 😀"),
]


def test_every_kind_of_message_is_covered() -> None:
    """The round trip below knows every kind of message."""
    assert {type(message) for message in MESSAGES} == set(protocol.Message.__subclasses__())


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_headers_come_back(message: protocol.Message) -> None:
    """A header that was encoded decodes to an equal one."""
    (header,) = protocol.encode(message)
    assert protocol.decode(header) == message


@given(st.binary(max_size=60))
def test_noise_is_no_message(noise: bytes) -> None:
    """Arbitrary bytes are a `ProtocolError`, or happen to be a message; never another error."""
    try:
        message = protocol.decode(noise)
    except protocol.ProtocolError:
        return
    assert isinstance(message, protocol.Message)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"kind": "run"},
        {"kind": "stop"},
        {"kind": "stop", "generation": "1"},
        {"kind": "stop", "generation": 1.5},
        {"kind": "cancel", "generation": 1, "job": None},
        {"kind": "unknown", "generation": 1},
        {**msgspec.to_builtins(RUN), "kind": "run", "outputs": ["pickles"]},
        {**msgspec.to_builtins(RUN), "kind": "run", "priority": "urgent"},
        {**msgspec.to_builtins(RUN), "kind": "run", "n": "2"},
    ],
)
def test_incomplete_headers_are_refused(fields: dict[str, object]) -> None:
    """A header without a field, or with one of the wrong type, is a `ProtocolError`."""
    with pytest.raises(protocol.ProtocolError):
        protocol.decode(msgspec.msgpack.encode(fields))


def frame(width: int, *counts: int) -> protocol.Frame:
    return protocol.Frame(Output.DENSE, width, counts)


def views(*arrays: np.ndarray | bytes) -> list[memoryview]:
    """Return frames as they come from a socket."""
    return [memoryview(bytes(part)) for part in protocol.encode(protocol.Ping(0), *arrays)[1:]]


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=9), min_size=1, max_size=9))
def test_token_ids_come_back(inputs: list[list[int]]) -> None:
    """Lengths and flat token ids are the inputs again."""
    lengths = np.array([len(ids) for ids in inputs], np.int32)
    flat = np.array([token for ids in inputs for token in ids], np.int32)
    header = msgspec.structs.replace(RUN, n=len(inputs), total=len(flat))
    got_lengths, got = protocol.run_frame(header, *views(np.concatenate([lengths, flat])))
    assert [part.tolist() for part in np.split(got, np.cumsum(got_lengths)[:-1])] == inputs


WRONG_RUNS = {
    "too few ids": [2, 3, 1, 1, 1, 1],
    "too many ids": [2, 3, 1, 1, 1, 1, 1, 1],
    "too few lengths": [5],
    "lengths that sum to less": [2, 2, 1, 1, 1, 1, 1],
    "negative lengths": [6, -1, 1, 1, 1, 1, 1],
    "half a number": b"\0" * 27,
    "empty": b"",
}


@pytest.mark.parametrize("frame", WRONG_RUNS.values(), ids=WRONG_RUNS)
def test_runs_that_do_not_add_up_are_refused(frame: list[int] | bytes) -> None:
    """A frame that is not as long as its header says never becomes token ids."""
    array = frame if isinstance(frame, bytes) else np.array(frame, np.int32)
    with pytest.raises(protocol.ProtocolError):
        protocol.run_frame(RUN, *views(array))


def test_messages_that_come_together_are_told_apart() -> None:
    """Each message comes out with the frames that its header names, in the order sent."""
    done = protocol.Done(1, 4, (frame(3, 1, 1), frame(2, 2, 0)), 1, 0.0)
    sent = [
        (done, [FLOATS, FLOATS[:4]]),
        (protocol.Ping(1), []),
        (MESSAGES[-1], []),
        (RUN, [b"12"]),
    ]
    parts = [
        memoryview(part) for message, frames in sent for part in protocol.encode(message, *frames)
    ]
    got = list(protocol.split(parts))
    assert [message for message, _ in got] == [message for message, _ in sent]
    assert [[len(frame) for frame in frames] for _, frames in got] == [[24, 16], [], [], [2]]
    assert not list(protocol.split([]))


@pytest.mark.parametrize(
    "message", [m for m in MESSAGES if isinstance(m, protocol.Run | protocol.Done | protocol.Hello)]
)
def test_a_message_without_its_frames_is_refused(message: protocol.Message) -> None:
    """A message that is cut off is a `ProtocolError`; a frame too many is no header."""
    parts = [memoryview(part) for part in protocol.encode(message)]
    with pytest.raises(protocol.ProtocolError):
        list(protocol.split(parts))
    with pytest.raises(protocol.ProtocolError):
        list(protocol.split([*parts, *views(b"1", b"2", b"3")]))


ROWS = st.lists(st.integers(0, 4), min_size=1, max_size=5)


@given(ROWS, ROWS, st.integers(1, 5), st.booleans())
def test_rows_come_back(some: list[int], more: list[int], width: int, transposed: bool) -> None:
    """The rows of each input come back under their outputs, whatever their number and layout."""
    inputs = min(len(some), len(more))
    random = np.random.default_rng(0)

    def rows(count: int) -> np.ndarray:
        shape = (width, count) if transposed else (count, width)
        array = random.standard_normal(shape).astype(np.float32)
        return array.T if transposed else array

    results = [
        {Output.COLBERT: rows(some[i]), Output.SPARSE: rows(more[i]), Output.DENSE: rows(1)}
        for i in range(inputs)
    ]
    frames, arrays = protocol.pack(results)
    got = protocol.unpack(protocol.Done(1, 1, frames, 3, 0.5), views(*arrays))
    assert (got.steps, got.queued_s) == (3, 0.5)
    assert [list(each) for each in got.results] == [list(each) for each in results]
    for back, sent in zip(got.results, results, strict=True):
        for output, array in sent.items():
            np.testing.assert_array_equal(back[output], array)
            assert back[output].dtype == np.float32


@pytest.mark.parametrize(
    ("headers", "frames"),
    [
        ((frame(4, 2),), [FLOATS]),
        ((frame(5, 1),), [FLOATS]),
        ((frame(6, 1, 1),), [FLOATS]),
        ((frame(-6, -1),), [FLOATS]),
        ((frame(6, 2, -1),), [FLOATS]),
        ((frame(0, 1),), [FLOATS[:0]]),
        ((frame(2**33, 2**33),), [FLOATS]),
        ((frame(6, 1),), [b"\0" * 23]),
        ((frame(6, 1),), [np.ones(6, np.float64)]),
        ((frame(6, 0),), [FLOATS]),
        ((frame(6, 1), frame(3, 1, 1)), [FLOATS, FLOATS]),
        ((frame(3, 1, 1), frame(6, 1)), [FLOATS, FLOATS]),
    ],
)
def test_results_that_do_not_add_up_are_refused(
    headers: tuple[protocol.Frame, ...], frames: list[np.ndarray | bytes]
) -> None:
    """Frames that are not the rows of their headers never become vectors."""
    with pytest.raises(protocol.ProtocolError):
        protocol.unpack(protocol.Done(1, 1, headers, 1, 0.0), views(*frames))


def test_arrays_are_sent_without_a_copy() -> None:
    """A contiguous array's frame is the array's own memory."""
    vectors = np.zeros((2, 3), np.float32)
    (_, frame) = protocol.encode(protocol.Ping(0), vectors)
    vectors[1, 2] = 1
    assert bytes(frame) == vectors.tobytes()

"""Other servers as they are: retries, refusals, strange answers, and the fields that each knows."""

from __future__ import annotations

import io
import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from embedding_service.client import Client
from embedding_service.errors import BadConfiguration, NoVectors
from embedding_service.progress import Progress
from embedding_service.types import Output
from embedding_service.verify import servers
from embedding_service.verify.sides import Kind, Refused, TooLong, collect
from embedding_service.verify.truth import of_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningGateway

    Answer = Callable[[dict[str, Any]], httpx.Response]

URL = "http://server"
EMBEDDINGS = f"{URL}/v1/embeddings"


class Stub:
    """A server that keeps the bodies of requests; `answer` makes the responses."""

    def __init__(self, answer: Answer, models: list[dict[str, Any]] | None = None) -> None:
        self.bodies: list[dict[str, Any]] = []
        self._answer = answer
        self._models = models

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            listed = self._models is not None and request.url.path == "/v1/models"
            return httpx.Response(200, json={"data": self._models}) if listed else not_found()
        self.bodies.append(json.loads(request.content))
        return self._answer(self.bodies[-1])

    async def connect(self, model: str | None = "m", url: str = URL) -> servers.Server:
        http = Client(
            [url],
            None,
            patience_s=servers.PATIENCE_S,
            say=lambda _: None,
            transport=httpx.MockTransport(self),
        )
        return await servers.connect(http, model)


def not_found() -> httpx.Response:
    return httpx.Response(404, json={"detail": "Not Found"})


def vectors(body: dict[str, Any]) -> httpx.Response:
    """Answer each text with its length; the last one first."""
    data = [{"index": i, "embedding": [len(text), 1.0]} for i, text in enumerate(body["input"])]
    return httpx.Response(200, json={"data": data[::-1]})


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the seconds that were waited, without waiting."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr("embedding_service.client.sleep", sleep)
    monkeypatch.setattr("embedding_service.client.monotonic", lambda: sum(found))
    return found


@pytest.mark.parametrize("url", [URL, f"{URL}/", f"{URL}/v1", f"{URL}/v1/"])
async def test_rows_come_in_the_order_of_the_texts(url: str) -> None:
    """The index decides, wherever the URL ends."""
    server = await Stub(vectors).connect(url=url)
    rows = await server.ask(["a", "bcd"], Kind.PLAIN)
    assert [row[Output.DENSE].tolist() for row in rows] == [[[1, 1]], [[3, 1]]]


async def test_errors_that_pass_are_tried_again(waits: list[float]) -> None:
    """429 and 503 are asked again, after the time that the server names."""
    answers = [httpx.Response(429, headers={"retry-after": "3"}), httpx.Response(503)]
    stub = Stub(lambda body: answers.pop(0) if answers else vectors(body))
    server = await stub.connect()
    assert len(await server.ask(["a"], Kind.PLAIN)) == 1
    assert waits[0] == 3
    assert 0.5 <= waits[1] <= 1


async def test_a_server_that_is_gone_is_tried_and_then_named(waits: list[float]) -> None:
    """A connection that fails for two minutes ends with a line that has the URL."""

    def gone(_: dict[str, Any]) -> httpx.Response:
        raise httpx.ConnectError("Connection refused")

    server = await Stub(gone).connect()
    with pytest.raises(NoVectors, match=f"^{URL} cannot be reached: Connection refused$"):
        await server.ask(["a"], Kind.PLAIN)
    assert 90 <= sum(waits) <= 120
    assert waits[0] < 1 < waits[4] < max(waits) <= 30


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_errors_about_the_request_itself_end_it(status: int) -> None:
    """A wrong key or path is not asked again text by text."""
    answer = httpx.Response(status, json={"error": {"message": "no,\n not you"}})
    stub = Stub(lambda _: answer)
    server = await stub.connect()
    with pytest.raises(NoVectors, match=f"^{EMBEDDINGS}: HTTP {status}: no, not you$"):
        await server.ask(["a", "b"], Kind.PLAIN)
    assert len(stub.bodies) == 1


async def test_a_refused_text_leaves_the_others() -> None:
    """A batch with a text that the server refuses is asked for text by text."""

    def refuse(body: dict[str, Any]) -> httpx.Response:
        if "bad" in body["input"]:
            return httpx.Response(400, json={"error": {"message": "bad text"}})
        return vectors(body)

    stub = Stub(refuse)
    server = await stub.connect()
    answers = await collect(lambda b: server.ask(b, Kind.PLAIN), ["a", "bad", "c"], lambda *_: None)
    assert answers[1] == "HTTP 400: bad text"
    assert [isinstance(answer, str) for answer in answers] == [False, True, False]
    assert len(stub.bodies) == 4


async def test_a_defect_is_not_asked_for_again(waits: list[float]) -> None:
    """`x-should-retry: false` is believed."""
    headers = {"x-should-retry": "false"}
    stub = Stub(lambda _: httpx.Response(500, json={"error": {"message": "NaN"}}, headers=headers))
    server = await stub.connect()
    assert await collect(lambda b: server.ask(b, Kind.PLAIN), ["a"], lambda *_: None) == [
        "HTTP 500: NaN"
    ]
    assert waits == []


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ({"data": [{"index": 0, "embedding": [1]}]}, "gave 1 vectors for 2 texts"),
        ({"vectors": []}, "answered something else than OpenAI's embeddings"),
        ({"data": [{"index": 0, "embedding": ["x"]}]}, "answered something else"),
        ([], "answered something else"),
        ({"data": [{"index": 0, "embedding": [[1.0]]}] * 2}, "answered something else"),
        ({"data": [{"index": 0, "embedding": []}] * 2}, "answered something else"),
        ({"data": [{"index": 0, "sparse_embedding": [1]}] * 2}, "answered something else"),
        *[
            ({"data": [{"index": index, "embedding": [1]} for index in indices]}, "gave other ind")
            for indices in ([0, 0], ["0", "1"], [1, 2], [0.0, 1.0], [False, True])
        ],
    ],
)
async def test_strange_answers_are_named(answer: Any, line: str) -> None:
    """An answer that is no list of vectors ends in one line."""
    server = await Stub(lambda _: httpx.Response(200, json=answer)).connect()
    with pytest.raises(NoVectors, match=line):
        await server.ask(["a", "b"], Kind.PLAIN)


async def test_null_becomes_nan() -> None:
    """JSON has no NaN: what servers write in its place is not taken for a number."""
    data = [{"index": 0, "embedding": [None, 1.0]}]
    server = await Stub(lambda _: httpx.Response(200, json={"data": data})).connect()
    rows = await server.ask(["a"], Kind.PLAIN)
    assert np.isnan(rows[0][Output.DENSE][0, 0])


def failing(status: int, **headers: str) -> Stub:
    error = {"error": {"message": "slow down"}}
    return Stub(lambda _: httpx.Response(status, json=error, headers=headers))


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
async def test_a_busy_server_is_not_asked_text_by_text(waits: list[float], status: int) -> None:
    """After two minutes with one batch it is over: single texts would take hours."""
    stub = failing(status, **{"retry-after": "25"})
    server = await stub.connect()
    with pytest.raises(NoVectors, match=f"^{EMBEDDINGS}: HTTP {status}: slow down$"):
        await collect(lambda b: server.ask(b, Kind.PLAIN), ["a", "b"], lambda *_: None)
    assert [body["input"] for body in stub.bodies] == [["a", "b"]] * len(stub.bodies)
    assert 90 <= sum(waits) <= 120


async def test_patience_ends(waits: list[float]) -> None:
    """Two minutes without a good answer end it, also where each text is a defect of its own."""
    server = await failing(500).connect()
    with pytest.raises(NoVectors, match="HTTP 500: slow down"):
        await collect(lambda b: server.ask(b, Kind.PLAIN), ["a"] * 1000, lambda *_: None)
    assert 119 <= sum(waits) <= 120


async def test_silence_is_not_tried_again(waits: list[float]) -> None:
    """A request without an answer in time is the last one."""
    tried = []

    def silent(body: dict[str, Any]) -> httpx.Response:
        tried.append(body)
        waits.append(300.0)
        raise httpx.ReadTimeout("")

    server = await Stub(silent).connect()
    with pytest.raises(NoVectors, match="cannot be reached: ReadTimeout"):
        await server.ask(["a"], Kind.PLAIN)
    assert (len(tried), waits) == (1, [300.0])


@pytest.mark.parametrize(
    ("status", "said", "is_long"),
    [
        (400, "This model's maximum context length is 512 tokens. However, you requested", True),
        (413, "Input validation error: `inputs` must have less than 512 tokens. Given: 602", True),
        (400, "the input length exceeds the context length", True),
        (413, "Payload", True),
        (400, "Rate limit exceeded: tokens per minute", False),
        (422, "internal error: unexpected token at position 3", False),
        (500, "context length", False),
    ],
)
async def test_texts_that_are_too_long_are_known_by_the_answer(
    waits: list[float], status: int, said: str, *, is_long: bool
) -> None:
    """Words that also stand in other errors do not excuse a text."""
    server = await Stub(lambda _: httpx.Response(status, json={"message": said})).connect()
    with pytest.raises(Refused) as refused:
        await server.ask(["a"], Kind.PLAIN)
    assert isinstance(refused.value.reason, TooLong) is is_long


@pytest.mark.parametrize(
    "entries",
    [
        [{"id": "m", "max_model_len": "512"}],
        [{"id": "m", "max_model_len": -5, "root": []}],
        [{"id": "m", "outputs": ["weird", []]}],
        [{"id": "m", "outputs": 5}],
        ["m"],
        {"id": "m"},
        [{"id": ["m"]}, None],
    ],
)
async def test_strange_facts_are_as_good_as_none(entries: Any) -> None:
    """A server may say odd things of itself, and give sound vectors."""
    server = await Stub(vectors, entries).connect()
    assert (server.about.max_tokens, server.outputs) == (None, {Output.DENSE})
    assert len(await server.ask(["a"], Kind.PLAIN)) == 1


OWN = {"id": "m", "owned_by": "embedding-service", "outputs": ["dense", "sparse"]}


@pytest.mark.parametrize(
    ("entry", "fields", "text"),
    [
        ({"id": "m", "owned_by": "openai"}, {}, "query: a"),
        ({"id": "m", "owned_by": "vllm"}, {"truncate_prompt_tokens": -1}, "query: a"),
        (
            OWN,
            {
                "truncate": "right",
                "input_type": "query",
                "return_dense": True,
                "return_sparse": True,
                "return_colbert": False,
            },
            "a",
        ),
    ],
)
async def test_each_server_gets_the_fields_that_it_knows(
    entry: dict[str, Any], fields: dict[str, Any], text: str
) -> None:
    """OpenAI refuses unknown fields; before texts for others than this service goes the prompt."""
    stub = Stub(vectors, [entry])
    server = await stub.connect()
    server.prompts = {Kind.QUERY: "query: "}
    await server.ask(["a"], Kind.QUERY)
    expected = {"model": "m", "input": [text], "encoding_format": "float", **fields}
    assert stub.bodies == [expected]


@pytest.mark.parametrize(
    ("types", "kinds"),
    [
        ([], ["plain"]),
        (["query"], ["plain", "query"]),
        (["query", "document", "other"], ["plain", "query", "document"]),
        (None, ["plain", "query", "document"]),
    ],
)
async def test_requests_that_would_be_the_same_are_not_sent_twice(types: Any, kinds: Any) -> None:
    """Queries and documents are asked for where one of two own servers has prompts for them."""
    none = await Stub(vectors, [{**OWN, "input_types": []}]).connect()
    stub = Stub(vectors, [{**OWN, "input_types": types}])
    progress = Progress(io.StringIO())
    for server, about in ((await stub.connect(), none.about), (none, (await stub.connect()).about)):
        true = await of_server(server, about, lambda _: ["a"], progress)
        assert list(true.answers) == kinds


async def test_one_of_several_models_has_to_be_named() -> None:
    """Without a name the only model is taken, and several are listed."""
    two = [{"id": "a", "root": "a"}, {"id": "b", "root": "b"}]
    with pytest.raises(BadConfiguration, match="several models, give --model: a, b"):
        await Stub(vectors, two).connect(model=None)
    assert (await Stub(vectors, two[:1]).connect(model=None)).model == "a"
    with pytest.raises(BadConfiguration, match="give --model"):
        await Stub(vectors).connect(model=None)


async def test_this_service_says_what_it_is(fake: RunningGateway) -> None:
    """Name, number format, context and kinds of vectors are read from a running gateway."""
    http = Client([fake.url], None, patience_s=1, say=lambda _: None)
    async with aclosing(http):
        server = await servers.connect(http, None)
        rows = await server.ask(["w1", "w2"], Kind.QUERY)
    about = server.about
    assert (server.model, about.own, about.dtype) == ("fake", True, "float32")
    assert about.max_tokens
    assert [row[Output.DENSE].shape for row in rows] == [(1, 32), (1, 32)]

"""The one HTTP client: which answers are asked for again, when, and for how long."""

from __future__ import annotations

from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from embedding_service import client
from embedding_service.errors import BadConfiguration, NoVectors

if TYPE_CHECKING:
    from collections.abc import Sequence

    Given = httpx.Response | Exception

NO = {"x-should-retry": "false"}


class Clock:
    """Time that passes by waiting alone."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.said: list[str] = []

    def now(self) -> float:
        """Return the seconds that were waited."""
        return sum(self.waits)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        self.waits.append(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the time as the client has it."""
    found = Clock()
    monkeypatch.setattr(client, "sleep", found.sleep)
    monkeypatch.setattr(client, "monotonic", found.now)
    monkeypatch.setattr(client, "time", lambda: 1e9 + found.now())
    return found


def asking(clock: Clock, *given: Given, urls: Sequence[str] = ("http://a",), **more: Any) -> Any:
    """Return a client of servers that give these answers, and the last one for ever."""
    left = list(given)

    def answer(request: httpx.Request) -> httpx.Response:
        found = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(found, Exception):
            raise found
        return httpx.Response(found.status_code, headers=found.headers, content=request.url.host)

    transport = httpx.MockTransport(answer)
    more = {"patience_s": 100, "say": clock.said.append, "transport": transport, **more}
    return client.Client(urls, None, **more)


def status(number: int, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(number, headers=named)


@pytest.mark.parametrize("number", [408, 425, 429, 500, 502, 503, 504, 529])
async def test_trouble_that_passes_is_asked_again(clock: Clock, number: int) -> None:
    """A little later, and never at the same time as all others."""
    found = await asking(clock, status(number), status(200)).ask("/x", b"{}")
    assert found.status_code == 200
    assert 0.25 <= clock.waits[0] <= 0.5


@pytest.mark.parametrize("number", [302, 400, 401, 404, 413, 422, 501])
async def test_an_answer_that_stays_is_returned(clock: Clock, number: int) -> None:
    """No redirect is followed, and nothing is asked again that would be the same."""
    found = await asking(clock, status(number, location="http://b/")).ask("/x", b"{}")
    assert (found.status_code, clock.waits) == (number, [])


async def test_a_server_may_say_that_it_is_no_use(clock: Clock) -> None:
    """`x-should-retry: false` is believed."""
    found = await asking(clock, status(503, x_should_retry="false")).ask("/x")
    assert (found.status_code, clock.waits) == (503, [])
    assert client.is_refusal(found)


async def test_a_server_names_the_pause(clock: Clock) -> None:
    """In seconds or as a date; one that is longer than our patience ends it at once."""
    date = formatdate(1e9 + 27, usegmt=True)
    given = [status(429, retry_after=text) for text in ("7", date, "soon", "-1")]
    await asking(clock, *given, status(200)).ask("/x")
    assert clock.waits[:2] == [7, 20]
    assert clock.waits[2] <= 2
    assert clock.waits[3] <= 4
    with pytest.raises(NoVectors, match="http://a/x: HTTP 503"):
        await asking(clock, status(503, retry_after="101")).ask("/x")
    assert len(clock.waits) == 4


async def test_a_wrong_address_is_not_asked_twice(clock: Clock) -> None:
    """A connection that breaks is, once something has come from there."""
    refused = httpx.ConnectError("refused")
    with pytest.raises(NoVectors, match="http://a cannot be reached: refused"):
        await asking(clock, refused).ask("/x")
    assert clock.waits == []
    http = asking(clock, status(200), refused, status(200))
    assert [(await http.ask("/x")).status_code for _ in range(2)] == [200, 200]
    assert len(clock.waits) == 1


async def test_a_second_500_may_be_about_the_inputs(clock: Clock) -> None:
    """It is believed, unless the caller doubts it."""
    found = await asking(clock, status(500)).ask("/x", b"{}")
    assert (client.is_refusal(found), len(clock.waits)) == (True, 1)
    with pytest.raises(NoVectors, match="HTTP 500"):
        await asking(clock, status(500), doubts_500=True).ask("/x", b"{}")


async def test_servers_are_asked_in_turn(clock: Clock) -> None:
    """That nobody answers is told when each has been asked, and then every half minute."""
    http = asking(clock, *[status(503)] * 2, status(200), urls=("http://a", "http://b/v1/"))
    assert (await http.ask("/x")).text == "a"
    (line,) = clock.said
    assert line.startswith("no server answers since")
    with pytest.raises(NoVectors):
        await asking(clock, status(503), patience_s=300).ask("/x")
    assert 5 <= len(clock.said) <= 13  # the pauses are up to half a minute


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (b'{"error": {"message": "a\\n b", "code": "c"}}', "a b", "c"),
        (b'{"error": "a", "error_type": "b"}', "a", None),
        (b'{"object": "error", "message": "a"}', "a", None),
        (b"<html> a </html>", "<html> a </html>", None),
        (b'["a"]', '["a"]', None),
        (b"", "Bad Request", None),
    ],
)
def test_errors_are_read_as_each_server_words_them(
    body: bytes, message: str, code: str | None
) -> None:
    """OpenAI, text-embeddings-inference, vLLM, a proxy; only objects are about the inputs."""
    response = httpx.Response(400, content=body)
    assert (client.message(response), client.code(response)) == (message, code)
    assert client.is_refusal(response) is body.startswith(b"{")


def test_what_is_no_url_or_no_key_is_named() -> None:
    """Before anything is sent."""
    with pytest.raises(BadConfiguration, match="'a:80' is not the URL of a server"):
        client.Client(["a:80"], None, patience_s=1, say=str)
    with pytest.raises(BadConfiguration, match="ASCII"):
        client.Client(["http://a"], "ü", patience_s=1, say=str)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("SSL_CERT_FILE", "/none"), ("ALL_PROXY", "ftp://a"), ("HTTPS_PROXY", "http://a:x")],
)
def test_an_environment_of_no_use_is_a_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """Proxies and certificates of the environment are used, so they have to be right."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(BadConfiguration, match=r"HTTPS_PROXY, .* and SSL_CERT_FILE$"):
        client.Client(["http://a"], None, patience_s=1, say=str)

"""Redis: shared, believed in nothing that does not fit, done without when slow or gone."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import structlog
from redis.asyncio import Connection
from redis.exceptions import ConnectionError as RedisGone

from embedding_service.errors import BadConfiguration
from embedding_service.service import redis as redis_module
from embedding_service.service.rates import Rates, SharedCounters
from embedding_service.service.redis import Breaker, connect
from embedding_service.service.shared_cache import pack, unpack
from embedding_service.settings.gateway import Settings
from embedding_service.telemetry import Metrics
from tests.calls import embed, error_of
from tests.child import wait_until
from tests.conftest import FAKE
from tests.deploy.tools import program
from tests.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tests.conftest import RunningGateway

    Start = Callable[..., RunningGateway]

PASSWORD = "pass-Word-4711"
SHARED: dict[str, Any] = {**FAKE, "cache_max_bytes": 1 << 20, "metrics": "open"}
TRIES, LIMIT = 5, 1_000_000
_unused = itertools.count(100)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Redis take its time, on a machine that may be busy with other tests."""
    monkeypatch.setattr(redis_module, "ANSWER_WITHIN_S", 10.0)


@pytest.fixture
def start(start_gateway: Start, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Return a function that starts gateways which end with the test."""
    started: list[RunningGateway] = []

    def begin(**settings: Any) -> RunningGateway:
        if "redis_url" not in settings:
            settings["redis_url"] = request.getfixturevalue("redis").url
        started.append(start_gateway(**{**SHARED, **settings}))
        return started[-1]

    yield begin
    for gateway in started:
        assert gateway.stop() == 0


@pytest.fixture(scope="module")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"), password=PASSWORD)
    yield server
    server.stop()


@pytest.fixture
def redis(_server: RedisServer) -> RedisServer:
    """Return an empty Redis that wants a password."""
    _server.client.flushall()
    return _server


@pytest.fixture(scope="module")
def pair(
    start_gateway: Start, _server: RedisServer
) -> Iterator[tuple[RunningGateway, RunningGateway]]:
    """Return two instances that share a Redis and keep their memory: each test has its texts."""
    one, other = (start_gateway(**SHARED, redis_url=_server.url) for _ in range(2))
    yield one, other
    assert one.stop() == other.stop() == 0


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """Return a Redis that a test may freeze and kill."""
    server = RedisServer(tmp_path, password=PASSWORD)
    yield server
    server.stop()


def new_word() -> str:
    """Return a text that nobody has asked for."""
    return f"w{next(_unused)}"


def x_cache(gateway: RunningGateway, *texts: str) -> str | None:
    """Embed texts; return what the answer says about the cache."""
    with gateway.client() as http:
        answer = embed(http, input=list(texts))
        assert answer.status_code == 200, answer.text
        return answer.headers.get("x-cache")


def vector(gateway: RunningGateway, text: str) -> list[float]:
    with gateway.client() as http:
        return list(embed(http, input=text).json()["data"][0]["embedding"])


def metric(gateway: RunningGateway, name: str, use: str) -> float:
    value = gateway.gateway.service.metrics.registry.get_sample_value(
        f"embedding_{name}", {"use": use}
    )
    assert value is not None
    return value


def cached_names(redis: RedisServer, prefix: str = "embedding:") -> list[bytes]:
    return sorted(redis.client.keys(f"{prefix}cache:*"))


def put(gateway: RunningGateway, redis: RedisServer, *texts: str) -> list[bytes]:
    """Have texts computed and handed over; return the names of their values."""
    before = len(cached_names(redis))
    x_cache(gateway, *texts)
    wait_until(lambda: len(cached_names(redis)) == before + len(texts))
    return cached_names(redis)


# --- the breaker ----------------------------------------------------------------------------------


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Breaking:
    """A breaker, the time it goes by, and what it said."""

    def __init__(self) -> None:
        self.log: list[dict[str, Any]] = []
        self.clock, self.metrics, self.asked = Clock(), Metrics(), 0

        def keep(_: object, level: str, event: dict[str, Any]) -> dict[str, Any]:
            self.log.append({"level": level, **event})
            raise structlog.DropEvent

        self.breaker = Breaker(
            "x", self.metrics, structlog.wrap_logger(None, processors=[keep]), clock=self.clock
        )

    async def ask(self, error: Exception | None = None) -> str | None:
        """Ask once; Redis answers, or fails."""

        async def question() -> str:
            self.asked += 1
            if error is not None:
                raise error
            return "answer"

        return await self.breaker.ask(question)

    def value(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"embedding_{name}", {"use": "x"})


async def test_the_breaker_opens_after_three_failures() -> None:
    """Failures are counted; the third in a row is logged once, and then nobody asks."""
    it = Breaking()
    assert await it.ask() == "answer"
    for _ in range(2):
        assert await it.ask(RedisGone()) is None
    assert await it.ask() == "answer"
    assert (it.breaker.open, it.log, it.value("redis_open")) == (False, [], 0)
    for error in (RedisGone(PASSWORD), OSError(PASSWORD), RedisGone(PASSWORD)):
        assert await it.ask(error) is None
    assert it.breaker.open
    assert it.log == [
        {"level": "warning", "event": "redis_left_alone", "use": "x", "reason": "ConnectionError"}
    ]
    assert (it.value("redis_open"), it.value("redis_errors_total"), it.asked) == (1, 5, 7)
    it.clock.now = 4.9
    assert await it.ask() is None
    assert it.asked == 7


async def test_the_breaker_closes_when_redis_is_back() -> None:
    """After five seconds one asks while others wait; failure means five more, in silence."""
    it = Breaking()
    for _ in range(3):
        await it.ask(RedisGone())
    for again in range(3):
        it.clock.now += 5.1
        assert not it.breaker.open
        assert await it.ask(RedisGone()) is None
        assert it.breaker.open
        assert it.asked == 4 + again
    it.clock.now += 5.1
    release = asyncio.Event()

    async def slow() -> str:
        await release.wait()
        return "late"

    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(redis_module, "ANSWER_WITHIN_S", 30.0)
        trial = asyncio.create_task(it.breaker.ask(slow))
        await asyncio.sleep(0)
        assert await it.ask() is None, "one is enough to find out"
        release.set()
        assert await trial == "late"
    assert await it.ask() == "answer"
    assert [line["event"] for line in it.log] == ["redis_left_alone", "redis_is_back"]
    assert it.value("redis_open") == 0
    for _ in range(2):
        await it.ask(RedisGone())
    assert not it.breaker.open, "it counts from the beginning"


async def test_slow_is_as_good_as_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that does not come in time is a failure, and is not waited for."""
    it = Breaking()
    for _ in range(3):
        assert await it.breaker.ask(lambda: asyncio.sleep(3600)) is None
    assert it.breaker.open
    assert it.log[0]["reason"] == "too slow"


async def test_defects_are_not_hidden() -> None:
    """An error that is not Redis's is raised, and a cancelled request stays cancelled."""
    it = Breaking()
    with pytest.raises(ZeroDivisionError):
        await it.ask(ZeroDivisionError())
    task = asyncio.create_task(it.breaker.ask(lambda: asyncio.sleep(3600)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert it.value("redis_errors_total") == 0


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{PASSWORD}@host",
        f"redis://:{PASSWORD}/x@host",
        f"redis://:{PASSWORD}@host?password2=x",
        PASSWORD,
    ],
)
def test_a_wrong_address_is_refused(url: str) -> None:
    """A wrong address of Redis, or an unknown option, is one line without the password."""
    with pytest.raises(BadConfiguration, match=r"^redis_url: [^\n]*$") as caught:
        connect(url)
    assert PASSWORD not in str(caught.value)


# --- the format -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1, 1024), (3, 4), (0, 2)])
def test_rows_come_back(shape: tuple[int, int]) -> None:
    """Packed rows are unpacked bit by bit, under their own name."""
    value = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    back = unpack(pack(value, b"name"), b"name")
    assert back is not None
    np.testing.assert_array_equal(back, value)
    assert back.shape == shape


def test_what_does_not_fit_is_not_believed() -> None:
    """No changed bit, missing or additional byte, other name's value or NaN becomes a vector."""
    raw = pack(np.arange(4, dtype=np.float32).reshape(2, 2), b"name")
    for position in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[position // 8] ^= 1 << position % 8
        assert unpack(bytes(changed), b"name") is None
    for wrong in (
        *(raw[:length] for length in range(len(raw))),
        raw + b"\0",
        raw * 2,
        b"x" * len(raw),
        "text" * 9,
    ):
        assert unpack(wrong, b"name") is None
    assert unpack(raw, b"other") is None
    for number in (np.nan, np.inf):
        assert unpack(pack(np.array([[1, number]], np.float32), b"name"), b"name") is None


# --- shared ---------------------------------------------------------------------------------------


@pytest.mark.server
def test_instances_share_results(
    pair: tuple[RunningGateway, RunningGateway], redis: RedisServer, patient: None
) -> None:
    """One instance's results are the other's; names have the prefix and an end."""
    one, other = pair
    names = put(one, redis, "w1", "w2 w3")
    assert x_cache(other, "w2 w3", "w9", "w1") == "2/3"
    assert vector(other, "w1") == vector(one, "w1")
    assert x_cache(other, "w1") == "1/1"
    assert all(name.startswith(b"embedding:cache:") for name in names)
    for name in redis.client.keys("*"):
        assert name.startswith(b"embedding:")
        assert 0 < redis.client.pttl(name) <= 3600_000
    assert PASSWORD not in str(one.log) + str(other.log)
    assert (
        metric(one, "redis_errors_total", "cache")
        == metric(other, "redis_errors_total", "cache")
        == 0
    )


@pytest.mark.server
def test_the_prefix_keeps_services_apart(start: Start, redis: RedisServer, patient: None) -> None:
    """Another prefix knows nothing; forgetting everything stays below the own prefix."""
    one, other = start(redis_prefix="a[b]*:", cache_ttl_s=60), start(redis_prefix="ab:")
    x_cache(one, "w1")
    wait_until(lambda: len(redis.client.keys("*")) == 1)
    (name,) = redis.client.keys("*")
    assert name.startswith(b"a[b]*:cache:")
    assert 0 < redis.client.pttl(name) <= 60_000
    assert x_cache(other, "w1") is None
    wait_until(lambda: len(redis.client.keys("*")) == 2)
    with one.client() as http:
        assert http.post("/cache/clear").json()["cleared"] == 2  # here and there
    assert [key[:9] for key in redis.client.keys("*")] == [b"ab:cache:"]
    assert x_cache(one, "w1") is None


@pytest.mark.parametrize(
    "other", [{"max_batch_size": 7}, {"engine_args": {"step_s": 0.001}}, {"max_model_len": 100}]
)
@pytest.mark.server
def test_other_models_do_not_share(
    pair: tuple[RunningGateway, RunningGateway],
    start: Start,
    redis: RedisServer,
    patient: None,
    other: dict[str, Any],
) -> None:
    """Instances whose engines might give other numbers do not see each other's results."""
    text = new_word()
    put(pair[0], redis, text)
    assert x_cache(start(**other), text) is None


@pytest.mark.server
def test_equal_weights_are_shared(
    start: Start, redis: RedisServer, patient: None, tmp_path: Path
) -> None:
    """Copies of a model share results, whatever folder and name; other weights do not."""
    for name, weights in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.bin").write_text(weights)
    put(start(model_path=str(tmp_path / "a")), redis, "w1")
    assert x_cache(start(model_path=str(tmp_path / "b")), "w1") == "1/1"
    renamed = start(model_path=str(tmp_path / "b"), model_name="renamed", aliases={"fake": {}})
    assert x_cache(renamed, "w1") == "1/1"
    assert x_cache(start(model_path=str(tmp_path / "c")), "w1") is None


@pytest.mark.server
def test_sharing_can_be_switched_off(start: Start, redis: RedisServer, patient: None) -> None:
    """With `cache_shared: false`, Redis is for rates alone."""
    one = start(cache_shared=False, rate_limit_requests="10/day")
    assert x_cache(one, "w1") is None
    assert x_cache(one, "w1") == "1/1"
    assert cached_names(redis) == []
    assert redis.client.keys("embedding:rates*")


@pytest.mark.parametrize("damage", ["truncated", "changed", "swapped", "text", "empty", "list"])
@pytest.mark.server
def test_damaged_values_are_computed_again(
    pair: tuple[RunningGateway, RunningGateway], redis: RedisServer, patient: None, damage: str
) -> None:
    """A value that is not what was written for its name is computed anew, right."""
    one, other = pair
    texts = new_word(), new_word()
    expected = [vector(one, text) for text in texts]
    wait_until(lambda: len(cached_names(redis)) == 2)
    names = cached_names(redis)
    values = [redis.client.get(name) for name in names]
    for name, value, neighbour in zip(names, values, reversed(values), strict=True):
        changed = {
            "truncated": value[:-4],
            "changed": value[:20] + b"?" + value[21:],
            "swapped": neighbour,
        }
        redis.client.delete(name)
        if damage == "list":
            redis.client.rpush(name, "x")
        else:
            redis.client.set(name, {**changed, "text": "hello", "empty": b""}[damage])
    assert x_cache(other, *texts) is None
    assert [vector(other, text) for text in texts] == expected


@pytest.mark.parametrize("value", ["abc", "1e400", "nan", "1.5", "9" * 400, "9" * 5000])
@pytest.mark.server
def test_a_counter_that_nobody_wrote_is_not_believed(
    start: Start, redis: RedisServer, patient: None, value: str
) -> None:
    """Requests are counted here while Redis holds no number, or one beyond all; it was a 500."""
    gateway = start(rate_limit_requests="6/day", rate_limit_tokens="20/day")
    with gateway.client() as http:
        assert embed(http, input="w1").status_code == 200
        for name in redis.client.keys("embedding:rates*"):
            redis.client.set(name, value, px=86_400_000)
        for left in ("5", "4"):
            answer = embed(http, input=new_word())
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-ratelimit-remaining-requests"] == left
    assert metric(gateway, "redis_open", "rates") == 0


@pytest.mark.server
def test_instances_share_rates(start: Start, redis: RedisServer, patient: None) -> None:
    """Requests and tokens count together, whoever gets them; a failed one's come back."""
    rates = {"rate_limit_requests": "6/day", "rate_limit_tokens": "20/day", "api_keys": ["a-key"]}
    one, other = start(**rates), start(**rates)
    headers = {"x-api-key": "a-key"}
    with one.client(headers=headers) as first, other.client(headers=headers) as second:
        for number, (http, text, status, requests, tokens) in enumerate(
            (
                (first, "w1", 200, "5", "17"),
                (second, "w2", 200, "4", "14"),
                (first, "w3 fault-reject", 500, "3", None),
                (second, "w4", 200, "2", "11"),
                (first, "w5 " * 10, 429, "1", "11"),
                (second, "w6 " * 9, 200, "0", "0"),
                (first, "w1", 429, "0", None),
            )
        ):
            answer = embed(http, input=text)
            assert answer.status_code == status, (number, answer.text)
            assert answer.headers["x-ratelimit-remaining-requests"] == requests, number
            if tokens is not None:
                assert answer.headers["x-ratelimit-remaining-tokens"] == tokens, number
    names = redis.client.keys("embedding:rates*")
    assert names
    assert all(redis.client.pttl(name) > 0 for name in names)
    assert not [name for name in redis.client.keys("*") if b"a-key" in name]


@pytest.fixture
async def kept(redis: RedisServer, patient: None) -> AsyncIterator[Rates]:
    """Return rates that are counted in Redis."""
    client, metrics = connect(redis.url), Metrics()
    log = structlog.wrap_logger(None, processors=[])
    breaker = Breaker("rates", metrics, log)
    counters = SharedCounters(client, breaker, prefix="embedding:")
    yield Rates(Settings(engine="fake"), metrics, counters)
    await client.aclose()


@pytest.mark.server
async def test_rates_in_redis_say_when_it_fits(kept: Rates) -> None:
    """A refused cost fits at the moment that was told, and not before."""
    assert (await kept.take("tokens", "a", "10/second", 8)).allowed
    told_at = time.monotonic()
    window = await kept.take("tokens", "a", "10/second", 5)
    assert (window.allowed, window.shared) == (False, True)
    assert (
        0.25 <= window.retry_after_s <= 1.25
    )  # a quarter of the second after the window has turned
    await asyncio.sleep(window.retry_after_s - window.reset_s / 2)
    early = await kept.take("tokens", "a", "10/second", 5)
    if time.monotonic() < told_at + window.retry_after_s:  # a busy machine may have overslept
        assert not early.allowed
        await asyncio.sleep(window.reset_s / 2 + 0.02)
        assert (await kept.take("tokens", "a", "10/second", 5)).allowed


@pytest.mark.server
async def test_what_redis_counted_is_given_back_there_or_not_at_all(
    redis: RedisServer, patient: None
) -> None:
    """Tokens of a Redis that goes meanwhile become no credit of this instance's own."""
    it, client = Breaking(), connect(redis.url)
    kept = Rates(
        Settings(engine="fake"), it.metrics, SharedCounters(client, it.breaker, prefix="embedding:")
    )
    for stays in (True, False):
        taken = await kept.take("tokens", "a", "10/day", 6)
        assert taken.shared
        if not stays:
            for _ in range(3):
                await it.ask(RedisGone())
            assert it.breaker.open
        await kept.give_back(taken, 6)
    await client.aclose()
    assert not (await kept.take("tokens", "a", "10/day", 11)).allowed
    assert (await kept.take("tokens", "a", "10/day", 10)).remaining == 0


@pytest.mark.server
def test_isolated_tenants_do_not_share_through_redis(
    start: Start, redis: RedisServer, patient: None
) -> None:
    """With `cache_isolation: tenant`, a result in Redis is its tenant's alone, in every instance."""
    keys = [{"name": "a", "key": "key-a"}, {"name": "b", "key": "key-b"}]
    gateways = [start(api_keys=keys, cache_isolation="tenant") for _ in range(2)]
    with gateways[0].client(headers={"x-api-key": "key-a"}) as http:
        assert embed(http, input="w1").status_code == 200
    wait_until(lambda: len(cached_names(redis)) == 1)
    for key, hits in (("key-b", None), ("key-a", "1/1")):
        with gateways[1].client(headers={"x-api-key": key}) as http:
            assert embed(http, input="w1").headers.get("x-cache") == hits


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a key and its self-signed certificate for 127.0.0.1, in one file."""
    openssl = program("openssl", "openssl")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subject = [
        "-subj",
        "/CN=test",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-days",
        "2",
        "-nodes",
    ]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command = [
        openssl,
        "req",
        "-x509",
        *key,
        *subject,
        "-keyout",
        str(path),
        "-out",
        str(path) + ".crt",
    ]
    subprocess.run(command, check=True, capture_output=True)
    with path.open("a", encoding="ascii") as file:
        file.write(path.with_name("both.pem.crt").read_text(encoding="ascii"))
    return path


@pytest.mark.server
def test_redis_behind_tls(start: Start, tmp_path: Path, certificate: Path, patient: None) -> None:
    """`rediss://` with a password and `?ssl_ca_certs=` is shared like any other."""
    server = RedisServer(tmp_path, password=PASSWORD, certificate=certificate)
    try:
        url = f"{server.url}?ssl_ca_certs={certificate}.crt"
        one, other = start(redis_url=url), start(redis_url=url, rate_limit_requests="5/day")
        put(one, server, "w1")
        assert x_cache(other, "w1") == "1/1"
        assert server.client.keys("embedding:rates*")
        assert (
            metric(other, "redis_errors_total", "rates")
            == metric(one, "redis_errors_total", "cache")
            == 0
        )
    finally:
        server.stop()


@pytest.mark.server
def test_a_stranger_behind_tls_is_not_used(
    start: Start, tmp_path: Path, certificate: Path, patient: None
) -> None:
    """A server with a stranger's certificate gets no password; requests go on."""
    server = RedisServer(tmp_path, password=PASSWORD, certificate=certificate)
    try:
        one = start(redis_url=server.url)
        for number in range(4):
            assert x_cache(one, f"w{number}") is None
        assert metric(one, "redis_open", "cache") == 1
        assert server.client.keys("*") == []
        assert PASSWORD not in str(one.log)
    finally:
        server.stop()


@pytest.mark.server
def test_a_slow_handshake_is_finished_all_the_same(
    start: Start, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where connecting takes long, later requests find the connection that earlier ones began."""
    make = Connection._connect

    async def slow(self: Connection) -> None:
        await asyncio.sleep(0.2)
        await make(self)

    monkeypatch.setattr(Connection, "_connect", slow)
    monkeypatch.setattr(redis_module, "LEFT_ALONE_S", 0.2)
    one, numbers = start(), itertools.count()
    wait_until(lambda: x_cache(one, f"w{next(numbers)}") is None and cached_names(redis))


# --- slow and gone --------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [signal.SIGSTOP, signal.SIGKILL])
@pytest.mark.server
def test_requests_go_on_without_redis(
    start: Start, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, end: int
) -> None:
    """Redis frozen or killed in the middle costs nobody an answer; a metric and one line say so,
    and when it is back.

    Until then each instance counts rates and keeps results for itself.
    """
    monkeypatch.setattr(redis_module, "ANSWER_WITHIN_S", 10.0)
    monkeypatch.setattr(redis_module, "LEFT_ALONE_S", 1.0)
    one = start(redis_url=own_redis.url, rate_limit_requests=f"{LIMIT}/day")

    numbers = itertools.count()

    def ask() -> list[int]:
        with one.client() as http:
            answers = [embed(http, input=f"w{next(numbers)}") for _ in range(TRIES)]
        assert {answer.status_code for answer in answers} == {200}
        return [int(answer.headers["x-ratelimit-remaining-requests"]) for answer in answers]

    remaining = ask()
    assert remaining[-1] == LIMIT - TRIES
    own_redis.send(end)
    monkeypatch.setattr(redis_module, "ANSWER_WITHIN_S", 0.5)
    alone = ask()
    assert alone[0] == LIMIT - 1, "memory begins anew"
    assert alone == list(range(alone[0], alone[0] - len(alone), -1))
    ask()
    for use in ("rates", "cache"):
        assert metric(one, "redis_open", use) == 1
        assert metric(one, "redis_errors_total", use) >= 3
    with one.client() as http:
        text = http.get("/metrics").text
        assert 'embedding_redis_open{use="rates"} 1.0' in text
        assert re.search(r'embedding_redis_errors_total\{use="cache"\} [1-9]', text)
        assert http.get("/readyz").status_code == 200
    if end == signal.SIGSTOP:
        own_redis.send(signal.SIGCONT)
    else:
        own_redis.start()
    wait_until(
        lambda: (
            ask() and metric(one, "redis_open", "rates") == metric(one, "redis_open", "cache") == 0
        )
    )
    lines = [
        (event["event"], event["use"]) for event in one.log if event["event"].startswith("redis")
    ]
    assert (
        lines.count(("redis_left_alone", "rates"))
        == lines.count(("redis_left_alone", "cache"))
        == 1
    )
    assert lines.count(("redis_is_back", "rates")) == lines.count(("redis_is_back", "cache")) == 1
    assert PASSWORD not in str(one.log)


def test_a_redis_that_was_never_there(start: Start, tmp_path: Path) -> None:
    """A gateway works without the Redis it was told of; only clearing is not promised."""
    url = f"unix://:{PASSWORD}@{tmp_path}/nobody.sock"
    one = start(redis_url=url, rate_limit_requests="100/day", rate_limit_tokens="1000/day")
    assert x_cache(one, "w1") is None
    assert x_cache(one, "w1") == "1/1"
    with one.client() as http:
        error = error_of(http.post("/cache/clear"), 503)
        assert error["code"] == "unavailable"
        assert http.get("/cache/stats").json()["current_size"] == 0
    assert PASSWORD not in str(one.log)


@pytest.mark.server
def test_a_wrong_password_is_done_without(start: Start, redis: RedisServer, patient: None) -> None:
    """A Redis that does not let us in is left alone, and no password is told."""
    wrong = redis.url.replace(PASSWORD, PASSWORD[::-1])
    one = start(redis_url=wrong)
    for number in range(4):
        assert x_cache(one, f"w{number}") is None
    assert metric(one, "redis_open", "cache") == 1
    assert not {PASSWORD, PASSWORD[::-1]} & set(re.findall(r"[\w-]+", str(one.log)))

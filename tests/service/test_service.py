"""The service without HTTP, on a gateway's loop: limits, reservations, early refusals."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embedding_service.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ServiceError,
)
from embedding_service.service import checks, cl100k
from embedding_service.service import service as service_module
from embedding_service.service.call import Call
from embedding_service.service.service import INLINE_CHARACTERS, INTERACTIVE_TEXTS
from embedding_service.types import (
    Embeddings,
    EmbedDtype,
    EmbedJob,
    Encoding,
    Output,
    TokenIdPolicy,
)
from tests.calls import ids_of, raw_vector, unit_vectors
from tests.child import wait_until
from tests.conftest import FAKE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from concurrent.futures import Future

    from embedding_service.service.prompts import Prepared
    from embedding_service.service.slices import Steps
    from tests.conftest import RunningGateway

JOB = EmbedJob(model="fake", inputs=["w1", "w2 w3"])


class Service:
    """A gateway's service, called from the test's thread."""

    def __init__(self, gateway: RunningGateway) -> None:
        self.gateway = gateway
        self.service = gateway.gateway.service
        self.model = next(iter(self.service.models))

    def begin(
        self, job: EmbedJob, *, within_s: float = 30, leases: ExitStack | None = None
    ) -> Future[Embeddings]:
        """Start a request; its reservation ends with `leases`, or with the request."""

        async def embed() -> Embeddings:
            with ExitStack() as own:
                return await self.service.embed(
                    job, Call(time.monotonic() + within_s, leases=leases or own)
                )

        return self.submit(embed())

    def submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self.gateway.loop)

    def embed(self, job: EmbedJob, **options: Any) -> Embeddings:
        return self.begin(job, **options).result(60)

    def refusal(self, job: EmbedJob, **options: Any) -> ServiceError:
        with pytest.raises(ServiceError) as caught:
            self.embed(job, **options)
        return caught.value

    def held(self) -> tuple[int, int, int]:
        """Return the tokens, the answer bytes and the requests being prepared that are held now."""
        return self.model.gate.held, self.service.answers.held, self.model.preparing


@pytest.fixture(scope="module")
def service(fake: RunningGateway) -> Service:
    """Return the service of the shared gateway."""
    return Service(fake)


@pytest.fixture(scope="module")
def narrow(start_gateway: Callable[..., RunningGateway]) -> Iterator[Service]:
    """Return a service that holds few tokens and few bytes."""
    gateway = start_gateway(**FAKE, max_queued_tokens=100, max_inflight_response_bytes=5000)
    yield Service(gateway)
    gateway.stop()


def dense(answer: Embeddings) -> Any:
    assert answer.dense is not None
    return answer.dense


def test_an_answer_is_complete(service: Service) -> None:
    """An answer has a unit vector and a token count for each input, and says which model gave it."""
    answer = service.embed(JOB)
    np.testing.assert_allclose(dense(answer), unit_vectors("w1", "w2 w3"), rtol=1e-6)
    assert answer.tokens == [3, 4]
    assert answer.total_tokens == 7
    assert answer.model == "fake"
    assert answer.engine_s > 0
    assert (
        answer.sparse,
        answer.colbert,
        answer.truncated,
        answer.chunked,
        answer.token_ids_read_as,
    ) == ((None, None, (), (), None))


@pytest.mark.parametrize("count", [1, INTERACTIVE_TEXTS, INTERACTIVE_TEXTS + 1, 600])
def test_small_and_large_requests_are_alike(service: Service, count: int) -> None:
    """On the event loop or in a thread, alone or in slices, the vectors are the same."""
    texts = [f"w{i}" for i in range(count)]
    np.testing.assert_allclose(
        dense(service.embed(replace(JOB, inputs=texts))), unit_vectors(*texts), rtol=1e-6
    )


def test_long_texts_are_tokenised_in_a_thread_alike(service: Service) -> None:
    """A text too long for the event loop gets the same tokens."""
    text = "w1 " + " " * INLINE_CHARACTERS + "w2"
    answer = service.embed(replace(JOB, inputs=[text]))
    np.testing.assert_allclose(dense(answer), unit_vectors("w1 w2"), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "param"),
    [
        ({"model": "nobody"}, ModelNotFound, "model"),
        ({"model": None}, InvalidRequest, "model"),
        ({"inputs": ["w1"] * 2049}, InvalidRequest, "input"),
        ({"dimensions": 16}, InvalidRequest, "dimensions"),
        ({"instruction": "w1"}, InvalidRequest, "instruction"),
        ({"prompt_name": "absent"}, InvalidRequest, "prompt_name"),
        ({"outputs": frozenset({Output.SPARSE})}, InvalidRequest, "return_sparse"),
        ({"outputs": frozenset({Output.DENSE, Output.COLBERT})}, InvalidRequest, "return_colbert"),
        ({"embed_dtype": EmbedDtype.INT8, "normalize": False}, InvalidRequest, "normalize"),
        ({"inputs": ["w1", "w1 " * 600]}, ContextLengthExceeded, "input[1]"),
        ({"inputs": ["w1", "fault-nan"]}, EngineFailed, "input[1]"),
        ({"inputs": ["w1", "fault-reject"]}, EngineFailed, None),
    ],
)
def test_what_cannot_be_served_is_refused_and_holds_nothing(
    service: Service, change: dict[str, Any], error: type[ServiceError], param: str | None
) -> None:
    """Each refusal names its field, and leaves no tokens, bytes or counters behind."""
    refused = service.refusal(replace(JOB, **change))
    assert type(refused) is error
    assert refused.param == param
    assert service.held() == (0, 0, 0)


def test_a_request_is_small_by_all_that_it_costs() -> None:
    """Many short texts, and ids that stand for long ones, are not done on the event loop."""
    assert service_module._size_of_inputs(["a"] * 256, "").small
    assert not service_module._size_of_inputs(["a"] * 257, "").small
    longest = max(range(100_000), key=lambda token: cl100k.size_bytes([token]))
    policy = TokenIdPolicy.CL100K
    assert service_module._size_of_inputs([[longest]], "", policy).small
    size = service_module._size_of_inputs([[longest] * 100], "", policy)
    assert (size.characters, size.small) == (12_800, False)


def test_a_deadline_that_has_passed_is_a_504(service: Service) -> None:
    """Work whose time is over is not begun, and work that runs out of time is given up."""
    assert isinstance(service.refusal(JOB, within_s=-1), DeadlineExceeded)
    assert isinstance(
        service.refusal(replace(JOB, inputs=["fault-slow"]), within_s=0.1), DeadlineExceeded
    )
    assert service.held() == (0, 0, 0)


def test_too_many_tokens_at_once_are_a_429(narrow: Service) -> None:
    """While the engine's queue is full, more is sent away with a time, and fits later."""
    busy = narrow.begin(replace(JOB, inputs=["fault-hang" + " w1" * 60]))
    wait_until(lambda: narrow.model.gate.held == 63)
    refused = narrow.refusal(replace(JOB, inputs=["w1 " * 40]))
    assert isinstance(refused, Overloaded)
    assert refused.retry_after_s is not None
    assert narrow.model.gate.held == 63
    small = narrow.begin(replace(JOB, inputs=["w1"]))
    narrow.gateway.workers["fake", 0].wake()
    assert dense(small.result(60)).shape == dense(busy.result(60)).shape == (1, 32)
    narrow.embed(replace(JOB, inputs=["w1 " * 40]))
    assert narrow.held() == (0, 0, 0)


def test_more_tokens_than_the_queue_holds_are_a_400(narrow: Service) -> None:
    """A request that would never fit is not told to come back."""
    refused = narrow.refusal(replace(JOB, inputs=["w1 " * 40] * 3))
    assert isinstance(refused, InvalidRequest)
    assert refused.param == "input"


def test_answers_are_reserved_until_they_are_sent(narrow: Service) -> None:
    """An answer's bytes stay reserved while its lease is open, and bound other work."""
    leases = ExitStack()
    job = replace(JOB, inputs=["w1"] * 8, encoding=Encoding.FLOAT)
    narrow.embed(job, leases=leases)
    held = narrow.service.answers.held
    assert 8 * 32 * 10 < held < 5000
    assert narrow.model.gate.held == 0
    assert isinstance(narrow.refusal(job), Overloaded)
    narrow.embed(replace(JOB, inputs=["w1"]))
    leases.close()
    narrow.embed(job)
    assert narrow.held() == (0, 0, 0)


def test_rows_are_reserved_as_they_are_held(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors of each token are float32 until they are written, however small they are then."""
    encoder = service.model.embedder()
    words, outputs = " ".join(["w1"] * 30), frozenset({Output.COLBERT})
    job = EmbedJob("fake", [words], outputs, embed_dtype=EmbedDtype.UBINARY)
    prepared = encoder.prepare(job, "", max_total=100)
    held = checks.held_bytes(encoder, job, prepared)
    assert held == 4 * prepared.total * (encoder.facts.dimension or 0)
    assert held > checks.answer_bytes(encoder, job, prepared)
    monkeypatch.setattr(checks, "held_bytes", lambda *_: 54_321)
    with ExitStack() as leases:
        before = service.service.answers.held
        service.embed(JOB, leases=leases)
        assert service.service.answers.held == before + 54_321


def test_cancelling_a_request_frees_everything(narrow: Service) -> None:
    """A request that is cancelled while the engine works holds nothing afterwards."""
    running = narrow.begin(replace(JOB, inputs=["fault-slow w1"]))
    wait_until(lambda: narrow.model.gate.held)
    running.cancel()
    wait_until(lambda: narrow.held() == (0, 0, 0))
    assert [replica.outstanding_tokens for replica in narrow.model.engine.replicas] == [0]
    np.testing.assert_allclose(
        dense(narrow.embed(replace(JOB, inputs=["w7"]))), unit_vectors("w7"), rtol=1e-6
    )


def test_vectors_do_not_depend_on_the_company(service: Service) -> None:
    """The same text has the same vector alone, in a batch, and beside concurrent requests."""
    texts = [f"w{i} w{i + 1}" for i in range(64)]
    together = dense(service.embed(replace(JOB, inputs=texts)))
    running = [service.begin(replace(JOB, inputs=[text])) for text in texts]
    alone = np.concatenate([dense(answer.result(60)) for answer in running])
    np.testing.assert_array_equal(together, alone)
    assert service.held() == (0, 0, 0)


def test_numbers_are_the_models_own_without_normalisation(service: Service) -> None:
    """`normalize=False` returns what the engine computed, whatever its scale, also as float16."""
    raw = service.embed(
        replace(JOB, inputs=["w1"], normalize=False, embed_dtype=EmbedDtype.FLOAT16)
    )
    np.testing.assert_array_equal(dense(raw)[0], raw_vector("w1").astype(np.float16))
    assert raw.tokens == [len(ids_of("w1"))]


def test_a_bulk_request_is_refused_unread_while_the_queue_is_full(
    start_gateway: Callable[..., RunningGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that cannot fit is not tokenised; a short one is, as the cache may know it."""
    gateway = start_gateway(**FAKE, max_queued_tokens=400, cache_max_bytes=1 << 20)
    full = Service(gateway)
    full.embed(replace(JOB, inputs=["w1"]))
    waiting = full.begin(replace(JOB, inputs=["fault-hang " + "w2 " * 300]))
    wait_until(lambda: full.held()[0])
    prepared: list[EmbedJob] = []
    encoder = full.model.embedder()
    steps = encoder.steps

    def noted(job: EmbedJob, *given: Any, **named: Any) -> Steps[Prepared]:
        prepared.append(job)  # at the first step
        return (yield from steps(job, *given, **named))

    monkeypatch.setattr(encoder, "steps", noted)
    bulk = replace(JOB, inputs=["w3 " * 20] * (INTERACTIVE_TEXTS + 1))
    assert isinstance(full.refusal(bulk), Overloaded)
    assert prepared == []
    assert full.embed(replace(JOB, inputs=["w1"])).cached == [True]
    assert isinstance(full.refusal(replace(JOB, inputs=["w3 " * 200])), Overloaded)
    assert len(prepared) == 2
    gateway.workers["fake", 0].wake()
    waiting.result(60)
    assert len(full.embed(bulk).tokens) == INTERACTIVE_TEXTS + 1
    gateway.stop()


def test_short_queries_do_not_change_what_is_expected_of_bulk(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """How many tokens a long request should have is learnt from long requests alone."""
    gateway = start_gateway(**FAKE)
    own = Service(gateway)
    for _ in range(20):
        own.embed(replace(JOB, inputs=["w"]))
    assert own.model.characters_per_token == 4
    own.embed(replace(JOB, inputs=["w1 w2 w3"] * 20))
    assert own.model.characters_per_token < 4
    gateway.stop()

"""OpenAI's own contract, over HTTP: shapes, order, encodings, limits, errors, models."""

from __future__ import annotations

import base64
import json
import re
import time
from typing import TYPE_CHECKING, Any

import bpe_openai
import numpy as np
import pytest

from embedding_service.service.vectors import shape_dense
from embedding_service.types import Output
from embedding_service.worker.fake import DIMENSION, VOCABULARY, fake_vectors
from tests.calls import embed, error_of, ids_of, log_line, raw_vector, unit_vectors, vectors_of
from tests.conftest import FAKE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from embedding_service.engine.protocol import Pong
    from tests.conftest import RunningGateway

TEXTS = ["w1", "w2 w3", "w4 w5 w6", "w1"]


@pytest.fixture(scope="module")
def tight(start_gateway: Callable[..., RunningGateway]) -> Iterator[RunningGateway]:
    """Return a gateway with low limits that serves its default model under any name."""
    gateway = start_gateway(
        **FAKE,
        max_inputs=50,
        max_request_tokens=1000,
        max_response_bytes=20_000,
        unknown_model="serve_default",
    )
    yield gateway
    gateway.stop()


@pytest.fixture(scope="module")
def other(start_gateway: Callable[..., RunningGateway]) -> Iterator[httpx.Client]:
    """Return a client of two Matryoshka models: one reads its own token ids, the other none."""
    fake = {"engine": "fake", "matryoshka": True}
    gateway = start_gateway(
        port=0,
        models=[
            {
                **fake,
                "model_name": "org/native",
                "token_ids": "native",
                "aliases": ["a/b c", "naïve"],
                "required": True,
            },
            {**fake, "model_name": "rejecting", "token_ids": "reject", "required": True},
        ],
    )
    with gateway.client() as client:
        yield client
    gateway.stop()


def test_an_answer_has_openais_shape(client: httpx.Client) -> None:
    """The body has exactly OpenAI's keys, with real token counts."""
    body = embed(client, input=TEXTS).json()
    tokens = sum(len(ids_of(text)) for text in TEXTS)
    assert body.keys() == {"object", "data", "model", "usage"}
    assert body["object"] == "list"
    assert body["model"] == "fake"
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    for item in body["data"]:
        assert item.keys() == {"object", "index", "embedding"}
        assert item["object"] == "embedding"


def test_vectors_come_in_the_order_of_the_inputs(client: httpx.Client) -> None:
    """Vector i belongs to input i, also where inputs repeat."""
    np.testing.assert_allclose(
        vectors_of(embed(client, input=TEXTS)), unit_vectors(*TEXTS), rtol=1e-6
    )


def test_a_string_is_a_list_of_one(client: httpx.Client) -> None:
    """A bare string gets what a list of it gets."""
    assert embed(client, input="w1 w2").json() == embed(client, input=["w1 w2"]).json()


def test_both_paths_are_one(client: httpx.Client) -> None:
    """/embeddings answers as /v1/embeddings does."""
    request = {"model": "fake", "input": TEXTS}
    assert (
        client.post("/embeddings", json=request).json()
        == client.post("/v1/embeddings", json=request).json()
    )


def test_base64_equals_float(client: httpx.Client) -> None:
    """Base64 decodes to the same float32 numbers that the list holds."""
    texts = embed(client, input=TEXTS, encoding_format="base64").json()["data"]
    decoded = [
        np.frombuffer(base64.b64decode(item["embedding"], validate=True), "<f4") for item in texts
    ]
    np.testing.assert_array_equal(decoded, vectors_of(embed(client, input=TEXTS)))


@pytest.mark.parametrize(
    "fields", [{}, {"encoding_format": None}, {"encoding_format": "float"}, {"encoding_format": ""}]
)
def test_float_is_the_default(client: httpx.Client, fields: dict[str, Any]) -> None:
    """No encoding, null, nothing (LiteLLM) and float all mean a list of numbers."""
    assert vectors_of(embed(client, input="w1", **fields)).shape == (1, DIMENSION)


def test_the_full_dimension_is_always_fine(client: httpx.Client) -> None:
    """Asking for the model's own size changes nothing."""
    assert (
        embed(client, input="w1", dimensions=DIMENSION).json() == embed(client, input="w1").json()
    )


@pytest.mark.parametrize("dimensions", [1, DIMENSION - 1, DIMENSION + 1])
def test_other_dimensions_need_matryoshka(client: httpx.Client, dimensions: int) -> None:
    """A model not known as Matryoshka refuses, naming its size and the setting that allows it."""
    error = error_of(embed(client, input="w1", dimensions=dimensions), 400)
    assert error["param"] == "dimensions"
    assert str(DIMENSION) in error["message"]
    assert "matryoshka: true" in error["message"]


def test_an_input_type_without_a_prompt_is_named(client: httpx.Client) -> None:
    """Where neither the model's files nor its family have a prompt, the answer says so."""
    plain = embed(client, input="w1")
    asked = embed(client, input="w1", input_type="query", unknown_field=1)
    assert asked.json() == plain.json()
    assert asked.headers["x-ignored-fields"] == "unknown_field, input_type"
    assert "x-ignored-fields" not in plain.headers


@pytest.mark.parametrize("dimensions", [1, 8, DIMENSION])
def test_matryoshka_vectors_are_cut_and_renormalised(other: httpx.Client, dimensions: int) -> None:
    """A shorter vector is the beginning of the model's own, scaled to length 1."""
    got = vectors_of(embed(other, model="org/native", input=["w1", "w2 w3"], dimensions=dimensions))
    want = shape_dense(
        np.stack([raw_vector("w1"), raw_vector("w2 w3")]), dimensions=dimensions, normalize=True
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, rtol=1e-6)


def test_matryoshka_vectors_never_grow(other: httpx.Client) -> None:
    """More dimensions than the model has are refused."""
    error = error_of(embed(other, model="org/native", input="w1", dimensions=DIMENSION + 1), 400)
    assert error["param"] == "dimensions"


def cl100k(text: str) -> list[int]:
    return list(bpe_openai.get_encoding("cl100k_base").encode(text))


def test_token_ids_are_read_as_cl100k(client: httpx.Client) -> None:
    """Token ids, one text's or several', embed as the texts that cl100k_base decodes them to."""
    one, several = (
        embed(client, input=cl100k(TEXTS[1])),
        embed(client, input=[cl100k(text) for text in TEXTS]),
    )
    np.testing.assert_allclose(vectors_of(one), unit_vectors(TEXTS[1]), rtol=1e-6)
    np.testing.assert_allclose(vectors_of(several), unit_vectors(*TEXTS), rtol=1e-6)
    assert one.headers["x-token-ids"] == several.headers["x-token-ids"] == "cl100k_base"
    assert several.json()["usage"] == embed(client, input=TEXTS).json()["usage"]


@pytest.mark.parametrize("bad", [100_256, 100_277, 2**31 - 1])
def test_ids_outside_cl100k_are_a_400(client: httpx.Client, bad: int) -> None:
    """An id that cl100k_base does not have is refused under the index of its input."""
    assert error_of(embed(client, input=[[1], [2, bad]]), 400)["param"] == "input[1]"


def test_native_token_ids_go_to_the_model_as_they_are(other: httpx.Client) -> None:
    """With `token_ids: native` ids are the model's own; missing special tokens are added."""
    ids = ids_of("w1 w2")
    for sent in (ids, ids[1:-1], ids[1:], ids[:-1]):
        response = embed(other, model="org/native", input=sent)
        np.testing.assert_allclose(vectors_of(response), unit_vectors("w1 w2"), rtol=1e-6)
        assert response.headers["x-token-ids"] == "native"
        assert response.json()["usage"]["prompt_tokens"] == len(ids)


def test_ids_outside_the_vocabulary_are_a_400(other: httpx.Client) -> None:
    """The last id of the vocabulary embeds; the next one is refused under its input's index."""
    last = VOCABULARY - 1
    (want,) = fake_vectors([0, last, 1], Output.DENSE)
    got = vectors_of(embed(other, model="org/native", input=[last]))
    np.testing.assert_allclose(got[0], want / np.linalg.norm(want), rtol=1e-6)
    error = error_of(embed(other, model="org/native", input=[[1], [last, VOCABULARY]]), 400)
    assert error["param"] == "input[1]"


@pytest.mark.parametrize("ids", [[1], [[1], [2]]])
def test_token_ids_may_be_refused(other: httpx.Client, ids: Any) -> None:
    """With `token_ids: reject`, ids get a 400 that says to send text, and text is served."""
    error = error_of(embed(other, model="rejecting", input=ids), 400)
    assert error["param"] == "input"
    assert "text" in error["message"]
    assert embed(other, model="rejecting", input="w1").status_code == 200


def test_texts_have_no_token_ids_header(client: httpx.Client) -> None:
    """`x-token-ids` is only there when token ids were sent."""
    assert "x-token-ids" not in embed(client, input="w1").headers


def test_an_alias_answers_under_the_models_name(client: httpx.Client) -> None:
    """A request by alias gets the same vectors, and is told which model gave them."""
    response = embed(client, model="text-embedding-3-small", input="w1")
    assert response.json() == embed(client, input="w1").json()
    assert response.headers["openai-model"] == "fake"


@pytest.mark.parametrize("name", ["", "FAKE", "fake ", "gpt-4o", "😀", "\0"])
def test_an_unknown_model_is_a_404(client: httpx.Client, name: str) -> None:
    """A model that is not served is `model_not_found`, as OpenAI says it."""
    error = error_of(embed(client, model=name, input="w1"), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "does not exist" in error["message"]


def test_a_missing_model_is_a_400(client: httpx.Client) -> None:
    """Where models are told apart by name, a request has to name one."""
    error = error_of(client.post("/v1/embeddings", json={"input": "w1"}), 400)
    assert error["param"] == "model"


@pytest.mark.parametrize("fields", [{"model": "gpt-4o"}, {"model": ""}, {"model": None}])
def test_serve_default_takes_any_name(tight: RunningGateway, fields: dict[str, Any]) -> None:
    """With `unknown_model: serve_default` any name gets the configured model, named in answers."""
    with tight.client() as client:
        assert embed(client, input="w1", **fields).json()["model"] == "fake"


@pytest.mark.parametrize(
    ("value", "param", "words"),
    [
        ([], "input", "empty"),
        ("", "input", "empty"),
        (["w1", ""], "input", "[1]"),
        ([[1], []], "input", "[1]"),
    ],
)
def test_empty_inputs_are_a_400(client: httpx.Client, value: Any, param: str, words: str) -> None:
    """An empty list or text is refused, and the message says which one it is."""
    error = error_of(embed(client, input=value), 400)
    assert error["param"] == param
    assert words in error["message"]


def test_at_most_2048_inputs(client: httpx.Client) -> None:
    """2,048 inputs are served, and one more is refused with the limit."""
    assert len(embed(client, input=["w1"] * 2048).json()["data"]) == 2048
    error = error_of(embed(client, input=["w1"] * 2049), 400)
    assert error["param"] == "input"
    assert "2048" in error["message"]


def test_an_input_that_just_fits_is_served(client: httpx.Client) -> None:
    """An input of exactly the model's context, special tokens included, embeds."""
    text = " ".join(["w1"] * 510)
    assert embed(client, input=text).json()["usage"]["total_tokens"] == 512


def test_an_over_long_input_is_a_400_as_openai_says_it(client: httpx.Client) -> None:
    """One token more is refused in OpenAI's words, with both counts and the index."""
    error = error_of(embed(client, input=["w1", " ".join(["w1"] * 511)]), 400)
    assert error["message"].startswith(
        "This model's maximum context length is 512 tokens, however you requested 513 tokens"
    )
    assert (error["param"], error["code"]) == ("input[1]", "context_length_exceeded")


def engine_progress(gateway: RunningGateway) -> Pong:
    """Return what the engine has done so far: its answer to a ping that is sent after this call."""
    (model,) = gateway.gateway.service.models
    (replica,) = model.engine.replicas
    seen: list[Pong] = []
    until = time.monotonic() + 30
    while (
        len(seen) < 3
    ):  # the first may be old, and the ping of the second may have left before the call
        assert time.monotonic() < until, "the engine does not answer pings"
        progress = replica.progress
        if progress is not None and not any(progress is earlier for earlier in seen):
            seen.append(progress)
        time.sleep(0.01)
    return seen[-1]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input": ["w1 " * 60] * 20}, "1000 tokens"),
        ({"input": ["w1"] * 50}, "bytes"),
        ({"input": ["w1"] * 51}, "at most 50"),
    ],
    ids=["max_request_tokens", "max_response_bytes", "max_inputs"],
)
def test_limits_hold_before_the_engine_works(
    tight: RunningGateway, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], words: str
) -> None:
    """A request over a limit is refused under `input` without a single engine step."""
    monkeypatch.setattr("embedding_service.engine.heartbeat.PING_EVERY_S", 0.05)
    before = engine_progress(tight)
    with tight.client() as client:
        error = error_of(embed(client, **fields), 400)
        assert error["param"] == "input"
        assert words in error["message"]
        assert engine_progress(tight) == before
        assert embed(client, input="w1").status_code == 200
    assert engine_progress(tight).steps == before.steps + 1


def test_a_large_answer_is_allowed_as_base64(tight: RunningGateway) -> None:
    """`max_response_bytes` is about the answer as sent: base64 may fit where floats do not."""
    with tight.client() as client:
        assert embed(client, input=["w1"] * 50, encoding_format="base64").status_code == 200


def test_a_large_answer_is_streamed(client: httpx.Client) -> None:
    """An answer of several hundred kilobytes comes in chunks, and is whole and in order."""
    texts = [f"w{i}" for i in range(2048)]
    response = embed(client, input=texts)
    assert response.headers["transfer-encoding"] == "chunked"
    assert len(response.content) > 512 << 10
    np.testing.assert_allclose(vectors_of(response), unit_vectors(*texts), rtol=1e-6)


def test_a_small_answer_has_its_length(client: httpx.Client) -> None:
    """A small answer is one message with a content length."""
    response = embed(client, input="w1")
    assert int(response.headers["content-length"]) == len(response.content)


@pytest.mark.parametrize("sent", ["a", "req_1234567890", "A.b:c-d_e", "x" * 128])
def test_a_request_id_is_kept(fake: RunningGateway, client: httpx.Client, sent: str) -> None:
    """A well-formed `x-request-id` is sent back and stands in the log."""
    response = embed(client, input="w1", headers={"x-request-id": sent})
    assert response.headers["x-request-id"] == sent
    assert log_line(fake, response)["id"] == sent


@pytest.mark.parametrize("sent", [None, "", "x" * 129, "a b", "é", 'a"b', "a,b"])
def test_a_request_id_is_minted(client: httpx.Client, sent: str | None) -> None:
    """Without a usable id, every request gets one of its own."""
    headers = None if sent is None else {"x-request-id": sent.encode("latin-1")}
    ids = [embed(client, input="w1", headers=headers).headers["x-request-id"] for _ in range(2)]
    assert all(re.fullmatch("[0-9a-f]{32}", minted) for minted in ids)
    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/embeddings", {"model": "fake", "input": "w1"}, 200),
        ("POST", "/v1/embeddings", {"model": "no", "input": "w1"}, 404),
        ("POST", "/v1/embeddings", {}, 400),
        ("GET", "/v1/embeddings", None, 405),
        ("GET", "/nowhere", None, 404),
    ],
)
def test_every_answer_has_an_id_and_a_time(
    client: httpx.Client, method: str, path: str, body: Any, status: int
) -> None:
    """Errors too carry `x-request-id` and `openai-processing-ms`."""
    response = client.request(method, path, json=body)
    assert response.status_code == status
    assert response.headers["x-request-id"]
    assert (
        0
        <= int(response.headers["openai-processing-ms"])
        <= 1000 * response.elapsed.total_seconds() + 1
    )


def test_the_log_sums_up_a_request(fake: RunningGateway, client: httpx.Client) -> None:
    """A line for each request holds model, texts, tokens, seconds, speed, and no client's text."""
    line = log_line(fake, embed(client, model="text-embedding-3-small", input=["w3141", "w1"]))
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/embeddings", 200)
    assert (line["model"], line["texts"], line["tokens"]) == ("fake", 2, 6)
    assert line["seconds"] > 0
    assert line["texts_per_s"] > 0
    assert "w3141" not in str(line)


def test_models_are_listed_with_their_aliases(other: httpx.Client) -> None:
    """/v1/models names every model and alias in OpenAI's shape."""
    body = other.get("/v1/models").json()
    assert body["object"] == "list"
    assert [entry["id"] for entry in body["data"]] == ["org/native", "a/b c", "naïve", "rejecting"]
    for entry in body["data"]:
        assert entry["object"] == "model"
        assert isinstance(entry["created"], int)
        assert isinstance(entry["owned_by"], str)
        assert entry["dimension"] == DIMENSION


def test_a_model_shows_what_becomes_of_a_text(start_gateway: Callable[..., RunningGateway]) -> None:
    """Pooling, prompts with their texts and uses, own scaling, length and sizes can be looked up."""
    knobs = {"prompts": {"query": "Q: "}, "normalizes": True}
    gateway = start_gateway(**FAKE, matryoshka=True, max_model_len=64, engine_args=knobs)
    with gateway.client() as http:
        entry = http.get("/v1/models/fake").json()
    gateway.stop()
    shown = {
        "pooling",
        "prompts",
        "input_types",
        "instructions",
        "normalizes",
        "max_model_len",
        "matryoshka",
        "matryoshka_dimensions",
    }
    assert {name: entry[name] for name in shown} == {
        "pooling": "CLS",
        "prompts": {"query": "Q: "},
        "input_types": ["query", "document"],
        "instructions": False,
        "normalizes": True,
        "max_model_len": 64,
        "matryoshka": True,
        "matryoshka_dimensions": None,
    }


@pytest.mark.parametrize(
    "path", ["org/native", "org%2Fnative", "a/b%20c", "na%C3%AFve", "rejecting"]
)
def test_a_model_is_retrieved_by_its_id(other: httpx.Client, path: str) -> None:
    """/v1/models/{id} answers what the list says, also for ids with a slash, a blank or an accent."""
    entry = other.get(f"/v1/models/{path}").json()
    assert entry in other.get("/v1/models").json()["data"]


@pytest.mark.parametrize("path", ["nobody", "org", "native", "org/native/", "%00"])
def test_an_unknown_model_cannot_be_retrieved(other: httpx.Client, path: str) -> None:
    """Any other id is a 404 `model_not_found`."""
    assert error_of(other.get(f"/v1/models/{path}"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/", "/v2/embeddings", "/%00%ff"])
def test_an_unknown_path_is_a_404(client: httpx.Client, path: str) -> None:
    """A path that leads nowhere is a 404 in the envelope, and never a redirect."""
    assert error_of(client.get(path), 404)["code"] == "not_found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/embeddings", "POST"),
        ("PUT", "/embeddings", "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/models/fake", "GET"),
        ("POST", "/health", "GET"),
    ],
)
def test_a_wrong_method_is_a_405(
    client: httpx.Client, method: str, path: str, allowed: str
) -> None:
    """The right path with the wrong method is a 405 that says which method it takes."""
    response = client.request(method, path)
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert allowed in response.headers["allow"].split(", ")


@pytest.mark.parametrize("word", ["fault-nan", "fault-reject"])
def test_what_the_engine_cannot_compute_is_a_500_about_its_input(
    client: httpx.Client, word: str
) -> None:
    """Numbers that are not finite, or a refused input: a 500 that says not to retry."""
    response = embed(client, input=["w1", word])
    assert error_of(response, 500)["code"] == "engine_failed"
    assert response.headers["x-should-retry"] == "false"
    assert embed(client, input="w1").status_code == 200


def test_a_deadline_that_passes_is_a_504(client: httpx.Client) -> None:
    """Work that is not done in the time the client gave is a 504 that says not to retry."""
    response = embed(client, input="fault-slow", headers={"x-request-timeout-ms": "100"})
    assert error_of(response, 504)["code"] == "deadline_exceeded"
    assert response.headers["x-should-retry"] == "false"


def test_answers_are_compact_json(client: httpx.Client) -> None:
    """No byte is spent on blanks between numbers."""
    content = embed(client, input=TEXTS).content
    assert b" " not in content
    assert json.loads(content)

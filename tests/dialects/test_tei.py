"""Hugging Face's text-embeddings-inference, route by route, without a preset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embedding_service.types import Output
from embedding_service.worker.fake import fake_vectors
from tests.calls import ids_of, raw_vector, unit_vectors
from tests.conftest import client_of
from tests.dialects.test_bge import expected_sparse
from tests.dialects.test_rerank import MODELS, score

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.conftest import RunningGateway

TEXTS = ["w1 w2", "w3"]


http = client_of(**MODELS, max_body_bytes=1 << 20)


def answer(http: httpx.Client, path: str, **fields: Any) -> Any:
    response = http.post(path, json=fields)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("path", ["/embed", "/"])
@pytest.mark.parametrize("inputs", ["w1 w2", TEXTS])
def test_embed(http: httpx.Client, path: str, inputs: str | list[str]) -> None:
    """A text or several become a bare list of unit vectors."""
    texts = [inputs] if isinstance(inputs, str) else inputs
    np.testing.assert_allclose(answer(http, path, inputs=inputs), unit_vectors(*texts), atol=1e-6)


def test_normalize_and_null(http: httpx.Client) -> None:
    """`normalize: false` leaves a vector as it is; null is the default of every option."""
    np.testing.assert_allclose(
        answer(http, "/embed", inputs="w1", normalize=False), [raw_vector("w1")], atol=1e-6
    )
    nulls: dict[str, Any] = dict.fromkeys(
        ["normalize", "truncate", "truncation_direction", "prompt_name"]
    )
    np.testing.assert_allclose(
        answer(http, "/embed", inputs="w1", **nulls), unit_vectors("w1"), atol=1e-6
    )


@pytest.mark.parametrize(
    ("direction", "kept"), [({}, "w1"), ({"truncation_direction": "Left"}, "w2")]
)
def test_truncation(http: httpx.Client, direction: dict[str, str], kept: str) -> None:
    """Without `truncate` over-long texts are cut, on the right by default; false refuses them."""
    text = "w1 " * 62 + "w2 " * 62
    for more in ({}, {"truncate": True}):
        vectors = answer(http, "/embed", inputs=text, **direction, **more)
        np.testing.assert_allclose(vectors, unit_vectors(f"{kept} " * 62), atol=1e-6)
    refused = http.post("/embed", json={"inputs": text, "truncate": False})
    assert (refused.status_code, refused.json()["error_type"]) == (422, "Validation")
    assert "maximum context length is 64" in refused.json()["error"]


def test_embed_sparse(http: httpx.Client) -> None:
    """Lexical weights are lists of index and value."""
    for weights, text in zip(answer(http, "/embed_sparse", inputs=TEXTS), TEXTS, strict=True):
        expected = expected_sparse(text)
        assert [weight["index"] for weight in weights] == expected.indices.tolist()
        np.testing.assert_allclose(
            [weight["value"] for weight in weights], expected.values, rtol=1e-5
        )


def test_embed_all(http: httpx.Client) -> None:
    """Every token has a vector, special tokens included: the last layer's output as it is."""
    for rows, text in zip(answer(http, "/embed_all", inputs=TEXTS), TEXTS, strict=True):
        np.testing.assert_allclose(
            rows, fake_vectors(ids_of(text), Output.HIDDEN_STATES), rtol=1e-6
        )


def test_embed_all_of_many(http: httpx.Client) -> None:
    """Texts that fill several messages and steps, some of them twice, come back in their order."""
    texts = [f"w{i % 150} w3" + " w4" * (i % 7) for i in range(200)]
    for rows, text in zip(answer(http, "/embed_all", inputs=texts), texts, strict=True):
        np.testing.assert_allclose(
            rows, fake_vectors(ids_of(text), Output.HIDDEN_STATES), rtol=1e-6
        )


def test_embed_all_has_no_options_of_pooled_vectors(http: httpx.Client) -> None:
    """`normalize` and `dimensions` are no fields of `/embed_all`, and are said to be ignored."""
    response = http.post("/embed_all", json={"inputs": "w1", "normalize": True, "dimensions": 8})
    assert response.headers["x-ignored-fields"] == "normalize, dimensions"
    np.testing.assert_allclose(
        response.json()[0], fake_vectors(ids_of("w1"), Output.HIDDEN_STATES), rtol=1e-6
    )


def test_embed_all_is_cached_apart(start_gateway: Callable[..., RunningGateway]) -> None:
    """Hidden states are kept in the cache, and not mistaken for another kind of vector."""
    knobs = {"outputs": ["dense", "hidden_states"]}
    gateway = start_gateway(
        engine="fake", model_name="fake", port=0, engine_args=knobs, cache_max_bytes=1 << 20
    )
    with gateway.client() as client:
        answers = [
            client.post(path, json={"inputs": "w1"})
            for path in ("/embed", "/embed_all", "/embed_all")
        ]
        refused = client.post("/embed_sparse", json={"inputs": "w1"})
    assert [answer.headers.get("x-cache") for answer in answers] == [None, None, "1/1"]
    assert answers[1].json() == answers[2].json()
    assert "fake gives dense and no sparse; ask" in refused.text
    gateway.stop()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_response_bytes": 20_000}, "the answer would have about"),
        ({"engine_args": {"outputs": ["dense"]}}, "fake gives dense and no hidden_states"),
        ({"engine_args": {"outputs": ["score"]}}, "fake scores pairs and does not embed"),
    ],
)
def test_embed_all_is_refused(
    shared_gateway: Callable[..., RunningGateway], settings: dict[str, Any], words: str
) -> None:
    """Too large an answer is refused from the count of tokens; models without hidden states say so."""
    knobs = {"outputs": ["dense", "hidden_states"]}
    gateway = shared_gateway(
        **{"engine": "fake", "model_name": "fake", "port": 0, "engine_args": knobs, **settings}
    )
    with gateway.client() as client:
        assert (
            client.post("/embed_all", json={"inputs": "w1 " * 50}).json()["error"].startswith(words)
        )


@pytest.mark.parametrize("path", ["/similarity", "/"])
def test_similarity(http: httpx.Client, path: str) -> None:
    """A sentence is compared with others by cosine; `POST /` tells by the shape of `inputs`."""
    scores = answer(http, path, inputs={"source_sentence": "w1 w2", "sentences": ["w1 w2", "w3"]})
    source, other = unit_vectors("w1 w2", "w3")
    np.testing.assert_allclose(scores, [1, source @ other], atol=1e-6)


def test_rerank(http: httpx.Client) -> None:
    """Texts are ranked by sigmoid or raw score, with their text only when asked."""
    texts = ["w2 w3", "w4", "w5 w6 w7"]
    logits = np.array([score("w1", text) for text in texts])
    order = np.argsort(-logits).tolist()
    ranks = answer(http, "/rerank", query="w1", texts=texts)
    assert [set(rank) for rank in ranks] == [{"index", "score"}] * 3
    assert [rank["index"] for rank in ranks] == order
    np.testing.assert_allclose(
        [rank["score"] for rank in ranks], 1 / (1 + np.exp(-logits[order])), rtol=1e-5
    )
    raw = answer(http, "/rerank", query="w1", texts=texts, raw_scores=True, return_text=True)
    np.testing.assert_allclose([rank["score"] for rank in raw], logits[order], rtol=1e-5)
    assert [rank["text"] for rank in raw] == [texts[i] for i in order]


@pytest.mark.parametrize(("query", "texts"), [("w1", ["", "w2"]), ("", ["w1", "w2"])])
def test_an_empty_text_scores(http: httpx.Client, query: str, texts: list[str]) -> None:
    """Only a pair of nothing and nothing is refused."""
    ranks = answer(http, "/rerank", query=query, texts=texts, raw_scores=True)
    got = {rank["index"]: rank["score"] for rank in ranks}
    assert [got[0], got[1]] == pytest.approx([score(query, text) for text in texts], rel=1e-5)


@pytest.mark.parametrize(
    ("direction", "first", "last"),
    [(None, "w1", "w3"), ("right", "w1", "w3"), ("Left", "w2", "w4")],
)
def test_long_pairs_are_cut_longest_first(
    http: httpx.Client, direction: str | None, first: str, last: str
) -> None:
    """Both ends of a pair lose tokens until they fit, on the side that the request names."""
    query, text = "w1 " * 30 + "w2 " * 30, "w3 " * 31 + "w4 " * 31
    body = {"query": query, "texts": [text], "truncation_direction": direction}
    response = http.post("/rerank", json={**body, "raw_scores": True})
    (rank,) = response.json()
    expected = score(f"{first} " * 30, f"{last} " * 31)
    assert rank["score"] == pytest.approx(expected, rel=1e-5)
    assert response.headers["x-truncated-inputs"] == "0"


def test_late_interaction_cuts_documents(shared_gateway: Callable[..., RunningGateway]) -> None:
    """Where an embedding model scores, over-long texts are cut as well."""
    knobs = {"outputs": ["dense", "sparse", "colbert"]}
    gateway = shared_gateway(
        engine="fake", model_name="fake", port=0, max_model_len=64, engine_args=knobs
    )
    with gateway.client() as client:
        body = {"query": "w1", "texts": ["w2 " * 100]}
        response = client.post("/rerank", json=body)
        assert response.headers["x-truncated-inputs"] == "0"
        assert client.post("/rerank", json={**body, "truncate": False}).status_code == 422


def test_answers_tell_what_they_took(http: httpx.Client) -> None:
    """TEI's headers are there, as whole milliseconds and counts."""
    bodies: dict[str, dict[str, Any]] = {
        "/embed": {"inputs": ["w1 w2", "w3"]},
        "/similarity": {"inputs": {"source_sentence": "w1 w2", "sentences": ["w3"]}},
        "/rerank": {"query": "w1 w2", "texts": ["w3"]},
    }
    for path, body in bodies.items():
        headers = http.post(path, json=body).headers
        assert headers["x-compute-type"] == "cpu"
        assert headers["x-compute-characters"] == "7"
        assert int(headers["x-compute-tokens"]) > 3
        for name in ("x-compute-time", "x-total-time", "x-tokenization-time"):
            assert int(headers[name]) >= 0
        assert int(headers["x-queue-time"]) + int(headers["x-inference-time"]) >= 0


def test_similarity_has_parameters(http: httpx.Client) -> None:
    """`parameters` say how sentences are read."""
    inputs = {"source_sentence": "w2", "sentences": ["w1 " * 62 + "w2 " * 62]}
    left = {"truncation_direction": "Left"}
    cosine = answer(http, "/similarity", inputs=inputs, parameters=left)
    expected = unit_vectors("w2")[0] @ unit_vectors("w2 " * 62)[0]
    np.testing.assert_allclose(cosine, [expected], atol=1e-6)
    strict = {"inputs": inputs, "parameters": {"truncate": False}}
    assert http.post("/similarity", json=strict).status_code == 422


def test_tokenize_and_decode(http: httpx.Client) -> None:
    """Tokens come with their place in the text, and lead back to it."""
    (tokens,) = answer(http, "/tokenize", inputs="w1  w22")
    cls, first, second, sep = tokens
    assert cls == {"id": 0, "text": "[CLS]", "special": True, "start": None, "stop": None}
    assert first == {"id": 101, "text": "w1", "special": False, "start": 0, "stop": 2}
    assert second == {"id": 122, "text": "w22", "special": False, "start": 4, "stop": 7}
    assert sep["special"] is True
    assert (
        answer(http, "/tokenize", inputs=["w1", "w2"], add_special_tokens=False)[1][0]["id"] == 102
    )
    ids = [token["id"] for token in tokens]
    assert answer(http, "/decode", ids=ids[1:-1]) == ["w1 w22"]
    assert answer(http, "/decode", ids=[ids, [105]], skip_special_tokens=False) == [
        "[CLS] w1 w22 [SEP]",
        "w5",
    ]


def test_tokenize_and_decode_for_a_model(start_gateway: Callable[..., RunningGateway]) -> None:
    """With a model's name, or an alias that implies a prompt, tokens are those that it reads."""
    prompts = {"query": "w7 w8 ", "other": "w9 "}
    second = {"model_name": "b", "engine": "fake", "engine_args": {"prompts": prompts}}
    second |= {
        "aliases": {"ask": {"input_type": "query"}},
        "instruction_template": "{instruction} ",
    }
    first = {"model_name": "a", "engine": "fake"}
    gateway = start_gateway(port=0, models=[first, {**second, "required": True}])

    def read(**fields: Any) -> list[str]:
        (tokens,) = answer(http, "/tokenize", inputs="w1", add_special_tokens=False, **fields)
        return [token["text"] for token in tokens]

    with gateway.client() as http:
        assert read() == read(model="a") == read(model="b") == ["w1"]
        assert read(model="b", input_type="query") == read(model="ask") == ["w7", "w8", "w1"]
        assert read(model="ask", prompt_name="other") == ["w9", "w1"]
        assert read(model="b", instruction="w5") == ["w5", "w1"]
        assert answer(http, "/decode", ids=[101], model="b") == ["w1"]
        for path, body in (("/tokenize", {"inputs": "w1"}), ("/decode", {"ids": [101]})):
            unknown = http.post(path, json={**body, "model": "c"})
            assert (unknown.status_code, unknown.json()["error_type"]) == (404, "Validation")
        # as the embedding of the same fields: twice the prompt is once the prompt
        (tokens,) = answer(http, "/tokenize", inputs="w7 w8 w1", model="ask")
        counted = http.post("/v1/embeddings", json={"model": "ask", "input": "w7 w8 w1"}).json()
        assert len(tokens) == counted["usage"]["prompt_tokens"] == 5


def test_info_and_probes(http: httpx.Client) -> None:
    """`/info` tells the model and its limits; probes answer 200."""
    info = http.get("/info").json()
    expected = {
        "model_id": "m3",
        "model_dtype": "float32",
        "max_input_length": 64,
        "auto_truncate": True,
    }
    assert {name: info[name] for name in expected} == expected
    assert info["model_type"] == {"embedding": {"pooling": "cls"}}
    for path in ("/", "/health", "/ping"):
        assert http.get(path).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/embed", {"inputs": []}, 400, "Empty"),
        ("/", {"inputs": []}, 400, "Empty"),
        ("/embed_sparse", {"inputs": []}, 400, "Empty"),
        ("/rerank", {"query": "w1", "texts": []}, 400, "Empty"),
        ("/similarity", {"inputs": {"source_sentence": "w1", "sentences": []}}, 400, "Empty"),
        ("/tokenize", {"inputs": []}, 400, "Empty"),
        ("/embed", {"inputs": ""}, 400, "Empty"),
        ("/embed_all", {"inputs": ["w1", ""]}, 400, "Empty"),
        ("/similarity", {"inputs": {"source_sentence": "", "sentences": ["w1"]}}, 400, "Empty"),
        ("/rerank", {"query": "", "texts": ["w1", ""]}, 400, "Empty"),
        (
            "/rerank",
            {"query": "w1", "texts": ["w1"], "truncation_direction": "up"},
            422,
            "Validation",
        ),
        ("/embed", {"inputs": 7}, 422, "Validation"),
        ("/embed", {"inputs": "w1", "truncate": 1}, 422, "Validation"),
        ("/embed", {"inputs": "w1", "prompt_name": "nobody"}, 422, "Validation"),
        ("/embed", {"inputs": "w1", "dimensions": 7}, 422, "Validation"),
        ("/embed_sparse", {}, 422, "Validation"),
        ("/embed_all", {"inputs": []}, 400, "Empty"),
        ("/embed_all", {"inputs": "fault-nan"}, 424, "Backend"),
        ("/embed", {"inputs": ["w1"] * 2049}, 422, "Validation"),
        ("/rerank", {"query": 7, "texts": ["w1"]}, 422, "Validation"),
        ("/decode", {"ids": [9_999_999]}, 422, "Validation"),
        ("/decode", {"ids": "w1"}, 422, "Validation"),
        ("/tokenize", {"inputs": "w1", "model": 7}, 422, "Validation"),
        ("/embed", {"inputs": "w1", "model": {"a": {"b": [[[[[[[]]]]]]]}}}, 422, "Validation"),
        ("/embed", {"inputs": "fault-nan"}, 424, "Backend"),
        ("/embed", {"inputs": "w" * (2 << 20)}, 413, "Validation"),
    ],
)
def test_errors(
    http: httpx.Client, path: str, body: dict[str, Any], status: int, kind: str
) -> None:
    """Errors have TEI's body and status."""
    response = http.post(path, json=body)
    assert (response.status_code, response.json()["error_type"]) == (status, kind)
    assert response.json().keys() == {"error", "error_type"}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/embed", {"inputs": ["w1"] * 2049}, "inputs has 2049 items"),
        ("/embed", {"inputs": ["w1", "w1 " * 63], "truncate": False}, "inputs[1]"),
        ("/embed", {"inputs": ["w1", "fault-nan"]}, "inputs[1]"),
        ("/embed_all", {"inputs": ["w1", "fault-nan"]}, "inputs[1]"),
        ("/embed", {"inputs": [[1], [9_999_999]]}, "inputs[1]"),
        (
            "/similarity",
            {"inputs": {"source_sentence": "w1", "sentences": ["w1", "fault-nan"]}},
            "sentences[1]",
        ),
        (
            "/similarity",
            {"inputs": {"sentences": ["w1"]}},
            "inputs.source_sentence: this field is required",
        ),
        ("/embed", {"inputs": "w1 " * 63, "truncate": False}, "set truncate to true"),
        ("/rerank", {"query": "w1", "texts": ["w1"] * 2049}, "texts has 2049 items"),
        ("/rerank", {"query": "w1", "texts": ["w1", "w1 " * 63], "truncate": False}, "texts[1]"),
        (
            "/rerank",
            {"query": "w1 " * 63, "texts": ["w1"], "truncate": False},
            "the query leaves no room",
        ),
        ("/rerank", {"query": "w1", "texts": ["w1", "fault-nan"]}, "texts[1]"),
    ],
)
def test_errors_name_teis_fields(
    http: httpx.Client, path: str, body: dict[str, Any], words: str
) -> None:
    """A complaint of the core names the field that was sent, and the place in it."""
    assert words in http.post(path, json=body).json()["error"]


def test_other_methods(http: httpx.Client) -> None:
    """A wrong method is a 405 in TEI's shape as well."""
    response = http.get("/embed_sparse")
    assert (response.status_code, set(response.json())) == (405, {"error", "error_type"})


def test_errors_of_load(start_gateway: Callable[..., RunningGateway]) -> None:
    """A full queue is 429 Overloaded, a model that is loading 503 Unhealthy."""
    gateway = start_gateway(engine="fake", model_name="fake", port=0, max_concurrent_requests=1)
    with gateway.client() as client, gateway.gateway.service.requests.admit(1):
        response = client.post("/embed", json={"inputs": "w1"})
    assert (response.status_code, response.json()["error_type"]) == (429, "Overloaded")
    gateway.stop()
    gateway = start_gateway(
        engine="fake", model_name="fake", port=0, wait=False, engine_args={"load_s": 3600}
    )
    with gateway.client() as client:
        response = client.post("/embed", json={"inputs": "w1"})
    assert (response.status_code, response.json()["error_type"]) == (503, "Unhealthy")
    gateway.stop()


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/tokenize", {"inputs": ["w1"] * 11}, "inputs has 11 items"),
        ("/tokenize", {"inputs": "w1 " * 60}, "more than 50 tokens"),
        ("/tokenize", {"inputs": "w" * 500}, "more than 50 tokens"),
        ("/decode", {"ids": [[1]] * 11}, "ids has 11 items"),
        ("/decode", {"ids": [1] * 60}, "more than 50 tokens"),
        ("/embed", {"inputs": "w" * 500}, "more than 50 tokens"),
    ],
)
def test_everything_is_bounded(
    shared_gateway: Callable[..., RunningGateway], path: str, body: dict[str, Any], words: str
) -> None:
    """Routes that compute no vectors obey a request's limits; very long texts go unread."""
    gateway = shared_gateway(
        engine="fake", model_name="fake", port=0, max_inputs=10, max_request_tokens=50
    )
    with gateway.client() as client:
        response = client.post(path, json=body)
    assert (response.status_code, response.json()["error_type"]) == (422, "Validation")
    assert words in response.json()["error"]

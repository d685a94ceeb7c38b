"""Cohere's `/v2/embed`, in all formats."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embedding_service.service.vectors import quantise
from embedding_service.types import EmbedDtype
from tests.calls import unit_vectors, watch_engine
from tests.conftest import FAKE, client_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from tests.conftest import RunningGateway

TEXTS = ["w1 w2", "w3", "w4 w5"]
TYPES = ["float", "int8", "uint8", "binary", "ubinary", "base64"]


PROMPTS = {"query": "w7 ", "document": "w8 "}
http = client_of(**FAKE, matryoshka=True, max_model_len=64, engine_args={"prompts": PROMPTS})


def embed(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = http.post("/v2/embed", json={"model": "fake", "texts": TEXTS, **fields})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_floats_by_default(http: httpx.Client) -> None:
    """Without `embedding_types` the answer holds floats, and everything that Cohere's has."""
    body = embed(http)
    assert body.keys() == {"id", "embeddings", "texts", "meta", "response_type"}
    assert body["texts"] == TEXTS
    assert body["response_type"] == "embeddings_by_type"
    assert body["meta"]["api_version"] == {"version": "2"}
    assert body["meta"]["billed_units"] == {
        "input_tokens": sum(len(text.split()) + 2 for text in TEXTS)
    }
    assert body["embeddings"].keys() == {"float"}
    np.testing.assert_allclose(body["embeddings"]["float"], unit_vectors(*TEXTS), atol=1e-6)


def test_the_first_version_has_a_bare_list(http: httpx.Client) -> None:
    """`/v1/embed` gives lists of floats without a model's name or a word about types."""
    answer = http.post("/v1/embed", json={"texts": TEXTS, "input_type": None})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body.keys() == {"id", "embeddings", "texts", "meta", "response_type"}
    assert body["response_type"] == "embeddings_floats"
    assert body["meta"]["api_version"] == {"version": "1"}
    np.testing.assert_allclose(body["embeddings"], unit_vectors(*TEXTS), atol=1e-6)
    typed = http.post("/v1/embed", json={"texts": TEXTS, "embedding_types": ["int8"]}).json()
    assert typed["response_type"] == "embeddings_by_type"
    assert typed["embeddings"] == embed(http, embedding_types=["int8"])["embeddings"]
    wrong = http.post("/v1/embed", json={"texts": []})
    assert wrong.status_code == 400
    assert wrong.json().keys() == {"message"}


def test_all_six_types_of_the_same_vectors(http: httpx.Client) -> None:
    """Each type is made of the same unit vectors: 127 steps, or a sign a bit, highest bit first."""
    kinds = embed(http, embedding_types=TYPES)["embeddings"]
    assert list(kinds) == TYPES
    units = unit_vectors(*TEXTS)
    np.testing.assert_allclose(kinds["float"], units, atol=1e-6)
    steps = np.rint(units * np.float32(127))
    np.testing.assert_array_equal(kinds["int8"], steps)
    np.testing.assert_array_equal(kinds["uint8"], steps + 128)
    bits = (units > 0).reshape(len(TEXTS), -1, 8) @ [128, 64, 32, 16, 8, 4, 2, 1]
    np.testing.assert_array_equal(kinds["ubinary"], bits)
    np.testing.assert_array_equal(kinds["binary"], bits - 128)
    decoded = [np.frombuffer(base64.b64decode(text), "<f4") for text in kinds["base64"]]
    np.testing.assert_allclose(decoded, units, atol=1e-6)


@pytest.mark.parametrize(
    ("input_type", "prompt"),
    [
        ("search_query", "w7"),
        ("search_document", "w8"),
        ("classification", "w8"),
        ("clustering", "w8"),
        (None, ""),
    ],
)
def test_input_types_select_prompts(
    http: httpx.Client, input_type: str | None, prompt: str
) -> None:
    """A query gets the query prompt, everything else the document prompt."""
    vectors = embed(http, input_type=input_type)["embeddings"]["float"]
    np.testing.assert_allclose(
        vectors, unit_vectors(*(f"{prompt} {text}" for text in TEXTS)), atol=1e-6
    )


def test_shorter_vectors(http: httpx.Client) -> None:
    """`output_dimension` cuts and renormalises before any format is made."""
    kinds = embed(http, output_dimension=8, embedding_types=["float", "int8", "ubinary"])[
        "embeddings"
    ]
    floats = np.array(kinds["float"], np.float32)
    assert floats.shape == (3, 8)
    np.testing.assert_allclose(np.linalg.norm(floats, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(kinds["int8"], quantise(floats, EmbedDtype.INT8))
    assert np.array(kinds["ubinary"]).shape == (3, 1)


def test_truncation(http: httpx.Client) -> None:
    """END, which is the default, and START cut; NONE refuses."""
    text = "w1 " * 62 + "w2 " * 62
    for fields, kept in (({}, "w1"), ({"truncate": "END"}, "w1"), ({"truncate": "START"}, "w2")):
        vectors = embed(http, texts=[text], **fields)["embeddings"]["float"]
        np.testing.assert_allclose(vectors, unit_vectors(f"{kept} " * 62), atol=1e-6)
    refused = http.post("/v2/embed", json={"model": "fake", "texts": [text], "truncate": "NONE"})
    assert refused.status_code == 400


RANGES = {"min": np.linspace(-0.3, -0.1, 8).tolist(), "max": np.linspace(0.5, 0.1, 8).tolist()}


@pytest.fixture(scope="module")
def calibrated(
    start_gateway: Callable[..., RunningGateway], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningGateway]:
    """Return a gateway with int8 and uint8 calibrated for eight dimensions, one constant."""
    file = tmp_path_factory.mktemp("calibration") / "ranges.json"
    file.write_text(json.dumps({**RANGES, "max": [*RANGES["max"][:-1], RANGES["min"][-1]]}))
    gateway = start_gateway(**FAKE, matryoshka=True, calibration_file=file)
    yield gateway
    gateway.stop()


@pytest.mark.engine
def test_calibrated_formats_are_those_of_sentence_transformers(calibrated: RunningGateway) -> None:
    """Calibrated int8 and uint8 are what `quantize_embeddings` makes, out of range too."""
    from sentence_transformers.util.quantization import quantize_embeddings

    texts = [f"w{i}" for i in range(50)]
    with calibrated.client() as http:
        kinds = embed(http, texts=texts, output_dimension=8, embedding_types=TYPES)["embeddings"]
        openai = {"model": "fake", "input": texts, "dimensions": 8, "embed_dtype": "int8"}
        data = http.post("/v1/embeddings", json=openai).json()["data"]
    floats = np.array(kinds["float"], np.float32)
    ranges = np.array([RANGES["min"], [*RANGES["max"][:-1], RANGES["min"][-1]]], np.float32)
    assert (floats < ranges[0]).any()
    assert (floats > ranges[1]).any()
    for precision in ("int8", "uint8", "binary", "ubinary"):
        expected = quantize_embeddings(floats, precision=precision, ranges=ranges)
        np.testing.assert_array_equal(kinds[precision], expected, precision)
    assert [item["embedding"] for item in data] == kinds["int8"]


@pytest.mark.parametrize("fields", [{}, {"output_dimension": 16}])
@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_a_calibration_is_for_its_dimension_alone(
    calibrated: RunningGateway, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], kind: str
) -> None:
    """Vectors of another size are a 400 by the field, before any work; other formats are served."""
    seen = watch_engine(calibrated, "fake", monkeypatch)
    request = {"model": "fake", "texts": TEXTS, "embedding_types": ["float", kind], **fields}
    with calibrated.client() as http:
        answer = http.post("/v2/embed", json=request)
        assert answer.status_code == 400
        assert "set output_dimension to 8" in answer.json()["message"]
        assert seen == []
        embed(http, embedding_types=["float", "binary", "base64"], **fields)


def test_all_formats_count_towards_the_answers_size(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    """An answer that fits in one format is refused in five, from the count of numbers."""
    gateway = start_gateway(**FAKE, max_response_bytes=2000)
    with gateway.client() as http:
        embed(http)
        answer = http.post(
            "/v2/embed", json={"model": "fake", "texts": TEXTS, "embedding_types": TYPES}
        )
    assert (answer.status_code, "the answer would have" in answer.json()["message"]) == (400, True)
    gateway.stop()


@pytest.mark.parametrize(
    ("fields", "status", "word"),
    [
        ({"texts": []}, 400, "texts"),
        ({"texts": [""]}, 400, "texts"),
        ({"texts": None}, 400, "texts"),
        ({"embedding_types": ["int4"]}, 400, "embedding_types"),
        ({"input_type": "query"}, 400, "input_type"),
        ({"truncate": "MIDDLE"}, 400, "truncate"),
        ({"output_dimension": 0}, 400, "output_dimension"),
        ({"output_dimension": 33}, 400, "output_dimension"),
        ({"texts": ["w1", "w1 " * 63], "truncate": "NONE"}, 400, "texts[1]"),
        ({"texts": ["w1"] * 2049}, 400, "texts has 2049"),
        ({"model": "nobody"}, 404, "nobody"),
        ({"texts": ["w1", "fault-nan"]}, 500, "texts[1]"),
    ],
)
def test_errors(http: httpx.Client, fields: dict[str, Any], status: int, word: str) -> None:
    """Errors are `message` alone, and name the field."""
    answer = http.post("/v2/embed", json={"model": "fake", "texts": TEXTS, **fields})
    assert (answer.status_code, list(answer.json())) == (status, ["message"])
    assert word in answer.json()["message"]


def test_rerank_has_the_same_envelope(http: httpx.Client) -> None:
    """`/v2/rerank` is Cohere's as well."""
    answer = http.post("/v2/rerank", json={"model": "nobody", "query": "w1", "documents": ["w2"]})
    assert (answer.status_code, list(answer.json())) == (404, ["message"])

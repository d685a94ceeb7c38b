"""The preset matching-service, request by request."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from embedding_service import __version__
from embedding_service.dropin.model_info import model_checksum
from embedding_service.engine.identity import LoadedModel
from embedding_service.service.prompts import Encoder
from embedding_service.service.vector_space import vector_space
from embedding_service.worker.fake import FakeBackend
from tests.calls import unit_vectors

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from embedding_service.settings.gateway import Settings
    from tests.conftest import RunningGateway

MODEL = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
IDENTITY = {"model_version", "model_checksum"}
VECTOR = {"embedding", "dimensions", "cached"} | IDENTITY
FLAT = {
    "title": "w1 w2",
    "description": "w3",
    "requirement": {"этаж": 5, "балкон": None, "ремонт": "w4"},
    "price": 10_000_000,
    "district": "Центр",
    "rooms": 3,
    "area": 45,
    "address": "Невский 1",
}
PREPARED = (
    "Название: w1 w2. Описание: w3. Требования: этаж: 5, ремонт: w4. "
    "Параметры: цена 10,000,000₽, район Центр, 3-комнатная, площадь 45.0м², адрес: Невский 1"
)


PRESET = "matching-service"


def test_embed(http: httpx.Client) -> None:
    """A text becomes a vector; the second time it comes from the cache."""
    first, second = (http.post("/embed", json={"text": "w11 w12"}).json() for _ in range(2))
    assert first.keys() == VECTOR
    np.testing.assert_allclose(first["embedding"], unit_vectors("w11 w12")[0], atol=1e-6)
    assert (first["dimensions"], first["cached"], second["cached"]) == (32, False, True)
    assert second["embedding"] == first["embedding"]


@pytest.mark.parametrize(
    "body", [{}, {"text": ""}, {"text": None}, {"text": 7}, {"text": "w" * 10_001}]
)
def test_wrong_texts(http: httpx.Client, body: dict[str, Any]) -> None:
    """No text, an empty one or more than 10,000 characters are a 400 with a detail."""
    answer = http.post("/embed", json=body)
    assert (answer.status_code, list(answer.json())) == (400, ["detail"])


def test_prepare_and_embed(http: httpx.Client) -> None:
    """A record becomes the documented text, and that text's vector."""
    body = http.post("/prepare-and-embed", json=FLAT).json()
    assert body.keys() == VECTOR | {"prepared_text"}
    assert body["prepared_text"] == PREPARED
    assert body["embedding"] == http.post("/embed", json={"text": PREPARED}).json()["embedding"]


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"title": "w1"}, "Название: w1"),
        ({"title": " ", "description": "w1"}, "Название:  . Описание: w1"),
        ({"title": "a", "description": "\n"}, "Название: a. Описание: \n"),
        ({"title": "", "district": " w1 "}, "Параметры: район  w1 "),
        ({"requirement": {"a": "", "b": " c", "d": True}}, "Требования: a: , b:  c, d: True"),
        (
            {"requirement": {"a": [1, "b"], "c": {"d": 1.0}}},
            "Требования: a: [1, 'b'], c: {'d': 1.0}",
        ),
        ({"price": 0.5, "rooms": 100}, "Параметры: цена 0₽, 100-комнатная"),
        ({"price": 1.5, "rooms": "3"}, "Параметры: цена 2₽, 3-комнатная"),
        ({"price": 0, "rooms": 0, "area": 0}, "Параметры: цена 0₽, 0-комнатная, площадь 0.0м²"),
        ({"area": 45.25, "address": None}, "Параметры: площадь 45.25м²"),
        ({"requirement": {"a": None, "b": 0}}, "Требования: b: 0"),
        ({"title": "w1", "requirement": {"a": None}}, "Название: w1"),
        ({"price": 1234567.0, "unknown": "x"}, "Параметры: цена 1,234,567₽"),
        ({"title": "w1 {price}"}, "Название: w1 {price}"),
    ],
)
def test_prepared_texts(http: httpx.Client, record: dict[str, Any], text: str) -> None:
    """Absent parts and null requirements are left out, zeros are printed, an area is a float."""
    assert http.post("/prepare-and-embed", json=record).json()["prepared_text"] == text


@pytest.mark.parametrize(
    "value",
    ["w" * 2_400_001, ["w" * 1_300_000] * 2, {"a" * 1_300_000: {"b" * 1_300_000: 1}}],
    ids=["text", "list", "names"],
)
def test_a_mapping_is_counted_before_it_is_text(http: httpx.Client, value: Any) -> None:
    """Whatever the values of a requirement are, a text of more than 300,000 tokens is not made."""
    item = {"entity_id": "1", "requirement": {"x": value}}
    for path, body in (("/prepare-and-embed", item), ("/batch", {"items": [item]})):
        answer = http.post(path, json=body)
        assert answer.status_code == 400
        assert "more than 300000 tokens" in answer.json()["detail"]


@pytest.mark.parametrize(
    "value", [{str(n): n for n in range(5000)}, {"x": [0] * 5000}, {"x": [[0] * 2500] * 2}]
)
def test_a_mapping_has_few_values(http: httpx.Client, value: Any) -> None:
    """More values than anybody could mean, nested ones included, are refused by the field's name."""
    answer = http.post("/prepare-and-embed", json={"requirement": value})
    assert answer.status_code == 400
    assert answer.json()["detail"] == "requirement: holds more than 4096 values; send fewer"


def test_nested_values_are_written_as_python_does(http: httpx.Client) -> None:
    """The original wrote lists and objects in a requirement as Python shows them."""
    record = {"requirement": {"a": ["w1", 2, None], "b": {"c": True}}}
    answer = http.post("/prepare-and-embed", json=record)
    assert answer.json()["prepared_text"] == "Требования: a: ['w1', 2, None], b: {'c': True}"


def test_over_long_items_fail_alone_however_many(http: httpx.Client) -> None:
    """Items that are too long take no room from the others."""
    long = {"requirement": {"x": "w1 " * 10_000}}
    items = [{"entity_id": str(number), **long} for number in range(120)]
    answer = http.post("/batch", json={"items": [*items, {"entity_id": "last", "title": "w1"}]})
    results = answer.json()["results"]
    assert [result["success"] for result in results] == [False] * 120 + [True]
    assert "30015 characters" in results[0]["error"]


@pytest.mark.parametrize(
    "record", [{}, {"title": ""}, {"title": None, "requirement": {}}, {"requirement": {"a": None}}]
)
def test_an_empty_record(http: httpx.Client, record: dict[str, Any]) -> None:
    """A record that says nothing is a 400 in the original's words."""
    answer = http.post("/prepare-and-embed", json=record)
    assert (answer.status_code, answer.json()) == (400, {"detail": "All fields are empty"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("title", "w" * 501),
        ("description", "w" * 5001),
        ("title", 7),
        ("requirement", "w1"),
        ("price", "much"),
        ("rooms", 1.5),
        ("rooms", -1),
        ("rooms", 101),
        ("price", -0.01),
        ("area", -1),
        ("district", "w" * 201),
        ("address", "w" * 501),
        ("rooms", True),
        ("area", []),
    ],
)
def test_fields_have_types(http: httpx.Client, field: str, value: Any) -> None:
    """A field of another type or length is a 400 that names it."""
    answer = http.post("/prepare-and-embed", json={field: value})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith(field)


@pytest.mark.parametrize(
    ("item", "detail"),
    [
        ({"title": "w1"}, "items[1].entity_id: this field"),
        ({"entity_id": "2", "price": "much"}, "items[1].price: "),
    ],
)
def test_an_items_field_is_named(http: httpx.Client, item: dict[str, Any], detail: str) -> None:
    """A fault in one of several records is told with its place and its field."""
    items = [{"entity_id": "1", "title": "w1"}, item]
    assert http.post("/batch", json={"items": items}).json()["detail"].startswith(detail)


@pytest.mark.parametrize("path", ["/batch", "/reindex-batch"])
@pytest.mark.parametrize("name", ["items", "entities"])
def test_batch(http: httpx.Client, path: str, name: str) -> None:
    """Items come back in the order sent, also where ids repeat; an empty one fails alone."""
    records = [{"title": "w21"}, {}, {"title": "w22"}, {"title": "w21"}]
    ids = ["b", "a", "b", "c"]
    sent = [{"entity_id": i, **record} for i, record in zip(ids, records, strict=True)]
    body = http.post(path, json={name: sent}).json()
    counts = {"total": 4, "successful": 3, "success": 3, "failed": 1, "dimensions": 32}
    assert {key: body[key] for key in counts} == counts
    assert body.keys() == {"results", "cached_count", *counts, *IDENTITY}
    assert [result["entity_id"] for result in body["results"]] == ids
    for result, record in zip(body["results"], records, strict=True):
        assert result.keys() == {"entity_id", "embedding", "success", "error", "cached"}
        if record:
            assert (result["success"], result["error"]) == (True, None)
            np.testing.assert_allclose(
                result["embedding"], unit_vectors(f"Название: {record['title']}")[0], atol=1e-6
            )
        else:
            assert result == {
                "entity_id": "a",
                "embedding": [],
                "success": False,
                "error": "All fields are empty",
                "cached": False,
            }
    again = http.post(path, json={name: sent}).json()
    assert again["cached_count"] == 3


def test_a_batch_of_empty_items(http: httpx.Client) -> None:
    """A batch in which all items fail is answered as any other."""
    body = http.post("/batch", json={"items": [{"entity_id": "1"}]}).json()
    assert (body["total"], body["success"], body["failed"], body["dimensions"]) == (1, 0, 1, 32)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"items": []},
        {"entities": []},
        {"items": [{"entity_id": "1"}], "entities": [{"entity_id": "1"}]},
        {"items": [{"title": "w1"}]},
        {"items": [{"entity_id": "1", "title": 7}]},
        {"items": [{"entity_id": "1", "title": "w1"}] * 129},
    ],
)
@pytest.mark.parametrize("path", ["/batch", "/reindex-batch"])
def test_wrong_batches(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    """An empty list, both names, an item without id or of wrong type, or 129 items are a 400."""
    answer = http.post(path, json=body)
    assert (answer.status_code, list(answer.json())) == (400, ["detail"])


def test_reindex(http: httpx.Client) -> None:
    """A stored record's new vector comes with the documented message."""
    body = http.post("/reindex", json={"entity_id": "7", "entity_type": "flat", **FLAT}).json()
    assert body.keys() == (VECTOR | {"entity_id", "entity_type", "prepared_text", "message"})
    assert (body["entity_id"], body["entity_type"], body["prepared_text"]) == (
        "7",
        "flat",
        PREPARED,
    )
    assert body["message"] == "Reindex successful for flat '7'. Update embedding in your database."
    assert http.post("/reindex", json={"entity_id": "7", "entity_type": "flat"}).status_code == 400
    assert http.post("/reindex", json={"entity_id": "7", **FLAT}).json()["entity_type"] == "lead"


def test_health(http: httpx.Client) -> None:
    """Health has the documented fields."""
    body = http.get("/health").json()
    expected = {"status": "healthy", "model": MODEL, "dimensions": 32, "cache_enabled": True}
    assert {name: body[name] for name in expected} == expected
    assert body.keys() == {*expected, "version", "model_checksum", "cache_size"}
    assert body["version"] == __version__


def test_the_service_describes_itself(http: httpx.Client) -> None:
    """`GET /` has the documented fields."""
    body = http.get("/").json()
    assert {"service", "version", "type", "description", "model", "model_checksum"} <= body.keys()
    assert body["limits"] == {
        "max_batch_size": 128,
        "max_text_length": 10_000,
        "rate_limit": "100/minute",
        "rate_limit_batch": "20/minute",
    }
    assert body["cache"] == {"enabled": True, "ttl_seconds": 3600, "max_size": 10_000}
    assert "POST /prepare-and-embed" in body["endpoints"]


@pytest.mark.parametrize("path", ["/", "/model-info", "/cache/stats"])
def test_whole_numbers_are_integers(http: httpx.Client, path: str) -> None:
    """A client with typed fields takes `3600` for an integer, and `3600.0` for none."""
    text = http.get(path).text
    for name in ("max_batch_size", "max_text_length", "ttl_seconds", "max_size", "current_size"):
        assert not re.search(rf'"{name}":\d+\.', text), text
    if path == "/model-info":
        assert '"encode_timeout_seconds":30.0' in text  # a float in the original, too


def test_metrics_have_the_originals_names(http: httpx.Client) -> None:
    """Its dashboards find their series beside ours."""
    http.post("/embed", json={"text": "w91"})
    http.post("/embed", json={"text": ""})
    text = http.get("/metrics").text
    for series in (
        'embedding_requests_total{endpoint="/embed",status="success"} ',
        'embedding_requests_total{endpoint="/embed",status="error"} ',
        'embedding_requests_total{route="/embed",status="200"} ',
        'embedding_request_latency_seconds_bucket{endpoint="/embed",le="+Inf"} ',
        'embedding_request_latency_seconds_count{endpoint="/embed"} ',
        "embedding_model_loaded 1.0",
        "embedding_active_requests ",
        'embedding_encode_failures_total{reason="timeout"} 0.0',
        "embedding_cache_hits_total ",
    ):
        assert series in text, series
    for family in text_string_to_metric_families(text):
        assert family.samples or family.name
    assert text.count("# TYPE embedding_requests_total counter") == 1


def test_model_info(http: httpx.Client) -> None:
    """Model info has the documented fields, with SQL for vectors of this size."""
    body = http.get("/model-info").json()
    assert body.keys() == {
        *(
            "model_name",
            "model",
            "model_version",
            "model_checksum",
            "dimensions",
            "model_load_time_seconds",
        ),
        *("limits", "cache", "sql_examples"),
    }
    assert body["cache"].keys() == {"enabled", "current_size", "max_size", "ttl_seconds"}
    assert body["sql_examples"].keys() >= {"extension", "column", "index", "search"}
    assert body["limits"] == {
        "max_batch_size": 128,
        "max_text_length": 10_000,
        "encode_timeout_seconds": 30,
        "title": 500,
        "description": 5000,
        "district": 200,
        "address": 500,
    }
    assert body["model_load_time_seconds"] > 0
    assert "vector(32)" in str(body["sql_examples"])


def test_the_cache_is_told_and_cleared(http: httpx.Client) -> None:
    """Statistics have the documented fields, and clearing says how much was forgotten."""
    http.post("/embed", json={"text": "w31"})
    stats = http.get("/cache/stats").json()
    assert (stats["enabled"], stats["max_size"], stats["ttl_seconds"]) == (True, 10_000, 3600)
    assert stats["current_size"] >= 1
    assert 0 < stats["utilization_percent"] < 100
    cleared = http.post("/cache/clear").json()
    assert cleared["cleared"] == stats["current_size"]
    assert cleared["message"]
    assert http.get("/cache/stats").json()["current_size"] == 0


def test_browsers_may_call(http: httpx.Client) -> None:
    """Any origin may call, as before."""
    answer = http.get("/health", headers={"origin": "https://example.org"})
    assert answer.headers["access-control-allow-origin"] == "*"


def test_the_checksum_follows_what_determines_the_vectors(
    preset_settings: Callable[..., Settings], gateway: RunningGateway
) -> None:
    """Equal settings have equal checksums in any process; another model, length, prompt another."""
    (served,) = gateway.gateway.service.models

    def checksum(**options: Any) -> str:
        settings = preset_settings("matching-service", **options)
        (model,) = settings.served_models
        core = FakeBackend(model)  # what a worker would load, and then say of it
        engine = SimpleNamespace(loaded=LoadedModel.of(model, core.facts(32), core.tokenizer_json))
        encoder = Encoder(core.facts(32), core.tokenizer_json, model)
        other = replace(served, options=model, engine=engine, encoder=encoder)
        other.space = vector_space(other, encoder, settings)
        return model_checksum(settings, other)

    with gateway.client() as http:
        here = http.get("/health").json()["model_checksum"]
    assert len(here) == 12
    assert checksum(max_batch_size=4, cache_max_bytes=0, runtime_dir=None) == here
    settings: list[dict[str, Any]] = [
        {"model_name": "other"},
        {"revision": "abc"},
        {"max_model_len": 64},
        {"default_truncate": "left"},
        {"instruction_template": "{instruction}: "},
        {"engine_args": {"prompts": {"query": "q: "}}},
        {"environ": {"EMBEDDING_MODEL": "mine"}},
    ]
    assert len({here, *(checksum(**options) for options in settings)}) == 1 + len(settings)
    legacy = hashlib.md5(f"{MODEL}:32".encode()).hexdigest()[:12]
    assert checksum(model_checksum="legacy") == legacy


def test_the_old_variables(start_preset: Callable[..., RunningGateway]) -> None:
    """The original's variables set what they set there; API_KEY is checked now."""
    environ = {
        "EMBEDDING_MODEL": "mine",
        "MAX_BATCH_SIZE": "2",
        "MAX_TEXT_LENGTH": "20",
        "CACHE_ENABLED": "false",
        "CACHE_TTL_SECONDS": "60",
        "CACHE_MAX_SIZE": "5",
        "MAX_CONCURRENT_REQUESTS": "4",
        "ENCODE_TIMEOUT_SECONDS": "9",
        "ALLOWED_ORIGINS": "https://a.example,https://b.example",
        "API_KEY": "secret",
    }
    gateway = start_preset("matching-service", environ=environ)
    settings = gateway.settings
    assert (settings.model_name, settings.max_inputs, settings.max_text_characters) == (
        "mine",
        2,
        20,
    )
    assert (settings.cache_max_bytes, settings.cache_ttl_s, settings.cache_max_entries) == (
        0,
        60,
        5,
    )
    assert settings.request_timeout_s == 9
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    with gateway.client() as http:
        refused = http.post("/embed", json={"text": "w1"})
        assert (refused.status_code, list(refused.json())) == (401, ["detail"])
    with gateway.client(headers={"x-api-key": "secret"}) as http:
        assert http.get("/cache/stats").json()["enabled"] is False
        items = [{"entity_id": "1", "title": "w1"}, {"entity_id": "2", "title": "w2 " * 10}]
        body = http.post("/batch", json={"items": items}).json()
        assert [result["success"] for result in body["results"]] == [True, False]
        assert "20" in body["results"][1]["error"]
    gateway.stop()


def test_the_cache_has_as_many_entries_as_it_may(
    start_preset: Callable[..., RunningGateway],
) -> None:
    """CACHE_MAX_SIZE bounds the entries; the oldest goes first."""
    gateway = start_preset("matching-service", environ={"CACHE_MAX_SIZE": "2"})
    with gateway.client() as http:
        for text in ("w1", "w2", "w3"):
            http.post("/embed", json={"text": text})
        stats = http.get("/cache/stats").json()
        assert (stats["current_size"], stats["max_size"], stats["utilization_percent"]) == (
            2,
            2,
            100,
        )
        assert http.post("/embed", json={"text": "w1"}).json()["cached"] is False
        assert http.post("/embed", json={"text": "w3"}).json()["cached"] is True
    gateway.stop()


def test_rates(start_preset: Callable[..., RunningGateway]) -> None:
    """Each route has a counter of its own, and a used-up one is told in the original's words."""
    gateway = start_preset(
        "matching-service", environ={"RATE_LIMIT": "3/minute", "RATE_LIMIT_BATCH": "1/minute"}
    )
    with gateway.client() as http:
        items = {"items": [{"entity_id": "1", "title": "w1"}]}
        assert [http.post("/batch", json=items).status_code for _ in range(2)] == [200, 429]
        assert [http.post("/reindex-batch", json=items).status_code for _ in range(2)] == [200, 429]
        flat = [http.post("/prepare-and-embed", json={"title": "w1"}) for _ in range(4)]
        assert [answer.status_code for answer in flat] == [200, 200, 200, 429]
        answers = [http.post("/embed", json={"text": "w1"}) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert list(answers[3].json()) == ["error"]
        assert answers[3].json()["error"].startswith("Rate limit exceeded: ")
        assert answers[3].headers["retry-after"]
        assert http.get("/health").status_code == 200
        assert http.get("/metrics").text.startswith("# HELP")
    gateway.stop()

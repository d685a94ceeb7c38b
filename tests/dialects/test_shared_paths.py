"""Paths that several dialects have: without a preset, the field that is sent decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import client_of
from tests.dialects.test_rerank import MODELS

if TYPE_CHECKING:
    import httpx


http = client_of(**MODELS)


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/embed", {"text": "w1"}, "embedding"),
        ("/embed", {"texts": ["w1"]}, "embeddings"),
        ("/embed", {"inputs": "w1"}, list),
        ("/rerank", {"query": "w1", "texts": ["w2"]}, list),
        ("/rerank", {"model": "cross", "query": "w1", "documents": ["w2"]}, "results"),
        (
            "/rerank",
            {"model": "cross", "pairs": [{"query": "w1", "document": "w2"}]},
            "processing_time",
        ),
    ],
)
def test_the_field_decides(http: httpx.Client, path: str, body: dict[str, Any], kind: Any) -> None:
    """Each dialect's request gets that dialect's answer."""
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert isinstance(answer.json(), kind) if isinstance(kind, type) else kind in answer.json()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {}),
        ("/embed", {"text": "w1", "texts": ["w1"]}),
        ("/embed", {"inputs": "w1", "text": "w1"}),
        ("/rerank", {"model": "cross", "query": "w1"}),
        ("/rerank", {"query": "w1", "texts": ["w2"], "documents": ["w2"]}),
    ],
)
def test_ambiguous_bodies(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    """None of the fields or fields of two dialects are refused with a list of them."""
    answer = http.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("send exactly one of")
    assert "texts" in answer.text


def test_errors_follow_the_field(http: httpx.Client) -> None:
    """Once it is clear which dialect is spoken, errors are written in it."""
    assert set(http.post("/embed", json={"inputs": 7}).json()) == {"error", "error_type"}
    assert http.post("/embed", json={"texts": 7}).json()["error"]["param"] == "texts"
    assert http.post("/rerank", json={"texts": 7}).json().keys() == {"error", "error_type"}
    assert http.post("/rerank", json={"documents": 7}).json()["error"]["param"] == "documents"


def test_records_without_a_preset(http: httpx.Client) -> None:
    """The default template joins title and description; further fields are ignored."""
    body = http.post(
        "/prepare-and-embed", json={"title": "w1", "description": "w2", "price": 3}
    ).json()
    assert body["prepared_text"] == "w1. w2"
    empty = http.post("/prepare-and-embed", json={})
    assert (empty.status_code, empty.json()["error"]["message"]) == (400, "All fields are empty")

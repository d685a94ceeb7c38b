"""Shared by the tests of the API: how a request is sent, and what every answer must look like."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from embedding_service.dropin.presets import NO_PRESET, PRESETS
from embedding_service.http.app import DIALECTS
from embedding_service.service.vectors import shape_dense
from embedding_service.settings.gateway import Settings
from embedding_service.types import Output
from embedding_service.worker.fake import CLS, SEP, UNKNOWN, fake_vectors

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx
    import pytest

    from embedding_service.server import Gateway
    from embedding_service.types import Batch, BatchResult, Floats
    from tests.conftest import RunningGateway

MOST_ERROR_BYTES = 4096
JSON = {"content-type": "application/json"}


def embed(
    client: httpx.Client, *, headers: Mapping[str, str] | None = None, **fields: Any
) -> httpx.Response:
    """Send an embeddings request to the model `fake` unless `fields` say otherwise."""
    return client.post("/v1/embeddings", json={"model": "fake", **fields}, headers=headers)


def post(client: httpx.Client, body: bytes, **headers: str) -> httpx.Response:
    """Send bytes as they are; underscores in header names become hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post("/v1/embeddings", content=body, headers=JSON | named)


def vectors_of(response: httpx.Response) -> Floats:
    """Return the float vectors of an answer, checked to stand in the order of their indices."""
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return np.array([item["embedding"] for item in data], np.float32)


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """Return the error of an answer, checked to be small and in OpenAI's envelope."""
    assert response.status_code == status, response.text[:1000]
    assert len(response.content) <= MOST_ERROR_BYTES
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert isinstance(error["param"], str | None)
    assert isinstance(error["code"], str | None)
    return dict(error)


def log_line(gateway: RunningGateway, response: httpx.Response) -> dict[str, Any]:
    """Return the access-log line of an answer, which is written once the answer has been sent."""
    until = time.monotonic() + 60
    while True:
        for line in gateway.requests_logged():
            if line["id"] == response.headers["x-request-id"]:
                return line
        assert time.monotonic() < until, "the request was not logged"
        time.sleep(0.01)


def ids_of(text: str) -> list[int]:
    """Return the token ids of words such as `w7` as the fake model reads them, special ones too."""
    return [CLS, *(_id_of(word) for word in text.split()), SEP]


def _id_of(word: str) -> int:
    return 100 + int(word[1:]) if word[:1] == "w" and word[1:].isdecimal() else UNKNOWN


def raw_vector(text: str) -> Floats:
    """Return what the fake model computes for a text, as it is before any normalisation."""
    return fake_vectors(ids_of(text), Output.DENSE)[0]


def unit_vectors(*texts: str) -> Floats:
    """Return the vectors that a client should get for texts."""
    return shape_dense(
        np.stack([raw_vector(text) for text in texts]), dimensions=None, normalize=True
    )


def routes_of(gateway: Gateway) -> list[tuple[str, str]]:
    """Return the path template and method of every operation that the gateway serves."""
    app: Any = gateway._server.config.app
    while not hasattr(app, "table"):
        app = app.app
    return [(resource.path, method) for resource in app.table for method in resource.methods]


def computing_operations(**options: Any) -> list[Any]:
    """Return all operations that have a body, of all dialects: each has an example that works.

    With a `preset`, only those that it changes.
    """
    settings = Settings(engine="fake", **options)
    preset = PRESETS.get(settings.preset or "", NO_PRESET)
    dialects = [entry(settings) if callable(entry) else entry for entry in DIALECTS]
    changed = [preset.adapt(dialect) for dialect in dialects]
    if preset is NO_PRESET:
        known, found = [], changed
    else:
        known = [each for dialect in dialects for each in dialect.operations]
        found = [*preset.dialects(settings), *changed]
    operations = [each for dialect in found for each in dialect.operations if each not in known]
    return [each for each in operations if each.request is not None]


def watch_engine(gateway: RunningGateway, name: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which every call of a model's engine adds its number of inputs."""
    model = gateway.gateway.service.models.get(name)
    assert model is not None
    engine, seen, run = model.engine, [], model.engine.run

    async def watched(batch: Batch, **options: Any) -> BatchResult:
        seen.append(len(batch.ids))
        return await run(batch, **options)

    monkeypatch.setattr(engine, "run", watched)
    return seen

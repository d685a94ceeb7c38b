"""Optional fields take null in every dialect: clients in typed languages send all their fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from embedding_service.http.app import DIALECTS
from embedding_service.settings.gateway import Settings
from tests.conftest import FAKE, client_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx


SETTINGS: dict[str, Any] = {
    "engine": "fake",
    "port": 0,
    "unknown_model": "serve_default",
    "gpu_memory_utilization": 0.3,
    "models": [
        {
            "model_name": "m3",
            "engine_args": {"outputs": ["dense", "sparse", "colbert", "hidden_states"]},
        },
        {"model_name": "cross", "engine_args": {"outputs": ["score"]}},
    ],
}


def _cases() -> Iterator[tuple[str, dict[str, Any], str]]:
    for entry in DIALECTS:
        dialect = entry(Settings(**FAKE)) if callable(entry) else entry
        for operation in dialect.operations:
            if operation.request is None or operation.example is None:
                continue
            for name, field in operation.request.model_fields.items():
                if not field.is_required() and name not in operation.example:
                    yield operation.path, dict(operation.example), name


http = client_of(**SETTINGS)


@pytest.mark.parametrize(("path", "body", "field"), list(_cases()))
def test_null_is_the_same_as_absent(
    http: httpx.Client, path: str, body: dict[str, Any], field: str
) -> None:
    """Every optional field of every operation may be null, and is then not there."""
    body = {"model": "cross" if "rerank" in path or "score" in path else "m3", **body}
    answer = http.post(path, json={**body, field: None})
    assert answer.status_code == 200, answer.text
    plain = http.post(path, json=body)
    assert answer.headers.get("x-ignored-fields") == plain.headers.get("x-ignored-fields")

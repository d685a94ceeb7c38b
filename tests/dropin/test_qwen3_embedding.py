"""The preset qwen3-embedding, request by request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from embedding_service.worker.location import resolve_model
from tests.calls import unit_vectors, vectors_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import httpx

    from embedding_service.settings.gateway import Settings
    from tests.conftest import RunningGateway

MODEL = "Qwen/Qwen3-Embedding-0.6B"
PATHS = ["/v1/embeddings", "/embeddings"]


PRESET = "qwen3-embedding"


def test_its_options_are_the_documented_defaults(gateway: RunningGateway) -> None:
    """Options keep their names and defaults."""
    (model,) = gateway.settings.served_models
    assert (model.gpu_memory_utilization, model.max_model_len, model.tensor_parallel_size) == (
        0.4,
        3072,
        1,
    )
    assert (model.max_batch_size, model.batch_timeout_ms, gateway.settings.workers) == (32, 10, 1)
    assert model.dtype == "half"


def test_a_folder_wins(preset_settings: Callable[..., Settings], tmp_path: Path) -> None:
    """`model_path` is loaded in place of the hub's."""
    environ = {"EMBEDDING_MODEL_PATH": str(tmp_path)}
    (model,) = preset_settings("qwen3-embedding", environ=environ).served_models
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(model).model == str(tmp_path)


def test_every_option_is_an_environment_variable(
    start_preset: Callable[..., RunningGateway],
) -> None:
    """Each option is also EMBEDDING_ and its name."""
    options = {
        "MODEL_NAME": "other",
        "MAX_BATCH_SIZE": "4",
        "BATCH_TIMEOUT_MS": "3",
        "LOG_LEVEL": "ERROR",
    }
    gateway = start_preset(
        "qwen3-embedding", environ={f"EMBEDDING_{name}": value for name, value in options.items()}
    )
    (model,) = gateway.settings.served_models
    assert (model.model_name, model.max_batch_size, model.batch_timeout_ms) == ("other", 4, 3)
    assert gateway.settings.log_level == "error"
    gateway.stop()


def test_info_and_health(http: httpx.Client) -> None:
    """`GET /` and `GET /health` have the documented fields; the device is the true one."""
    info = http.get("/").json()
    assert info.keys() == {"service", "version", "model", "status"}
    assert (info["model"], info["status"]) == (MODEL, "running")
    health = http.get("/health")
    assert health.status_code == 200
    assert health.json() == {
        "status": "healthy",
        "model": MODEL,
        "gpu_memory_utilization": 0.4,
        "max_model_len": 3072,
        "device": "cpu",
    }


def test_health_is_503_while_loading(start_preset: Callable[..., RunningGateway]) -> None:
    """A balancer sees that nothing can be served yet, and the status says why."""
    gateway = start_preset("qwen3-embedding", wait=False, engine_args={"load_s": 3600})
    with gateway.client() as http:
        health = http.get("/health")
        embeddings = http.post("/v1/embeddings", json={"input": "w1"})
    assert (health.status_code, health.json()["status"]) == (503, "starting")
    assert embeddings.status_code == 503
    assert embeddings.json().keys() == {"detail"}
    gateway.stop()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("texts", ["w1 w2", ["w1", "w2 w3"]])
def test_embeddings(http: httpx.Client, path: str, texts: str | list[str]) -> None:
    """Texts are embedded bare; `model` is ignored, and the answer names the configured one."""
    answer = http.post(path, json={"input": texts, "model": "whatever"})
    expected = unit_vectors(*([texts] if isinstance(texts, str) else texts))
    np.testing.assert_allclose(vectors_of(answer), expected, atol=1e-6)
    body = answer.json()
    assert (body["object"], body["model"]) == ("list", MODEL)
    assert {"prompt_tokens", "total_tokens"} <= body["usage"].keys()


def test_the_prompt_has_its_space(http: httpx.Client) -> None:
    """An instruction is put before the text as `Instruct: {task}\\nQuery: {text}`, with the space."""
    answer = http.post("/v1/embeddings", json={"input": "w1", "instruction": "w7"})
    np.testing.assert_allclose(
        vectors_of(answer), unit_vectors("Instruct: w7\nQuery: w1"), atol=1e-6
    )


@pytest.mark.parametrize(
    ("given", "detail"),
    [
        ([], "Input cannot be empty"),
        ("", "Text at index 0 is empty"),
        (["w1", " \n"], "Text at index 1 is empty"),
        (["w1", "w2", ""], "Text at index 2 is empty"),
    ],
)
@pytest.mark.parametrize("path", PATHS)
def test_empty_input(http: httpx.Client, path: str, given: str | list[str], detail: str) -> None:
    """Nothing to embed is a 400 in the original's words."""
    answer = http.post(path, json={"input": given})
    assert (answer.status_code, answer.json()) == (400, {"detail": detail})


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/embeddings", {}, 400),
        ("POST", "/v1/embeddings", {"input": 7}, 400),
        ("POST", "/v1/embeddings", {"input": "w1 " * 4000}, 400),
        ("POST", "/v1/embeddings", {"input": "fault-nan"}, 500),
        ("GET", "/v1/embeddings", None, 405),
        ("GET", "/nowhere", None, 404),
    ],
)
def test_errors_are_details(
    http: httpx.Client, method: str, path: str, body: object, status: int
) -> None:
    """Errors are `detail` and a text, whoever notices them; an over-long text is refused."""
    answer = http.request(method, path, json=body)
    assert answer.status_code == status
    assert list(answer.json()) == ["detail"]
    assert isinstance(answer.json()["detail"], str)


def test_a_large_body_is_a_detail_too(start_preset: Callable[..., RunningGateway]) -> None:
    """A refusal of the middleware is written as the routes write theirs."""
    gateway = start_preset("qwen3-embedding", max_body_bytes=1024)
    with gateway.client() as http:
        answer = http.post("/v1/embeddings", json={"input": "w" * 2000})
    assert answer.status_code == 413
    assert answer.json()["detail"]
    gateway.stop()


def test_the_log_tells_texts_and_speed(gateway: RunningGateway, http: httpx.Client) -> None:
    """Each request's line has texts, seconds and texts a second, and no text."""
    http.post("/v1/embeddings", json={"input": ["w41", "w42"]})
    line = next(
        event
        for event in reversed(gateway.log)
        if event.get("event") == "request" and "texts" in event
    )
    assert {"texts", "seconds", "texts_per_s"} <= line.keys()
    assert "w41" not in str(gateway.log)

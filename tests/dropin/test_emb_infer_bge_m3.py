"""The preset emb-infer-bge-m3, request by request."""

from __future__ import annotations

import base64
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embedding_service.dropin.presets import PRESETS
from embedding_service.errors import BadConfiguration
from embedding_service.settings.load import load
from tests.calls import unit_vectors
from tests.dialects.test_bge import expected_colbert, expected_sparse
from tests.dropin.conftest import FILES, variables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx

    from tests.conftest import RunningGateway

TOKEN = "t0ken"
KEYED = {"API_TOKEN": TOKEN}
KINDS = ["dense", "sparse", "colbert"]
STATISTICS = {
    *("queue_size", "processed_requests", "average_batch_size", "average_processing_time"),
    *("total_batches", "total_requests", "avg_batch_size", "last_batch_time"),
}


@pytest.fixture(scope="module")
def gateway(start_preset: Callable[..., RunningGateway]) -> RunningGateway:
    """Return the preset."""
    return start_preset("emb-infer-bge-m3", environ=KEYED)


@pytest.fixture(scope="module")
def http(gateway: RunningGateway) -> Iterator[httpx.Client]:
    """Return a client of the preset, with its token."""
    with gateway.client(headers={"authorization": f"Bearer {TOKEN}"}) as client:
        yield client


def embed(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post("/v1/embeddings", json={"model": "bge-m3", "input": ["w1 w2", "w3"], **fields})


def test_it_does_not_start_without_a_token(start_preset: Callable[..., RunningGateway]) -> None:
    """Without API_TOKEN the start fails with a line that names it, on whatever address."""
    for host in ("0.0.0.0", "127.0.0.1"):
        with pytest.raises(BadConfiguration, match="API_TOKEN"):
            start_preset("emb-infer-bge-m3", host=host)


def test_all_three_vectors_when_none_is_named(http: httpx.Client) -> None:
    """Without return_* fields each item has all three vectors; `model` echoes the request."""
    body = embed(http, model="whatever I call it").json()
    assert body["model"] == "whatever I call it"
    assert body["embedding_types"] == KINDS
    assert [item["index"] for item in body["data"]] == [0, 1]
    for item, text in zip(body["data"], ["w1 w2", "w3"], strict=True):
        np.testing.assert_allclose(item["dense_embedding"], unit_vectors(text)[0], atol=1e-6)
        sparse = expected_sparse(text)
        assert list(item["sparse_embedding"]) == [str(index) for index in sparse.indices.tolist()]
        np.testing.assert_allclose(
            list(item["sparse_embedding"].values()), sparse.values, rtol=1e-5
        )
        np.testing.assert_allclose(item["colbert_embedding"], expected_colbert(text), atol=1e-6)
    assert {"prompt_tokens", "total_tokens"} <= body["usage"].keys()


@pytest.mark.parametrize("left_out", KINDS)
def test_a_vector_that_is_not_asked_for_is_null(http: httpx.Client, left_out: str) -> None:
    """Each kind can be left out, and is null then."""
    body = embed(http, **{f"return_{left_out}": False}).json()
    assert body["embedding_types"] == [kind for kind in KINDS if kind != left_out]
    for item in body["data"]:
        assert [kind for kind in KINDS if item[f"{kind}_embedding"] is None] == [left_out]


def test_lists_stay_lists_for_openais_sdk(http: httpx.Client) -> None:
    """The SDK asks for base64 and decodes `embedding` alone: the other vectors stay lists."""
    plain, packed = embed(http).json(), embed(http, encoding_format="base64").json()
    for item, expected in zip(packed["data"], plain["data"], strict=True):
        decoded = np.frombuffer(base64.b64decode(item["embedding"]), "<f4")
        np.testing.assert_allclose(decoded, expected["embedding"], atol=1e-7)
        for name in ("dense_embedding", "sparse_embedding", "colbert_embedding"):
            assert item[name] == expected[name]
        assert "colbert_shape" not in item


def test_the_service_describes_itself(http: httpx.Client) -> None:
    """`GET /` has the documented fields."""
    body = http.get("/").json()
    assert body["name"] == "emb-infer-bge-m3"
    assert body["model"] == "BAAI/bge-m3"
    assert body["supported_vectors"] == KINDS
    assert body["endpoints"]["embeddings"] == "/v1/embeddings"
    assert body["batching"] == {
        "enabled": True,
        "batch_size": 8,
        "timeout_ms": 100,
        "max_queue_size": 50,
    }


def test_the_documents_token_is_refused(start_preset: Callable[..., RunningGateway]) -> None:
    """The placeholder of the documents is known to everybody, so it protects nothing."""
    with pytest.raises(BadConfiguration, match="your_api_token_here is in public documents"):
        start_preset("emb-infer-bge-m3", environ={"API_TOKEN": "your_api_token_here"})


def test_a_folder_that_is_not_there_leaves_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image's MODEL_PATH counts where there is such a folder; else the model is MODEL_NAME."""
    monkeypatch.chdir(tmp_path)

    def path(**environ: str) -> tuple[str | None, list[str]]:
        with variables({**KEYED, **environ}):
            settings, warnings = load(FILES / "emb-infer-bge-m3.yaml", presets=lambda: PRESETS)
        return settings.model_path, warnings

    found, warnings = path(MODEL_PATH="/app/BGE-M3", MODEL_NAME="BAAI/bge-m3")
    assert found is None
    assert warnings == ["MODEL_PATH is /app/BGE-M3, and there is no such folder; it has no effect"]
    assert path() == (None, [])
    (tmp_path / "BGE-M3").mkdir()
    assert path() == ("./BGE-M3", [])
    assert path(MODEL_PATH=str(tmp_path)) == (str(tmp_path), [])


def test_all_vectors_off(http: httpx.Client) -> None:
    """To ask for nothing is a 400 in the original's words."""
    answer = embed(http, return_dense=False, return_sparse=False, return_colbert=False)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("At least one vector type must be requested")


@pytest.mark.parametrize(
    "given", [[], "", [""], "  ", ["w1", "\n"], ["w1"] * 101, "w" * 32_769, None, 7]
)
def test_wrong_input(http: httpx.Client, given: Any) -> None:
    """Empty or blank input, 101 texts or a text of 32,769 characters are a 400."""
    answer = embed(http, input=given)
    assert (answer.status_code, list(answer.json())) == (400, ["detail"])


def test_the_limits_themselves_are_served(http: httpx.Client) -> None:
    """100 texts, and a text of 32,768 characters, which is cut to 512 tokens without a word."""
    assert len(embed(http, input=["w1"] * 100, return_colbert=False).json()["data"]) == 100
    body = embed(
        http, input="w1 " * 10_922 + "w1", return_sparse=False, return_colbert=False
    ).json()
    assert body["usage"]["prompt_tokens"] == 512
    np.testing.assert_allclose(
        body["data"][0]["dense_embedding"], unit_vectors("w1 " * 510)[0], atol=1e-6
    )


@pytest.mark.parametrize(
    "path", ["/v1/embeddings", "/v1/models", "/stats", "/health/detailed", "/nowhere"]
)
@pytest.mark.parametrize(
    ("header", "detail"),
    [
        (None, "Missing API token"),
        ("", "Missing API token"),
        ("Bearer wrong", "Invalid API token"),
        ("wrong", "Invalid API token"),
    ],
)
def test_a_token_is_asked_for(
    gateway: RunningGateway, path: str, header: str | None, detail: str
) -> None:
    """No token and a wrong one are 401s in the original's words."""
    with gateway.client(headers={} if header is None else {"authorization": header}) as http:
        answer = http.get(path)
    assert (answer.status_code, answer.json()) == (401, {"detail": detail})


@pytest.mark.parametrize("header", [f"Bearer {TOKEN}", TOKEN, f"bearer {TOKEN}"])
def test_the_token_comes_with_or_without_bearer(gateway: RunningGateway, header: str) -> None:
    """Both forms were in use."""
    with gateway.client(headers={"authorization": header}) as http:
        assert embed(http).status_code == 200


def test_open_paths(gateway: RunningGateway) -> None:
    """`GET /` and `GET /health` need no token; posting there does."""
    with gateway.client() as http:
        assert http.get("/").status_code == 200
        health = http.get("/health")
        assert (health.status_code, health.json()) == (200, {"status": "ok"})
        assert http.post("/", json={"inputs": "w1"}).status_code == 401


def test_detailed_health_and_statistics(http: httpx.Client) -> None:
    """Both tell the same numbers under both sets of names."""
    embed(http)
    detailed = http.get("/health/detailed").json()
    assert detailed.keys() == {"status", "timestamp", "model", "batching"}
    assert detailed["status"] == "ok"
    assert detailed["model"] == {"name": "BAAI/bge-m3", "status": "loaded"}
    config = {"batch_size": 8, "timeout_ms": 100, "max_queue_size": 50}
    batching = detailed["batching"]
    assert {name: batching[name] for name in config} == config
    assert batching["enabled"] is True
    assert batching["stats"].keys() == STATISTICS
    stats = http.get("/stats").json()
    assert stats.keys() == {"batching", "config", "timestamp"}
    assert stats["batching"].keys() == STATISTICS
    assert stats["config"] == config
    assert stats["timestamp"] == pytest.approx(time.time(), abs=60)
    assert '"timeout_ms":100,' in http.get("/stats").text


def test_models(http: httpx.Client) -> None:
    """Models have the fields that OpenAI's API once had."""
    (entry,) = http.get("/v1/models").json()["data"]
    assert {"id", "object", "created", "owned_by", "permission", "root", "parent"} <= entry.keys()
    assert entry == http.get("/v1/models/BAAI/bge-m3").json()
    missing = http.get("/v1/models/nobody")
    assert (missing.status_code, list(missing.json())) == (404, ["detail"])


def test_a_full_queue_is_503(start_preset: Callable[..., RunningGateway]) -> None:
    """One request more than MAX_QUEUE_SIZE is a 503 that says when to come back."""
    environ = {**KEYED, "MAX_QUEUE_SIZE": "1"}
    gateway = start_preset(
        "emb-infer-bge-m3", environ=environ, request_timeout_s=3600, drain_timeout_s=0
    )
    headers = {"authorization": TOKEN}
    with gateway.client(timeout=None, headers=headers) as http, ThreadPoolExecutor(1) as thread:
        hanging = thread.submit(embed, http, input="fault-hang")
        while not gateway.gateway.service.requests.held:
            time.sleep(0.01)
        answer = embed(http)
        assert (answer.status_code, list(answer.json())) == (503, ["detail"])
        assert int(answer.headers["retry-after"]) >= 1
        gateway.stop()
        hanging.exception()


def test_the_old_variables(start_preset: Callable[..., RunningGateway]) -> None:
    """The original's variables set what they set there."""
    environ = {
        **KEYED,
        "MODEL_NAME": "mine",
        "BATCH_SIZE": "4",
        "BATCH_TIMEOUT_MS": "20",
        "MAX_BATCH_SIZE": "7",
        "MAX_QUEUE_SIZE": "9",
        "PROCESSING_CONCURRENCY": "2",
        "LOG_LEVEL": "WARNING",
        "LOG_FORMAT": "text",
        "ALLOWED_ORIGINS": "https://a.example",
    }
    gateway = start_preset("emb-infer-bge-m3", environ=environ)
    settings = gateway.settings
    (model,) = settings.served_models
    assert (model.model_name, model.max_batch_size, model.batch_timeout_ms) == ("mine", 4, 20)
    assert (settings.max_inputs, settings.max_concurrent_requests) == (7, 9)
    assert (settings.log_level, settings.log_format) == ("warning", "text")
    assert settings.cors_origins == ("https://a.example",)
    assert model.dtype == "half"
    gateway.stop()
    with pytest.raises(BadConfiguration, match=r"MAX_BATCH_SIZE \(which sets max_inputs\)"):
        start_preset("emb-infer-bge-m3", environ={**KEYED, "MAX_BATCH_SIZE": "many"})

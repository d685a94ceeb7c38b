"""Go's own HTTP client and JSON decoder: typed fields refuse `128.0` for an integer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.calls import unit_vectors
from tests.clients.conftest import KEY, Address, requires, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningGateway

pytestmark = [pytest.mark.server, requires("go")]

SOURCE = Path(__file__).parent / "go" / "main.go"


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Address], Any]:
    """Return a function that has the program speak to a system."""
    folder = tmp_path_factory.mktemp("go")
    environ = {"GO111MODULE": "off", "GOCACHE": str(folder / "cache"), "CGO_ENABLED": "0"}
    run("go", "build", "-o", "check", str(SOURCE), folder=folder, **environ)

    def speak(system: str, address: Address) -> Any:
        output = run("./check", system, address.api_key, address.base_url, folder=folder)
        return json.loads(output)

    return speak


def test_the_gateways_answers_fit_structs(
    ask: Callable[[str, Address], Any], pair: Address
) -> None:
    """OpenAI's answer has OpenAI's fields and no others, though every optional field is null."""
    embeddings, rerank, score = ask("gateway", pair)
    vectors = [item["embedding"] for item in embeddings["data"]]
    np.testing.assert_allclose(vectors, unit_vectors("w1 w2", "w3"), atol=1e-6)
    assert embeddings["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert len(rerank["results"]) == 2
    assert rerank["results"][0]["document"]["Text"]
    assert len(score["data"]) == 1
    assert score["created"] > 1_700_000_000


def test_matching_services_answers_fit_structs(
    ask: Callable[[str, Address], Any], start_preset: Callable[..., RunningGateway]
) -> None:
    """Its Go client reads sizes, limits and times as integers."""
    gateway = start_preset("matching-service")
    record, batch, info, stats = ask("matching-service", Address(gateway.url, "unused"))
    assert record["prepared_text"] == "Название: w1. Параметры: цена 10,000,000₽"
    assert (batch["total"], batch["success"], batch["failed"]) == (2, 1, 1)
    assert info["limits"]["max_batch_size"] == 128
    assert info["cache"]["ttl_seconds"] == stats["ttl_seconds"] == 3600
    gateway.stop()


def test_emb_infers_answers_fit_structs(
    ask: Callable[[str, Address], Any], start_preset: Callable[..., RunningGateway]
) -> None:
    """`timeout_ms` is an integer and `timestamp` a number of seconds."""
    gateway = start_preset("emb-infer-bge-m3", environ={"API_TOKEN": KEY})
    (stats,) = ask("emb-infer-bge-m3", Address(gateway.url, KEY))
    assert stats["config"] == {"batch_size": 8, "timeout_ms": 100, "max_queue_size": 50}
    assert stats["timestamp"] > 1_700_000_000
    gateway.stop()

"""Checkpoints and gateways for the tests that run real vLLM, built once a session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import MINILM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import RunningGateway

    Checkpoint = Callable[..., Path]
    Gateways = dict[str, RunningGateway]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Return a checkpoint's folder by its builder's name, built when first asked for."""
    built: dict[str, Path] = {}

    def build(name: str, **options: object) -> Path:
        from tests import checkpoints

        key = f"{name}{options}"
        if key not in built:
            built[key] = getattr(checkpoints, name)(tmp_path_factory.mktemp(name), **options)
        return built[key]

    return build


@pytest.fixture(scope="session")
def tiny(start_gateway: Callable[..., RunningGateway], checkpoint: Checkpoint) -> Gateways:
    """Return float32 gateways of the two tiny models, which read token ids as their own."""
    return _start_all(start_gateway, _tiny_models(checkpoint), dtype="float32")


@pytest.fixture(scope="module")
def bfloat16(
    start_gateway: Callable[..., RunningGateway], checkpoint: Checkpoint
) -> Iterator[Gateways]:
    """Return gateways by model, MiniLM and the tiny ones, computed in bfloat16."""
    # Where the hardware has no bfloat16, the worker's warm-up with a full step of 32 texts takes
    # longest.
    gateways = _start_all(
        start_gateway, [MINILM, *_tiny_models(checkpoint)], dtype="bfloat16", max_batch_size=4
    )
    yield gateways
    for gateway in gateways.values():
        gateway.stop()


def _start_all(
    start_gateway: Callable[..., RunningGateway], models: list[dict[str, Any]], **settings: Any
) -> Gateways:
    """Start a gateway for each model, at once: most of a start is vLLM's imports, on one core."""
    gateways = {
        model["model_name"]: start_gateway(
            **{
                "port": 0,
                "request_timeout_s": 300,
                "gpu_memory_utilization": 0.1,
                **model,
                **settings,
            },
            wait=False,
        )
        for model in models
    }
    for gateway in gateways.values():
        gateway.wait_ready()
    return gateways


def _tiny_models(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    qwen3 = {
        "model_name": "tiny-qwen3-embedding",
        "model_path": str(checkpoint("tiny_qwen3_embedding")),
    }
    xlmr = {"model_name": "tiny-xlmr", "model_path": str(checkpoint("tiny_bge_m3", heads=()))}
    # Compiling takes longer than the tests of so small a model.
    return [
        {**model, "max_model_len": 1024, "enforce_eager": True, "token_ids": "native"}
        for model in (qwen3, xlmr)
    ]

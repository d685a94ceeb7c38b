"""Gateways from the preset files as they are, but for the fake engine and a free port."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from embedding_service.dropin.presets import PRESETS
from embedding_service.settings.load import load
from tests.conftest import RunningGateway

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from embedding_service.settings.gateway import Settings

FILES = Path(__file__).parents[2] / "config" / "drop-in"
M3 = {"outputs": ["dense", "sparse", "colbert"]}
CROSS = {"outputs": ["score"]}
TEI = {"outputs": ["dense", "sparse", "hidden_states"]}
ENGINE_ARGS: dict[str, Any] = {"qwen3-reranker": CROSS, "emb-infer-bge-m3": M3, "tei": TEI}


def fake_file(name: str, folder: Path, reranker: dict[str, Any]) -> Path:
    """Return a copy of a preset whose models are fake."""
    tree = yaml.safe_load((FILES / f"{name}.yaml").read_text(encoding="utf-8"))
    tree |= {"engine": "fake", "engine_args": ENGINE_ARGS.get(name, {})}
    for model, arguments in zip(tree.get("models", []), (M3, reranker), strict=False):
        model["engine_args"] = arguments
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return path


@contextmanager
def variables(environ: dict[str, str] | None) -> Iterator[None]:
    """Set variables for the length of the block."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (environ or {}).items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def preset_settings(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Settings]:
    """Return a function that reads a preset's settings with old variables, on a free port."""

    def read(
        name: str,
        *,
        environ: dict[str, str] | None = None,
        reranker: dict[str, Any] = CROSS,
        **flags: Any,
    ) -> Settings:
        with variables(environ):
            settings, _ = load(
                fake_file(name, tmp_path_factory.mktemp(name), reranker),
                flags,
                presets=lambda: PRESETS,
            )
        return settings.model_copy(update={"host": "127.0.0.1", "port": 0, "drain_grace_s": 0})

    return read


@pytest.fixture(scope="session")
def start_preset(
    preset_settings: Callable[..., Settings],
) -> Iterator[Callable[..., RunningGateway]]:
    """Return a function that starts a preset with old variables, and waits for its models."""
    started: list[RunningGateway] = []

    def start(
        name: str, *, wait: bool = True, environ: dict[str, str] | None = None, **options: Any
    ) -> RunningGateway:
        settings = preset_settings(name, environ=environ, **options)
        with variables(environ):  # the gateway reads keys from them itself
            gateway = RunningGateway(settings)
        started.append(gateway)
        if wait:
            gateway.wait_ready()
            gateway.wait_loaded()
        return gateway

    yield start
    for gateway in started:
        gateway.stop()


@pytest.fixture(scope="module")
def gateway(
    start_preset: Callable[..., RunningGateway], request: pytest.FixtureRequest
) -> RunningGateway:
    """Return the preset that the module is about, by its `PRESET`."""
    started: RunningGateway = start_preset(request.module.PRESET)
    return started


@pytest.fixture(scope="module")
def http(gateway: RunningGateway) -> Iterator[httpx.Client]:
    """Return a client of that preset."""
    with gateway.client() as client:
        yield client

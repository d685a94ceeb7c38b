"""Gateways for the tests that speak through somebody else's client."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.dialects.test_rerank import MODELS
from tests.dropin.conftest import preset_settings, start_preset  # noqa: F401 - for Go's client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningGateway

KEY = "sk-only-for-tests"
MINILM_NAME = "sentence-transformers/all-MiniLM-L6-v2"


class Address(NamedTuple):
    """All that a client needs to know."""

    base_url: str
    api_key: str


def requires(program: str) -> pytest.MarkDecorator:
    """Skip where a toolchain is not installed; in CI its tests have to run (half a minute)."""
    missing = shutil.which(program) is None and not os.environ.get("REQUIRE_SERVERS")
    return pytest.mark.skipif(missing, reason=f"{program} is not installed")


NODE = Path(__file__).parent / "node"


def run(*command: str, folder: Path, **environ: str) -> str:
    """Run a command to its end; return its output."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="session")
def node_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the SDKs that `package-lock.json` names, as npm installs them."""
    folder = tmp_path_factory.mktemp("node")
    for path in NODE.iterdir():
        shutil.copy(path, folder)
    run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", folder=folder)
    return folder


@pytest.fixture(scope="session")
def pair(start_gateway: Callable[..., RunningGateway]) -> Address:
    """Return the address of an embedder `m3` and a reranker `cross`, with made-up numbers."""
    gateway = start_gateway(**MODELS, api_keys=[KEY])
    gateway.wait_loaded()
    return Address(gateway.url, KEY)


@pytest.fixture(scope="module")
def leaky() -> Iterator[None]:
    """Let clients that never close their sockets lose them here, and not in somebody else's test."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def served(minilm: RunningGateway) -> Address:
    """Return the address of real vectors: MiniLM, also named `text-embedding-3-small`."""
    return Address(f"{minilm.url}/v1", "unused")


@pytest.fixture(scope="session")
def keyed(start_gateway: Callable[..., RunningGateway]) -> Address:
    """Return the address of a gateway that wants a key and whose model may be cut."""
    gateway = start_gateway(
        engine="fake", model_name="fake", port=0, api_keys=[KEY], matryoshka=True
    )
    return Address(f"{gateway.url}/v1", KEY)


@pytest.fixture(scope="session")
def full(start_gateway: Callable[..., RunningGateway]) -> Iterator[Address]:
    """Return the address of a gateway with a full queue: its engine hangs in another's request."""
    gateway = start_gateway(
        engine="fake",
        model_name="fake",
        port=0,
        max_queued_tokens=8,
        request_timeout_s=3600,
        drain_timeout_s=0,
    )
    gate = next(iter(gateway.gateway.service.models)).gate
    with gateway.client(timeout=None) as http, ThreadPoolExecutor(1) as thread:
        hanging = thread.submit(
            http.post, "/v1/embeddings", json={"model": "fake", "input": "fault-hang w1 w2 w3 w4"}
        )
        while not gate.held:
            time.sleep(0.01)
        yield Address(f"{gateway.url}/v1", "unused")
        gateway.stop()
        hanging.exception()

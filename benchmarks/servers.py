"""The servers under test, and how each is started, waited for, weighed and ended.

All listen on this machine's loopback, serve one model under the name `m`, and keep connections
alive.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import psutil
import yaml

from benchmarks import infinity, models, runtimes
from benchmarks.load import Sample
from benchmarks.texts import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.models import Model

MODEL = "m"


class NotRunning(Exception):
    """A server did not start; the reason is for people."""


@dataclass(slots=True)
class Server:
    """A server under test. `prefilled`: it has a cache, and is asked what it has answered."""

    name: str
    command: list[str]
    port: int
    log: Path
    env: dict[str, str]
    prefilled: bool = False
    process: psutil.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/embeddings"

    def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = psutil.Popen(
                self.command,
                env=os.environ | self.env,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def wait_ready(self, *, timeout_s: float = 600) -> float:
        """Return the seconds from now until it has answered a first request."""
        began = time.perf_counter()
        async with aiohttp.ClientSession() as session:
            while (waited := time.perf_counter() - began) < timeout_s:
                if self.process is None or self.process.poll() is not None:
                    break
                try:
                    async with session.post(
                        self.url, json={"model": MODEL, "input": ["ready?"]}
                    ) as response:
                        if response.status == 200:
                            return time.perf_counter() - began
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.1)
        raise NotRunning(f"{self.name} is not ready after {waited:.0f} s: {_last_words(self.log)}")

    def pss_mb(self) -> float:
        """Return the memory of all its processes; a shared page counts in parts."""
        return sum(process.memory_full_info().pss for process in self.processes()) / 1e6

    def stop(self) -> None:
        """End all its processes, by force after 20 s."""
        tree = self.processes()
        if tree:
            tree[0].terminate()
        for process in psutil.wait_procs(tree, timeout=20)[1]:
            process.kill()
        self.process = None

    def processes(self) -> list[psutil.Process]:
        """Return the process that was started, and its children's children."""
        if self.process is None or not self.process.is_running():
            return []
        return [self.process, *self.process.children(recursive=True)]


@dataclass(frozen=True, slots=True)
class Setup:
    """All that the servers of a run have in common."""

    model: Model
    folder: Path
    device: str = "auto"
    memory_share: float = 0.3

    def config(self, name: str, **more: Any) -> Path:
        """Write the gateway's settings: no cache, unless `more` says so, and far limits."""
        path = self.folder / f"{name}.yaml"
        settings = {
            "model_name": models.NAMES[self.model.name],
            "aliases": [MODEL],
            "model_path": str(self.model.path),
            "device": self.device,
            "gpu_memory_utilization": self.memory_share,
            "max_model_len": self.model.max_tokens,
            "cache_max_bytes": 0,
            "request_timeout_s": 3600,
            "max_queued_tokens": 1 << 30,
        }
        path.write_text(
            yaml.safe_dump({k: v for k, v in (settings | more).items() if v is not None})
        )
        return path

    def server(self, name: str, command: list[str], port: int, **more: Any) -> Server:
        return Server(name, command, port, self.folder / f"{name}.log", **{"env": {}, **more})


def gateway(setup: Setup, name: str, **settings: Any) -> Server:
    port = _free_port()
    config = setup.config(name, **settings)
    command = _python(
        "embedding_service", "serve", "--config", config, "--port", port, "--log-level", "warning"
    )
    return setup.server(name, command, port, prefilled=name == "warm")


def vllm(setup: Setup, name: str, *, tuned: bool) -> Server:
    """vLLM's own server: with the gateway's engine settings, or little but the same dtype."""
    config, port = setup.config(name), _free_port()
    arguments = engine_arguments(config)
    kept = (
        arguments
        if tuned
        else {key: arguments[key] for key in ("model", "runner", "dtype", "max_model_len")}
    )
    kept = {"gpu_memory_utilization": setup.memory_share} | kept
    flags = [part for key, value in kept.items() for part in _flag(key, value)]
    command = _python(
        "vllm.entrypoints.openai.api_server", *flags, "--served-model-name", MODEL, "--port", port
    )
    env = environment(config) if tuned else {}
    env.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    return setup.server(
        name, [*command, "--host", "127.0.0.1", "--disable-uvicorn-access-log"], port, env=env
    )


def own(setup: Setup, name: str, module: str) -> Server:
    """One of the small servers in this folder."""
    config, port = setup.config(name), _free_port()
    return setup.server(
        name, _python(f"benchmarks.{module}", config, port), port, env=environment(config)
    )


def infinity_server(setup: Setup, name: str) -> Server:
    try:
        program = infinity.command()
    except subprocess.CalledProcessError as error:
        raise NotRunning(f"infinity could not be installed: {error}") from error
    config, port = setup.config(name), _free_port()
    dtype = engine_arguments(config)["dtype"]
    options = f"--served-model-name {MODEL} --host 127.0.0.1 --port {port}"
    options += " --url-prefix /v1 --engine torch"
    options += f" --dtype {dtype} --no-bettertransformer --log-level warning"
    options += f" --device {'cuda' if setup.device == 'cuda' else 'cpu'}"
    env = {"DO_NOT_TRACK": "1"} | {
        k: v for k, v in environment(config).items() if k == "LD_PRELOAD"
    }
    return setup.server(
        name, [program, "v2", "--model-id", str(setup.model.path), *options.split()], port, env=env
    )


SERVERS: dict[str, Callable[[Setup], Server]] = {
    "gateway": lambda setup: gateway(setup, "gateway"),
    "warm": lambda setup: gateway(setup, "warm", cache_max_bytes=1 << 30),
    "gateway-2": lambda setup: gateway(setup, "gateway-2", replicas=2),
    "vllm": lambda setup: vllm(setup, "vllm", tuned=True),
    "vllm-defaults": lambda setup: vllm(setup, "vllm-defaults", tuned=False),
    "infinity": lambda setup: infinity_server(setup, "infinity"),
    "naive": lambda setup: own(setup, "naive", "naive"),
    "async-llm": lambda setup: own(setup, "async-llm", "async_llm"),
}


class Offline:
    """A program without a server, that answers lines of JSON, in a process of its own."""

    def __init__(self, setup: Setup, name: str, command: list[str], env: dict[str, str]) -> None:
        self.name, self.log = name, setup.folder / f"{name}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=os.environ | env,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def ask(self, **job: Any) -> dict[str, Any]:
        """Return what the process answers the job with."""
        assert self._process.stdin is not None
        print(json.dumps(job), file=self._process.stdin, flush=True)
        return self._answer()

    def sample(self, ids: list[list[int]], batch: int) -> Sample:
        """Return how fast it embeds, so many texts a call."""
        found = self.ask(embed=ids, batch=batch)
        return Sample(found["texts_per_s"], found.get("p50_ms", math.nan), math.nan)

    def wait_ready(self) -> float:
        """Return the seconds from now until it can be asked. Raises `NotRunning`."""
        began = time.perf_counter()
        self._answer()
        return time.perf_counter() - began

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise NotRunning(f"{self.name} has ended: {_last_words(self.log)}")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def ceiling(setup: Setup) -> Offline:
    """Offline `LLM.embed`, and matrix products on its threads."""
    config = setup.config("ceiling")
    command = _python("benchmarks.ceiling", config)
    return Offline(setup, "ceiling", command, environment(config))


def runtime(setup: Setup, name: str) -> Offline:
    """The model in another runtime, in the gateway's number format. Raises `NotRunning`."""
    dtype = engine_arguments(setup.config(name))["dtype"]
    try:
        command = runtimes.command(name, setup.model, dtype)
    except subprocess.CalledProcessError as error:
        raise NotRunning(f"{name} could not be made ready: {error}") from error
    return Offline(setup, name, command, {})  # with tcmalloc, as a worker has it, OpenVINO aborts


def environment(config: Path) -> dict[str, str]:
    """Return the variables that a worker of the gateway gets."""
    from embedding_service.engine.environment import environment as of_worker
    from embedding_service.settings.load import load

    return of_worker(load(config)[0].served_models[0], replica=0)


_known: dict[str, dict[str, Any]] = {}


def engine_arguments(config: Path) -> dict[str, Any]:
    """Return the gateway's engine settings, which are the same for all configurations of a run."""
    if "all" not in _known:
        done = subprocess.run(
            _python("benchmarks.engine", config),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise NotRunning(
                f"the engine's settings cannot be read: {done.stderr.strip().splitlines()[-1:]}"
            )
        _known["all"] = json.loads(done.stdout.strip().splitlines()[-1])
    return _known["all"]


def _flag(name: str, value: object) -> list[str]:
    option = name.replace("_", "-")
    if name == "disable_log_stats" or isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    return [f"--{option}", str(value)]


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"{' '.join(lines[-1:])} (all of it: {log})"


def _python(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])

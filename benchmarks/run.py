"""`make bench`: this gateway beside vLLM's own server and the offline ceiling, interleaved on one machine.

Every server is started here, warmed, and shown to give the same vectors before it is timed. Cells run in turn,
server after server, so that a slow minute of the machine hits all alike; a figure is the median over the rounds
of the ratio within a round, with its quartiles. Texts are unique, of real prose, the same for everyone.

    make bench ARGS="--rounds 7 --seconds 4"
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
import orjson
from tokenizers import Tokenizer

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
DEMO = ROOT / "config" / "demo.yaml"
CELLS = [(1, 1), (8, 32), (64, 1)]


@dataclass
class Server:
    """A server under test, and what was measured of it: figures by cell, one for each round."""

    name: str
    command: list[str]
    port: int
    model: str
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    ready_s: float = 0.0
    texts_per_s: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    p50_ms: dict[tuple[int, int], list[float]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/embeddings"

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            env={**os.environ, **self.env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)


class Ceiling:
    """Offline `LLM.embed` in a process of its own."""

    def __init__(self, config: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "ceiling.py"), str(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.settings = self._answer()["ready"]

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit("the ceiling's process ended")

    def run(self, prompts: list[list[int]], *, batch: int, seconds: float) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"prompts": prompts, "batch": batch, "seconds": seconds}) + "\n")
        self.process.stdin.flush()
        return self._answer()["texts_per_s"]

    def stop(self) -> None:
        self.process.kill()


def prose() -> list[str]:
    """Return the sentences of this repository's documentation and of its licence."""
    files = [ROOT / "README.md", ROOT / "LICENSE", *sorted((ROOT / "docs").glob("*.md"))]
    text = " ".join(" ".join(path.read_text(encoding="utf-8").split()) for path in files)
    return [sentence for sentence in re.split(r"(?<=[.:;])\s", text) if len(sentence) > 20]


def make_texts(count: int, *, tokens: int, tokenizer: Tokenizer, seed: int) -> list[str]:
    """Return unique texts of about `tokens` tokens each."""
    choose, sentences = random.Random(seed), prose()
    texts = []
    for i in range(count):
        words = f"{seed}.{i}"
        while len(tokenizer.encode(words).ids) < tokens:
            words += " " + choose.choice(sentences)
        encoding = tokenizer.encode(words)
        texts.append(words[: encoding.offsets[tokens - 2][1]])
    return texts


async def embed(session: aiohttp.ClientSession, server: Server, texts: list[str]) -> list[np.ndarray]:
    body = orjson.dumps({"model": server.model, "input": texts, "encoding_format": "base64"})
    async with session.post(server.url, data=body, headers={"content-type": "application/json"}) as response:
        raw = await response.read()
        if response.status != 200:
            raise SystemExit(f"{server.name}: {response.status} {raw[:300]!r}")
    return [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in orjson.loads(raw)["data"]]


async def load(server: Server, texts: list[str], *, clients: int, size: int, seconds: float) -> tuple[float, float]:
    """Run a closed loop; return texts per second and the median latency in milliseconds."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    bodies = [
        orjson.dumps({"model": server.model, "input": texts[i : i + size], "encoding_format": "base64"})
        for i in range(0, len(texts) - size + 1, size)
    ]

    async def client(number: int, session: aiohttp.ClientSession) -> None:
        i = number
        while time.perf_counter() < until:
            began = time.perf_counter()
            headers = {"content-type": "application/json"}
            async with session.post(server.url, data=bodies[i % len(bodies)], headers=headers) as response:
                await response.read()
                assert response.status == 200, response.status
            times.append(time.perf_counter() - began)
            i += clients

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        began = time.perf_counter()
        await asyncio.gather(*(client(i, session) for i in range(clients)))
        took = time.perf_counter() - began
    return len(times) * size / took, statistics.median(times) * 1000


async def wait_ready(server: Server, *, timeout_s: float = 180) -> None:
    began = time.perf_counter()
    async with aiohttp.ClientSession() as session:
        while time.perf_counter() - began < timeout_s:
            assert server.process is not None
            if server.process.poll() is not None:
                raise SystemExit(f"{server.name} ended with {server.process.returncode}")
            try:
                await embed(session, server, ["ready?"])
            except (aiohttp.ClientError, SystemExit):
                await asyncio.sleep(0.1)
                continue
            server.ready_s = time.perf_counter() - began
            return
    raise SystemExit(f"{server.name} was not ready after {timeout_s} s")


def one_layer(folder: Path) -> Path:
    """Make a configuration whose model is MiniLM's first layer: nearly all time is spent around it."""
    from safetensors.numpy import load_file, save_file

    from embedding_service.configuration import load as load_settings
    from embedding_service.engine.location import resolve_model

    source, target = Path(resolve_model(load_settings(DEMO)[0].served_models[0])), folder / "one-layer"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", "onnx"))
    (weights,) = source.glob("*.safetensors")
    tensors = {name: tensor for name, tensor in load_file(weights).items() if not re.search(r"layer\.[1-9]", name)}
    save_file(tensors, target / weights.name, metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    path = folder / "one-layer.yaml"
    path.write_text(f"model_name: one-layer\nmodel_path: {target}\n")
    return path


def servers(config: Path, settings: dict, model: str, *, defaults: bool) -> list[Server]:
    from embedding_service.configuration import load as load_settings
    from embedding_service.engine.process import environment

    options = load_settings(config)[0].served_models[0]
    gateway = [sys.executable, "-m", "embedding_service", "serve", "--config", str(config), "--log-level", "warning"]
    found = [Server("gateway", [*gateway, "--port", "8871", "--cache-max-bytes", "0"], 8871, options.model_name)]
    vllm = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--runner", "pooling"]
    vllm += ["--served-model-name", "m", "--gpu-memory-utilization", "0.3", "--disable-uvicorn-access-log"]
    tuned = [
        "--dtype",
        settings["dtype"],
        "--max-num-seqs",
        str(settings["max_num_seqs"]),
        "--no-enable-prefix-caching",
    ]
    tuned += ["--max-num-batched-tokens", str(settings["max_num_batched_tokens"])]
    tuned += ["--enforce-eager"] if settings["enforce_eager"] else []
    env = {k: v for k, v in environment(options, replica=0).items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    found.append(Server("vLLM's server, tuned", [*vllm, *tuned, "--port", "8872"], 8872, "m", env))
    if defaults:
        dtype = ["--dtype", settings["dtype"]]
        found.append(Server("vLLM's server, defaults", [*vllm, *dtype, "--port", "8873"], 8873, "m"))
    return found


def spread(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--defaults", action="store_true", help="also vLLM's server with its own defaults")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--one-layer", action="store_true", help="a model that costs next to nothing")
    options = parser.parse_args()
    scratch = tempfile.TemporaryDirectory()
    config = one_layer(Path(scratch.name)) if options.one_layer else DEMO
    ceiling = Ceiling(config)
    from embedding_service.configuration import load as load_settings
    from embedding_service.engine.location import resolve_model

    model = resolve_model(load_settings(config)[0].served_models[0])
    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = make_texts(2048, tokens=options.tokens, tokenizer=tokenizer, seed=1)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    under_test = servers(config, ceiling.settings, model, defaults=options.defaults)
    limits: dict[tuple[int, int], list[float]] = {cell: [] for cell in CELLS}
    cpu = time.process_time()
    try:
        for server in under_test:
            server.start()
            await wait_ready(server)
        async with aiohttp.ClientSession() as session:
            vectors = [np.stack(await embed(session, server, texts[:64])) for server in under_test]
        for server, other in zip(under_test, vectors, strict=True):
            cosine = float((vectors[0] * other).sum(axis=1).min())
            print(f"{server.name}: ready after {server.ready_s:.1f} s, cosine to ours >= {cosine:.6f}")
            assert cosine > 0.999
        began = time.perf_counter()
        for turn in range(options.rounds):
            for clients, size in CELLS:
                cell = (clients, size)
                order = under_test if turn % 2 else under_test[::-1]
                for server in order:
                    rate, p50 = await load(server, texts, clients=clients, size=size, seconds=options.seconds)
                    server.texts_per_s.setdefault(cell, []).append(rate)
                    server.p50_ms.setdefault(cell, []).append(p50)
                limits[cell].append(ceiling.run(ids, batch=clients * size, seconds=options.seconds))
        share = (time.process_time() - cpu) / (time.perf_counter() - began)
    finally:
        for server in under_test:
            server.stop()
        ceiling.stop()
        scratch.cleanup()
    report(under_test, limits, share=share, options=options)


def report(under_test: list[Server], limits: dict, *, share: float, options: argparse.Namespace) -> None:
    """Print the table: medians, and ratios within a round."""
    gateway = under_test[0]
    print(
        f"\n{options.rounds} rounds of {options.seconds:g} s a cell, texts of {options.tokens} tokens, base64; ", end=""
    )
    print(f"the load generator used {share:.0%} of one core\n")
    print("| clients x texts | server | texts/s | p50 ms | gateway / server, texts/s | gateway / server, p50 |")
    print("|---|---|---|---|---|---|")
    for cell in CELLS:
        name = f"{cell[0]} x {cell[1]}"
        for server in under_test:
            rates, p50 = server.texts_per_s[cell], server.p50_ms[cell]
            faster = spread([a / b for a, b in zip(gateway.texts_per_s[cell], rates, strict=True)])
            sooner = spread([a / b for a, b in zip(gateway.p50_ms[cell], p50, strict=True)])
            ratios = ("", "") if server is gateway else (faster, sooner)
            row = (name, server.name, f"{statistics.median(rates):.0f}", f"{statistics.median(p50):.1f}", *ratios)
            print("| " + " | ".join(row) + " |")
        ratio = spread([a / b for a, b in zip(gateway.texts_per_s[cell], limits[cell], strict=True)])
        print(f"| {name} | offline ceiling | {statistics.median(limits[cell]):.0f} | | {ratio} | |")
    if options.json:
        figures = {
            server.name: {f"{c}x{n}": rates for (c, n), rates in server.texts_per_s.items()} for server in under_test
        }
        figures["ceiling"] = {f"{c}x{n}": rates for (c, n), rates in limits.items()}
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    asyncio.run(main())

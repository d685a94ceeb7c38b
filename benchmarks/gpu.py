"""One command each for what has to be known of a GPU; `--plan` lists them with their minutes.

    python -m benchmarks.gpu parity          # vectors and scores against transformers in float32
    python -m benchmarks.gpu speed MODEL     # through HTTP, beside vLLM's own server
    python -m benchmarks.gpu faults          # a killed worker, a full card

Checkpoints have random weights. Each command prints what it has as it goes, and writes JSON into
`--out`; compile caches and checkpoints are left for the next one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from tokenizers import Tokenizer

from benchmarks import load, models, reference, report, texts
from benchmarks.load import Cell
from benchmarks.run import agreeing, start_all
from benchmarks.servers import Server, Setup

if TYPE_CHECKING:
    from collections.abc import Callable

PLAN = Path(__file__).with_suffix(".md")
CELLS = ("1x1x50", "8x256x50", "8x64x512")
SERVERS = ("gateway", "gateway-2", "vllm")
LEAST_TEXTS = 4096  # of a cell, sent again and again: more than are on their way at any time


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=("parity", "speed", "faults"))
    parser.add_argument("model", nargs="?", choices=models.NAMES, default="minilm-shape")
    parser.add_argument("--plan", action="store_true", help="print the commands by the minute")
    parser.add_argument("--out", type=Path, default=models.SCRATCH)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--servers", nargs="+", default=SERVERS)
    parser.add_argument("--cells", nargs="+", default=CELLS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    if options.plan or not options.command:
        print(PLAN.read_text(encoding="utf-8"))
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers have sessions of their own
    options.out.mkdir(parents=True, exist_ok=True)
    command: Callable[[argparse.Namespace], Any] = globals()[options.command]
    found = asyncio.run(command(options))
    path = options.out / f"gpu-{options.command}-{options.model}.json"
    path.write_text(json.dumps({"machine": report.machine(), "found": found}, indent=1))


# Parity


async def parity(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare tiny checkpoints of four families, in both formats, with one and two replicas."""
    folder = models.SCRATCH / "tiny"
    oracles = tiny_oracles(folder)
    found: list[dict[str, Any]] = []
    for dtype, replicas in (("float32", 1), ("bfloat16", 1), ("bfloat16", 2)):
        served = [{"model_name": name, "model_path": str(folder / name)} for name in oracles]
        common = {"device": options.device, "dtype": dtype, "replicas": replicas}
        common |= {"cache_max_bytes": 0, "request_timeout_s": 600}
        config = options.out / f"parity-{dtype}-{replicas}.yaml"
        config.write_text(yaml.safe_dump({"models": served, **common}))
        server = gateway(config, options.out, name=f"parity-{dtype}-{replicas}")
        try:
            server.start()
            took = await all_ready(server)
            for name, oracle in oracles.items():
                row = {"dtype": dtype, "replicas": replicas, "model": name, "ready_s": round(took)}
                row |= await oracle(server)
                found.append(row)
                print(json.dumps(row), flush=True)
        except Exception as error:  # noqa: BLE001 - the other format may still work
            print(f"{dtype}: {type(error).__name__}: {error}", flush=True)
            lines = server.log.read_text(errors="replace").splitlines()
            told = [line[:200] for line in lines if '"/readyz"' not in line]
            print("\n".join(told[-60:]), flush=True)
        finally:
            server.stop()
    return found


SENTENCES = [
    *("the quick brown fox jumps over the lazy dog", "Paris is the capital of France", "a", "42"),
    *(" ".join(["dense vectors meet sparse vectors"] * times) for times in (1, 3, 10, 40)),
]
PAIRS = [("What is the capital of France ?", text) for text in SENTENCES]


def tiny_oracles(folder: Path) -> dict[str, Callable[[Server], Any]]:
    """Make the checkpoints, and return what compares a server with transformers, by model."""
    from tests import checkpoints

    for name in ("tiny_qwen3_embedding", "tiny_bge_m3", "tiny_xlmr_reranker"):
        if not (folder / name).exists():
            (folder / name).mkdir(parents=True)
            getattr(checkpoints, name)(folder / name)
    return {
        "tiny_qwen3_embedding": _dense(folder / "tiny_qwen3_embedding", position=-1),
        "tiny_bge_m3": _dense(folder / "tiny_bge_m3", position=0),
        "tiny_xlmr_reranker": _scores(folder / "tiny_xlmr_reranker"),
    }


def _dense(folder: Path, *, position: int) -> Callable[[Server], Any]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    for text in SENTENCES:
        with torch.inference_mode():
            states = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0]
        rows.append(torch.nn.functional.normalize(states[position], dim=0).numpy())
    expected = np.stack(rows).astype(np.float64)

    async def compare(server: Server) -> dict[str, float]:
        together = await load.vectors(server.url, SENTENCES, folder.name, "base64")
        alone = [await load.vectors(server.url, [text], folder.name, "float") for text in SENTENCES]
        return {
            "least_cosine": float((together * expected).sum(axis=1).min()),
            "alone_against_together": float((together * np.concatenate(alone)).sum(axis=1).min()),
        }

    return compare


def _scores(folder: Path) -> Callable[[Server], Any]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = [
            model(**tokenizer(*pair, return_tensors="pt")).logits[0, 0].item() for pair in PAIRS
        ]

    async def compare(server: Server) -> dict[str, float]:
        body = {"model": folder.name, "query": PAIRS[0][0], "documents": SENTENCES}
        body["raw_scores"] = True
        answer = await _post(server, "/v1/rerank", body)
        scores = {item["index"]: item["relevance_score"] for item in answer["results"]}
        errors = [abs(scores[index] - logit) for index, logit in enumerate(logits)]
        return {"largest_error": max(errors)}

    return compare


# Speed


async def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Load each server in turn; print tokens/s, the share of the matrix rate, and memory."""
    model = models.find(options.model)
    tokenizer = Tokenizer.from_file(str(model.path / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    rate = _matrix_rate(model, options.device)
    print(f"matrix rate {rate / 1e12:.1f} TFLOP/s", flush=True)
    found = report.Run(model=model, rounds=options.rounds)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        setup = Setup(model, options.out, options.device, 0.4)
        options.starts = 1
        servers = await start_all(setup, options, found, stack)
        sample = texts.make(32, tokens=50, tokenizer=tokenizer, seed=0)
        servers = await agreeing(servers, sample, reference.vectors(model, sample), found)
        facts = {
            server.name: {
                "ready_s": round(found.ready_s[server.name][-1], 1),
                "least_cosine": round(found.cosine[server.name], 6),
                "device_mib": device_mib(server),
                "pss_mb": round(server.pss_mb()),
            }
            for server in servers
        }
        print(json.dumps(facts), flush=True)
        for cell in map(Cell.parse, options.cells):
            count = max(LEAST_TEXTS, 2 * cell.clients * cell.size) if cell.size > 1 else 512
            bodies = cell.bodies(
                texts.make(count, tokens=cell.tokens, tokenizer=tokenizer, seed=cell.tokens), "m"
            )
            samples: dict[str, list[load.Sample]] = {server.name: [] for server in servers}
            for _ in range(options.rounds):
                for server in servers:
                    one = await load.run(server.url, bodies, cell, options.seconds)
                    samples[server.name].append(one)
            for name, ones in samples.items():
                per_s = statistics.median(one.texts_per_s for one in ones)
                row = {
                    "model": model.name,
                    "cell": str(cell),
                    "server": name,
                    "texts_per_s": round(per_s, 1),
                    "tokens_per_s": round(per_s * cell.tokens),
                    "of_matrix_rate": round(per_s * cell.tokens * model.flop_per_token / rate, 3),
                    "p50_ms": round(statistics.median(one.p50_ms for one in ones), 2),
                    "load_share": round(statistics.median(one.load_share for one in ones), 2),
                }
                rows.append(row)
                print(json.dumps(row), flush=True)
    return {"matrix_flop_per_s": rate, "servers": facts, "rows": rows}


def _matrix_rate(model: models.Model, device: str) -> float:
    """Measure in a process of its own, so that this one holds no device."""
    dtype = "bfloat16" if device == "cuda" else "float32"
    shape = {"products": model.products, "rows": 16384, "seconds": 2.0, "dtype": dtype}
    code = f"from benchmarks import rates; print(rates.measure(**{shape!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=texts.ROOT, capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def device_mib(server: Server) -> int | None:
    """Return the device memory that a server's processes hold, as the driver counts it."""
    command = [
        "nvidia-smi",
        "--query-compute-apps=pid,used_memory",
        "--format=csv,noheader,nounits",
    ]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    pids = {process.pid for process in server.processes()}
    held = (line.split(",") for line in lines.splitlines() if line.count(",") == 1)
    return sum(int(size) for pid, size in held if int(pid) in pids)


# Faults


async def faults(options: argparse.Namespace) -> dict[str, Any]:
    """Kill a worker under load, and start one on a card that is full."""
    import psutil

    model = models.find(options.model)
    setup = Setup(model, options.out, options.device, 0.4)
    config = setup.config("faults", replicas=2)
    server = gateway(config, options.out, name="faults")
    found: dict[str, Any] = {}
    server.start()
    try:
        found["ready_s"] = round(await all_ready(server), 1)
        workers = [
            process
            for process in psutil.Process(server.process.pid).children(recursive=True)
            if "embedding_service.worker" in " ".join(process.cmdline())
        ]
        bodies = Cell(8, 64).bodies([f"text {i} of many" for i in range(64 * 200)], "m")
        sending = asyncio.create_task(load.send(server.url, bodies, Cell(8, 64)))
        await asyncio.sleep(0.5)
        workers[0].kill()
        began = time.perf_counter()
        await sending
        found["all_answered_after_kill_s"] = round(time.perf_counter() - began, 2)
        await all_ready(server)
        found["two_replicas_again_s"] = round(time.perf_counter() - began, 1)
        print(json.dumps(found), flush=True)
    finally:
        server.stop()
    import torch

    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(free - (1 << 30), dtype=torch.uint8, device="cuda")
    full = gateway(setup.config("full"), options.out, name="full")
    full.start()
    code = full.process.wait(timeout=300)
    found["full_card"] = {"status": code, "log": full.log.read_text()[-1500:]}
    print(json.dumps(found["full_card"]), flush=True)
    del held
    return found


# Servers


def gateway(config: Path, folder: Path, *, name: str) -> Server:
    from benchmarks.servers import _free_port, _python

    port = _free_port()
    command = _python(
        "embedding_service", "serve", "--config", config, "--port", port, "--log-level", "debug"
    )
    return Server(name, command, port, folder / f"{name}.log", {})


async def all_ready(server: Server) -> float:
    """Return the seconds until every replica of every model is ready."""
    began = time.perf_counter()
    while time.perf_counter() - began < 400:
        if server.process is None or server.process.poll() is not None:
            break
        try:
            states = (await _get(server, "/readyz"))["models"]
            if all(state == "ready" for model in states.values() for state in model):
                return time.perf_counter() - began
        except (OSError, KeyError, ValueError):
            pass
        await asyncio.sleep(0.2)
    raise RuntimeError(f"{server.name} is not ready after {time.perf_counter() - began:.0f} s")


async def _get(server: Server, path: str) -> dict[str, Any]:
    return await _ask(server, "GET", path, None)


async def _post(server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
    return await _ask(server, "POST", path, body)


async def _ask(server: Server, method: str, path: str, body: Any) -> dict[str, Any]:
    import aiohttp

    url = f"http://127.0.0.1:{server.port}{path}"
    async with aiohttp.ClientSession() as session:
        try:
            async with session.request(method, url, json=body) as response:
                return dict(await response.json(content_type=None))
        except aiohttp.ClientError as error:
            raise OSError(str(error)) from error


if __name__ == "__main__":
    main()

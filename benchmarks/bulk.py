"""`embedding-service embed` beside offline `LLM.embed` and sentence-transformers, in turn.

Texts of one length from JSONL to Parquet, tokenising, reading and writing included, against the
ceiling of benchmarks/ceiling.py, which is handed token ids, and against `encode` in the same number
format. A figure is the median over the rounds of the ratio within a round. Loading does not count.

    python -m benchmarks.bulk                     # part of `make bench`; four minutes on two cores
    python -m benchmarks.bulk --rounds 3 --seconds 5 --lengths 50
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from benchmarks import models, report, servers, texts
from benchmarks.servers import Setup

BATCH = 256  # texts a call of `LLM.embed`, as many as a message to the gateway's engine has
SHORT, LONG = 5, 250  # tokens, of "mixed"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=models.NAMES, default="minilm")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6, help="about, for each side")
    parser.add_argument("--lengths", nargs="+", default=["50", "mixed"], help="tokens, or mixed")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path, default=models.SCRATCH)
    return parser.parse_args()


class Encoder:
    """sentence-transformers' `encode` in a process of its own."""

    def __init__(self, model: models.Model, dtype: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ENCODE, str(model.path), dtype],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def texts_per_s(self, made: list[str]) -> float:
        """Return how many it embeds in a second."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(made), file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


_ENCODE = """
import json, sys, time
import torch
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], model_kwargs={"dtype": getattr(torch, sys.argv[2])})
for line in sys.stdin:
    texts = json.loads(line)
    began = time.perf_counter()
    model.encode(texts, batch_size=32, convert_to_numpy=True, show_progress_bar=False)
    print(len(texts) / (time.perf_counter() - began), flush=True)
"""


class Command:
    """The command's work with an engine that stays loaded."""

    def __init__(self, service: Any, folder: Path) -> None:
        self._service = service
        self._folder = folder

    async def texts_per_s(self, made: list[str]) -> float:
        """Return how many go from JSONL to Parquet in a second."""
        from embedding_service.bulk import columns, inputs, run
        from embedding_service.bulk.embedder import EngineEmbedder
        from embedding_service.bulk.manifest import Folder
        from embedding_service.bulk.options import BulkOptions
        from embedding_service.bulk.outputs import Layout
        from embedding_service.bulk.pipeline import Sink
        from embedding_service.bulk.rows import Corpus
        from embedding_service.telemetry import get_logger

        path, out = self._folder / "corpus.jsonl", self._folder / "vectors"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in made))
        shutil.rmtree(out, ignore_errors=True)
        options = BulkOptions()
        sources = inputs.find([str(path)])
        corpus = Corpus(sources, columns.choose(sources, options))
        embedder = EngineEmbedder(self._service, options, None)
        example = await embedder.probe()
        began = time.perf_counter()
        folder = Folder(out, {})
        folder.claim(embedder.identity)
        layout = Layout(options, corpus.columns.kind, example.by_output)
        sink = Sink(folder, layout, options.rows_per_part)
        await run.embed_rows(corpus, embedder, sink, options.rows_per_part, get_logger())
        assert folder.finish() == 0
        folder.close()
        return len(made) / (time.perf_counter() - began)


def make(length: str, count: int, tokenizer: Tokenizer, seed: int) -> list[str]:
    """Return texts of one length, or of many."""
    if length != "mixed":
        return texts.make(count, tokens=int(length), tokenizer=tokenizer, seed=seed)
    choose = random.Random(seed)
    sizes = [choose.randint(SHORT, LONG) for _ in range(count)]
    longest = texts.make(count, tokens=LONG, tokenizer=tokenizer, seed=seed)
    ends = [
        encoding.offsets[size - 2][1]  # the last one is a special token
        for encoding, size in zip(tokenizer.encode_batch(longest), sizes, strict=True)
    ]
    return [text[:end] for text, end in zip(longest, ends, strict=True)]


async def measure(options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    from embedding_service import telemetry
    from embedding_service.local import local_service
    from embedding_service.settings.load import load

    model = models.find(options.model)
    tokenizer = Tokenizer.from_file(str(model.path / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    folder = options.out / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    setup = Setup(model, folder, options.device, 0.2)
    telemetry.configure("warning", "text")
    found: dict[str, list[dict[str, float]]] = {length: [] for length in options.lengths}
    async with AsyncExitStack() as stack:
        settings = load(setup.config("bulk"))[0]
        service = await stack.enter_async_context(local_service(settings, telemetry.get_logger()))
        dtype = service.models.default.facts.dtype
        command = Command(service, options.out)
        ceiling = servers.ceiling(setup)
        stack.callback(ceiling.stop)
        ceiling.wait_ready()
        encoder = Encoder(model, dtype)
        stack.callback(encoder.stop)
        for length in options.lengths:
            count = 512
            for turn in range(-1, options.rounds):  # -1 warms up, and shows how many fit
                made = make(length, count, tokenizer, turn + 1)
                ids = [encoding.ids for encoding in tokenizer.encode_batch(made)]
                sides = {
                    "embed": lambda made=made: command.texts_per_s(made),
                    "LLM.embed": lambda ids=ids: asyncio.to_thread(offline, ceiling, ids),
                    "sentence-transformers": lambda made=made: asyncio.to_thread(
                        encoder.texts_per_s, made
                    ),
                }
                names = list(sides)[:: -1 if turn % 2 else 1]
                rates = {name: await sides[name]() for name in names}
                if turn >= 0:
                    found[length].append(rates)
                else:
                    count = BATCH * max(1, round(rates["embed"] * options.seconds / BATCH))
            print(f"{length} done", file=sys.stderr, flush=True)
    return found


def offline(ceiling: servers.Offline, ids: list[list[int]]) -> float:
    """Return the texts/s of all these texts in one call."""
    return ceiling.sample(ids, len(ids)).texts_per_s


def markdown(found: dict[str, list[dict[str, float]]]) -> str:
    """Return a table: texts a second, and the command's over each other's."""
    lines = [
        f"{report.machine()}; medians, with quartiles in brackets.",
        "",
        "| tokens | side | texts/s | embed / it |",
        "|---|---|---|---|",
    ]
    for length, rounds in found.items():
        for name in ("embed", "LLM.embed", "sentence-transformers"):
            rate = statistics.median(rates[name] for rates in rounds)
            ratios = [rates["embed"] / rates[name] for rates in rounds]
            shown = "" if name == "embed" else report.spread(ratios)
            lines.append(f"| {length} | {name} | {rate:.0f} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    print(markdown(asyncio.run(measure(parse()))))


if __name__ == "__main__":
    main()

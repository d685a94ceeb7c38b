"""The costs of the gateway before its first request: seconds to ready, memory, imports.

    python benchmarks/footprint.py [--config config/demo.yaml] [--starts 3]

Memory is PSS (/proc/PID/smaps_rollup): a page that several processes share counts in parts. The two
large tokenizers are made on the spot, with as many entries as those of XLM-RoBERTa (BGE-M3) and
Qwen3, of words in several alphabets; they are loaded as the gateway loads one, in a process of
their own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
XLMR_PIECES, QWEN3_ENTRIES = 250_002, 151_643
HEAVY = ("torch", "vllm", "transformers")
ALPHABETS = (  # with their share of the words
    ("abcdefghijklmnopqrstuvwxyzäöüéèñçşı", 60, 7),
    ("абвгдежзийклмнопрстуфхцчшщъыьэюя", 15, 7),
    ("αβγδεζηθικλμνξοπρστυφχψω", 3, 7),
    ("ابتثجحخدذرزسشصضطظعغفقكلمنهوي", 6, 5),
    ("कखगघचछजझटठडढतथदधनपफबभमयरलवशषसह", 4, 5),
    ("".join(map(chr, range(0x4E00, 0x4E00 + 6000))), 8, 2),
    ("".join(map(chr, range(0xAC00, 0xAC00 + 2000))), 4, 3),
)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=ROOT / "config" / "demo.yaml")
    parser.add_argument("--starts", type=int, default=3)
    arguments = parser.parse_args()
    rows = [*imports(arguments.starts), *starts(arguments.config, arguments.starts), *tokenizers()]
    width = max(len(name) for name, _ in rows)
    print(f"| {'':{width}} | measured |\n|-{'-' * width}-|----------|")
    for name, value in rows:
        print(f"| {name:{width}} | {value} |")


def imports(times: int) -> Iterator[tuple[str, str]]:
    """Import all of the gateway in fresh processes."""
    code = f"""
import sys, time
began = time.perf_counter()
import embedding_service.cli, embedding_service.server
print(time.perf_counter() - began, *(name for name in {HEAVY} if name in sys.modules))
"""
    seconds = []
    for _ in range(times):
        first, *heavy = _python("-c", code).split()
        assert not heavy, f"the gateway imports {heavy}"
        seconds.append(float(first))
    yield "importing the gateway", f"{min(seconds):.2f} s"
    yield f"of {', '.join(HEAVY)} it imports", "none"


def starts(config: Path, times: int) -> Iterator[tuple[str, str]]:
    """Start the service until it is ready; look at its memory."""
    listening, ready, gateway, worker = [], [], [], []
    for _ in range(times):
        began = time.monotonic()
        command = [sys.executable, "-m", "embedding_service", "serve", "--config", str(config)]
        command += ["--port", "0"]
        with subprocess.Popen(
            [*command, "--log-format", "json"], cwd=ROOT, stderr=subprocess.PIPE, text=True
        ) as process:
            for event in map(_event, process.stderr or []):
                if event == "listening":
                    listening.append(time.monotonic() - began)
                if event == "ready":
                    ready.append(time.monotonic() - began)
                    break
            else:
                raise SystemExit("the service did not get ready")
            time.sleep(1)
            gateway.append(_pss_mb(process.pid))
            worker.append(sum(map(_pss_mb, _children(process.pid))))
            maps = Path(f"/proc/{process.pid}/maps").read_text()
            assert not any(f"/{name}/" in maps for name in HEAVY), (
                "the gateway has a library of the engine's open"
            )
            process.send_signal(signal.SIGTERM)
    yield "port open after", f"{min(listening):.1f} s"
    yield (
        f"ready after ({config.stem})",
        f"{min(ready):.1f} s (of {times}: {', '.join(f'{s:.1f}' for s in ready)})",
    )
    yield "gateway, nothing cached", f"{max(gateway):.0f} MB"
    yield "engine worker", f"{max(worker):.0f} MB"


def tokenizers() -> Iterator[tuple[str, str]]:
    """Load tokenizers of the largest common vocabularies."""
    for name, build in (
        (f"XLM-R's tokenizer adds ({XLMR_PIECES:,} pieces)", xlmr_tokenizer),
        (f"Qwen3's tokenizer adds ({QWEN3_ENTRIES:,} entries)", qwen3_tokenizer),
    ):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "tokenizer.json")
            path.write_bytes(build().to_str().encode())
            megabytes, seconds = map(float, _python(__file__, "--load", str(path)).split())
            file_mb = path.stat().st_size / 1e6
            yield (
                name,
                f"{megabytes:.0f} MB (its file: {file_mb:.0f} MB, read in {seconds:.1f} s)",
            )


def load(path: Path) -> None:
    """Load a tokenizer as the gateway does; print the megabytes and seconds it takes."""
    from embedding_service.engine.protocol import ModelFacts
    from embedding_service.service.prompts import Encoder
    from embedding_service.settings.model import ModelOptions
    from embedding_service.types import Output

    facts = ModelFacts(
        architecture="",
        model_type="",
        outputs=(Output.DENSE,),
        dimension=1024,
        max_tokens=8192,
        vocab_size=XLMR_PIECES,
        pooling="CLS",
        dtype="float32",
        device="cpu",
        revision=None,
        weights="",
        engine_version="",
        prompts={},
        default_prompt_name=None,
        matryoshka=None,
    )
    options = ModelOptions(model_name="large")
    before, began = _pss_mb(os.getpid()), time.monotonic()
    received = path.read_bytes()  # the gateway keeps what the worker sent
    encoder = Encoder(facts, received, options)
    seconds = time.monotonic() - began
    print(_pss_mb(os.getpid()) - before, seconds)
    del encoder


def words() -> Iterator[str]:
    """Invent words without end, none twice."""
    dice = random.Random(0)
    alphabets, shares, lengths = zip(*ALPHABETS, strict=True)
    seen = set()
    while True:
        (kind,) = dice.choices(range(len(alphabets)), shares)
        length = max(1, round(dice.gauss(lengths[kind], 2)))
        word = "".join(dice.choices(alphabets[kind], k=length))
        if word not in seen:
            seen.add(word)
            yield word


def xlmr_tokenizer() -> Tokenizer:
    """Build a Unigram tokenizer with as many pieces as XLM-RoBERTa's."""
    pieces = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    for number, word in enumerate(words()):
        if len(pieces) == XLMR_PIECES:
            break
        pieces.append((f"▁{word}" if number % 2 else word, -8.0 - number / XLMR_PIECES))
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def qwen3_tokenizer() -> Tokenizer:
    """Build a byte-level BPE tokenizer with as many entries as Qwen3's."""
    vocabulary = {
        char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    merges: list[tuple[str, str]] = []
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for word in words():
        ((text, _),) = byte_level.pre_tokenize_str(word) or [("", None)]
        for end in range(2, len(text) + 1):
            if text[:end] not in vocabulary and len(vocabulary) < QWEN3_ENTRIES:
                vocabulary[text[:end]] = len(vocabulary)
                merges.append((text[: end - 1], text[end - 1]))
        if len(vocabulary) == QWEN3_ENTRIES:
            break
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _python(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=_environment(),
    ).stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _event(line: str) -> str | None:
    if not line.startswith("{"):
        print(line, end="", file=sys.stderr)
        return None
    event = json.loads(line)
    return str(event["event"])


def _children(pid: int) -> list[int]:
    own = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return own + [grandchild for child in own for grandchild in _children(child)]


def _pss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("the kernel does not tell the PSS")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        load(Path(sys.argv[2]))
    else:
        main()

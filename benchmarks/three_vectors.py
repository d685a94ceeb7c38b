"""What sparse and ColBERT vectors cost on top of dense ones: BGE-M3's shape, random weights, engine time.

    python benchmarks/three_vectors.py [--pairs 12] [--texts 4] [--tokens 350] [--layers 24] [--dtype auto]

A step with dense alone and one with all three alternate, so that what else the machine does falls on both; the
ratio is taken pair by pair. The vocabulary has 8,192 entries in place of 250,002, which saves 1 GB of file and
changes no arithmetic: an embedding is a look-up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

HIDDEN, HEADS, INTERMEDIATE, POSITIONS, VOCABULARY = 1024, 16, 4096, 8194, 8192
TARGET = 1.15


def build(folder: Path, *, layers: int) -> None:
    """Write a checkpoint as BAAI/bge-m3 is laid out."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    config = XLMRobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=INTERMEDIATE,
        max_position_embeddings=POSITIONS,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        position_embedding_type="absolute",
    )
    torch.manual_seed(0)
    XLMRobertaModel(config).to(torch.bfloat16).save_pretrained(folder)
    for name, width in (("sparse", 1), ("colbert", HIDDEN)):
        torch.save(torch.nn.Linear(HIDDEN, width).state_dict(), folder / f"{name}_linear.pt")
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3} | {f"w{i}": i for i in range(4, VOCABULARY)}
    special = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def measure(core, prompts, outputs) -> float:
    """Return the seconds of engine steps that the prompts take."""
    for number, ids in enumerate(prompts):
        core.add(str(number), ids, outputs=outputs, boundary=None)
    began = time.perf_counter()
    while core.unfinished:
        core.step()
    return time.perf_counter() - began


def compare(core, prompts, pairs: int) -> tuple[list[float], list[float]]:
    """Return the seconds of dense alone and of all three, measured in turn, first one first and then the other."""
    from embedding_service.types import Output

    kinds = [frozenset({Output.DENSE}), frozenset({Output.DENSE, Output.SPARSE, Output.COLBERT})]
    for outputs in kinds:
        measure(core, prompts, outputs)
    seconds: list[list[float]] = [[], []]
    for number in range(pairs):
        for kind in (0, 1) if number % 2 else (1, 0):
            seconds[kind].append(measure(core, prompts, kinds[kind]))
    return seconds[0], seconds[1]


def machine() -> str:
    """Return what this ran on."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12, help="measurements of each kind")
    parser.add_argument("--texts", type=int, default=4, help="texts in a step")
    parser.add_argument("--tokens", type=int, default=350, help="tokens of a text")
    parser.add_argument("--layers", type=int, default=24, help="BGE-M3 has 24")
    parser.add_argument("--dtype", default="auto", help="auto: bfloat16 where the hardware has it, else float32")
    options = parser.parse_args()
    from embedding_service.engine.process import environment
    from embedding_service.options import ModelOptions

    with tempfile.TemporaryDirectory(prefix="bge-m3-") as folder:
        build(Path(folder), layers=options.layers)
        model = ModelOptions(
            model_name="bge-m3",
            model_path=folder,
            dtype=options.dtype,
            max_model_len=1024,
            gpu_memory_utilization=0.3,
        )
        os.environ.update(environment(model, replica=0))
        from embedding_service.engine.vllm_compat import VllmCore

        core = VllmCore(model)
        numbers = random.Random(0)
        prompts = [[0, *numbers.choices(range(4, VOCABULARY), k=options.tokens - 2), 2] for _ in range(options.texts)]
        dense, everything = compare(core, prompts, options.pairs)
        facts = core.facts(HIDDEN)
    ratios = sorted(b / a for a, b in zip(dense, everything, strict=True))
    low, _, high = statistics.quantiles(ratios, n=4)
    result = {
        "machine": machine(),
        "vllm": facts.engine_version,
        "dtype": facts.dtype,
        "shape": f"{options.layers} layers, hidden {HIDDEN}, {HEADS} heads, vocabulary {VOCABULARY} (BGE-M3: 250,002)",
        "step": f"{options.texts} texts of {options.tokens} tokens",
        "dense_ms": round(statistics.median(dense) * 1000, 1),
        "all_three_ms": round(statistics.median(everything) * 1000, 1),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(low, 3), round(high, 3)],
        "ratio_range": [round(ratios[0], 3), round(ratios[-1], 3)],
        "pairs": options.pairs,
        "within_target": statistics.median(ratios) <= TARGET,
    }
    print(json.dumps(result, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # vLLM's atexit hooks can hang

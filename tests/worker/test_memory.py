"""The memory of a replica on a CUDA device: reckoned on arguments alone, with a stubbed device."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from embedding_service.families.weights import weights_bytes
from embedding_service.settings.model import ModelOptions
from embedding_service.worker import memory
from embedding_service.worker.memory import Need, Shape
from tests.worker.direct import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.worker.conftest import Checkpoint

GIB = 1 << 30
CARD = 80 * GIB
STEP = Shape(tokens=16384, texts=512, steps=2, width=2)


class Qwen3Embedding06B(SimpleNamespace):
    """The numbers of https://huggingface.co/Qwen/Qwen3-Embedding-0.6B/blob/main/config.json."""

    attn_type = "decoder"
    hf_text_config = SimpleNamespace(intermediate_size=3072)

    def get_hidden_size(self) -> int:
        return 1024

    def get_total_num_hidden_layers(self) -> int:
        return 28

    def get_total_num_kv_heads(self) -> int:
        return 8

    def get_head_size(self) -> int:
        return 128


def options(**fields: Any) -> ModelOptions:
    return ModelOptions(model_name="m", **fields)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Return a folder with 1,000 numbers in float32, 10 in int8, and a file that is no weight."""
    tensors = {"a": np.zeros((10, 100), np.float32), "b": np.zeros(10, np.int8)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text("{}")
    return str(tmp_path)


def test_weights_count_as_they_are_loaded(folder: str) -> None:
    """Floats take the width of the dtype, quantised numbers their own."""
    assert weights_bytes(folder, width=2) == 2010
    assert weights_bytes(folder, width=4) == 4010


def test_other_weight_files_count_where_there_are_no_safetensors(tmp_path: Path) -> None:
    """A repository of the old kind is reckoned by the size of its file."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 123)
    assert weights_bytes(str(tmp_path), width=2) == 123


def test_a_cache_holds_the_steps_in_flight() -> None:
    """A token of Qwen3-0.6B has 114,688 bytes of keys and values, and each text a block more."""
    tokens = 2 * 16384 + 512 * 16
    assert memory.cache_bytes(Qwen3Embedding06B(), STEP, block=16) == 114_688 * tokens


def test_ranks_divide_weights_and_cache(folder: str) -> None:
    """Tensor parallelism spreads both over its devices."""
    model, two = Qwen3Embedding06B(), dataclasses.replace(STEP, ranks=2)
    whole = memory.cache_bytes(model, STEP, block=16)
    assert memory.cache_bytes(model, two, block=16) == whole // 2
    assert memory.need(folder, model, two, cache=7).weights == 1005
    assert memory.need(folder, model, STEP, cache=7).cache == 7


@pytest.mark.parametrize(
    ("inner", "numbers", "cached", "shown_mib"),
    [(3072, 472_000_000, True, 7218), (4096, 341_000_000, False, 2060)],
)
def test_the_estimate_is_what_a_device_showed(
    folder: str, inner: int, numbers: int, cached: bool, shown_mib: int
) -> None:
    """On an H200 nvidia-smi showed so much for the shapes of Qwen3-0.6B and BGE-M3 with a small
    vocabulary; the estimate is above it, by less than a GiB.
    """
    model = Qwen3Embedding06B(hf_text_config=SimpleNamespace(intermediate_size=inner))
    cache = memory.cache_bytes(model, STEP, block=16) if cached else 0
    taken = memory.need(folder, model, STEP, cache=cache)
    taken = dataclasses.replace(taken, weights=2 * numbers)
    shown = shown_mib << 20
    assert shown <= taken.total <= shown + GIB


NEED = Need(weights=10 * GIB, cache=6 * GIB, step=2 * GIB, context=2 * GIB)


def test_what_fits_is_a_share_of_the_device() -> None:
    """vLLM is told what the model takes, not what it may take."""
    assert memory.share(NEED, options(), free=CARD, total=CARD) == 20 / 80


@pytest.mark.parametrize(
    ("fields", "free", "words"),
    [
        (
            {"gpu_memory_utilization": 0.2},
            CARD,
            "of 80.0; gpu_memory_utilization 0.2 allows 16.0: raise it",
        ),
        ({}, 19 * GIB, "19.0 are free: end what holds the device"),
        ({"replicas": 5}, CARD, "5 replicas share the device: lower replicas"),
        ({"replicas": 10, "devices": [0, 1]}, CARD, "5 replicas share the device"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], free: int, words: str) -> None:
    """The message has the sizes, and says what to change."""
    with pytest.raises(MemoryError) as refused:
        memory.share(NEED, options(**fields), free=free, total=CARD)
    assert words in str(refused.value)
    assert "weights 10.0" in str(refused.value)
    assert "lower" in str(refused.value)


def test_replicas_spread_over_devices_fit() -> None:
    """Four replicas on two devices are two on each."""
    spread = options(replicas=8, devices=[0, 1])
    assert memory.share(NEED, spread, free=CARD, total=CARD) == 20 / 80


ARGUMENTS = """
import json, sys
from types import SimpleNamespace
import torch
torch.cuda.mem_get_info = lambda *_: (free, total)
torch.cuda.get_device_capability = lambda *_: (9, 0)
from embedding_service.settings.model import ModelOptions
from embedding_service.worker.planning import planned
from embedding_service.worker.vllm_arguments import engine_arguments
from vllm.v1.worker.utils import request_memory

free, total, found = 20 << 30, 80 << 30, []
for folder in sys.argv[1:]:
    options = ModelOptions(model_name="m", model_path=folder)
    args = engine_arguments(planned(options), options, "cuda")
    snapshot = SimpleNamespace(free_memory=free, total_memory=total, device_="cuda:0")
    taken = request_memory(snapshot, SimpleNamespace(gpu_memory_utilization=args.gpu_memory_utilization))
    found.append([taken, args.kv_cache_memory_bytes, args.max_num_seqs, args.async_scheduling, args.dtype])
print(json.dumps(found))
"""


@pytest.mark.engine
def test_vllm_is_told_what_the_model_takes(checkpoint: Checkpoint) -> None:
    """On a stubbed device of which a quarter is free, vLLM's own check lets a small model in; a
    decoder's cache is that of two steps, and an encoder has none.
    """
    folders = [str(checkpoint(name)) for name in ("tiny_qwen3_embedding", "tiny_bge_m3")]
    done = subprocess.run(
        [sys.executable, "-c", ARGUMENTS, *folders],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    decoder, encoder = json.loads(done.stdout.splitlines()[-1])
    for taken, _, texts, overlapped, dtype in (decoder, encoder):
        assert GIB < taken < 2 * GIB
        assert (texts, overlapped, dtype) == (512, True, "bfloat16")
    # 2 layers of 2 heads of 32 numbers, keys and values; two steps of 32,768 tokens, and blocks.
    assert decoder[1] == 2 * 2 * 2 * 32 * 2 * (2 * 32768 + 16 * 512)
    assert encoder[1] is None

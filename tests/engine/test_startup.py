"""What ends start-up ends it with one line and exit status 4, whatever vLLM had to say about it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.engine.conftest import Checkpoint

pytestmark = pytest.mark.engine

# What is wrong, and what the line must say about it.
CAUSES = {
    "missing_folder": ["model_path", "/nowhere/to/be/found"],
    "no_checkpoint": ["config.json"],
    "broken_checkpoint": ["cannot load", "broken_checkpoint"],
    "bad_dtype": ["dtype", "bfloat16"],  # what it may be
    "unknown_engine_args": ["engine_args", "no_such_option"],
    "no_fast_tokenizer": ["no fast tokenizer"],
    "share_of_memory": ["not enough memory", "gpu-memory-utilization"],
    "too_little_memory": ["not enough memory", "kv-cache-memory-bytes"],
    "long_context": ["max_model_len", "99999"],
}
AT_DEBUG = "broken_checkpoint"


@dataclass(frozen=True)
class Ending:
    """How a start-up ended: the lines on stderr that are log events, and those that are not."""

    status: int
    plain: list[str]
    events: list[dict[str, Any]]


def _start(folder: Path, settings: dict[str, Any]) -> Ending:
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({"port": 0, "log_format": "json", "enforce_eager": True, **settings}))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDDING_")}
    command = [sys.executable, "-m", "embedding_service", "serve", "--config", str(config)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    plain, events = [], []
    for line in done.stderr.splitlines():
        if line.startswith("{"):
            events.append(json.loads(line))
        else:
            plain.append(line)
    assert done.stdout == ""
    return Ending(done.returncode, plain, events)


def _wrong_settings(checkpoint: Checkpoint, folder: Path) -> dict[str, dict[str, Any]]:
    """Return for each cause the settings that have it."""
    encoder, decoder = checkpoint("tiny_bge_m3", heads=()), checkpoint("tiny_qwen3_embedding")

    def copy(name: str) -> Path:
        return shutil.copytree(encoder, folder / name)

    (folder / "no_checkpoint").mkdir()
    broken = copy("broken_checkpoint")
    os.truncate(broken / "model.safetensors", (broken / "model.safetensors").stat().st_size // 2)
    slow = copy("no_fast_tokenizer")
    (slow / "tokenizer.json").unlink()
    (slow / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    return {
        "missing_folder": {"model_path": "/nowhere/to/be/found"},
        "no_checkpoint": {"model_path": str(folder / "no_checkpoint")},
        "broken_checkpoint": {"model_path": str(broken)},
        "bad_dtype": {"model_path": str(encoder), "engine_args": {"dtype": "float77"}},
        "unknown_engine_args": {"model_path": str(encoder), "engine_args": {"no_such_option": 1}},
        "no_fast_tokenizer": {"model_path": str(slow)},
        "share_of_memory": {"model_path": str(encoder), "gpu_memory_utilization": 1.0},
        "too_little_memory": {"model_path": str(decoder), "engine_args": {"kv_cache_memory_bytes": 1 << 50}},
        "long_context": {"model_path": str(encoder), "max_model_len": 99999},
    }


@pytest.fixture(scope="module")
def endings(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Ending]]:
    """Return a function that waits for the end of a start-up; they run two at a time, one of them at level debug."""
    runs = _wrong_settings(checkpoint, tmp_path_factory.mktemp("wrong"))
    runs[AT_DEBUG]["log_level"] = "debug"
    with ThreadPoolExecutor(2) as threads:
        futures: dict[str, Future[Ending]] = {
            cause: threads.submit(_start, tmp_path_factory.mktemp(cause), {"model_name": "wrong", **options})
            for cause, options in runs.items()
        }
        yield lambda cause: futures[cause].result()


@pytest.mark.parametrize("cause", CAUSES)
def test_one_line_names_the_cause(endings: Callable[[str], Ending], cause: str) -> None:
    """Start-up ends with status 4 and one line that names the cause; only the debug log has the engine's traceback."""
    ending = endings(cause)
    assert ending.status == 4
    (line,) = ending.plain
    assert line.startswith("embedding-service: wrong: ")
    for word in CAUSES[cause]:
        assert word in line
    traced = [event["level"] for event in ending.events if "Traceback" in json.dumps(event)]
    assert set(traced) == ({"debug"} if cause == AT_DEBUG else set())

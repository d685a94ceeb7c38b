"""A failed start ends with one line and exit status 4, whatever vLLM had to say about it.

`python -m tests.worker.test_startup` reads settings of models by cause, as JSON, and writes the
line that each of them would end a worker with: most of a start is vLLM's imports, and one process
has enough of them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from embedding_service.engine.environment import environment
from embedding_service.settings.model import ModelOptions
from embedding_service.worker import loading

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor
    from pathlib import Path

    from tests.worker.conftest import Checkpoint

pytestmark = pytest.mark.engine

# Each fault, with the words that the line must have about it.
CAUSES = {
    "missing_folder": ["model_path", "/nowhere/to/be/found"],
    "no_checkpoint": ["config.json"],
    "broken_checkpoint": ["cannot be read", "broken_checkpoint"],
    "bad_dtype": ["dtype", "bfloat16"],  # what it may be
    "unknown_engine_args": ["engine_args", "no_such_option"],
    "no_fast_tokenizer": ["no fast tokenizer"],
    "share_of_memory": ["not enough memory", "gpu-memory-utilization"],
    "too_little_memory": ["not enough memory", "kv-cache-memory-bytes"],
    "long_context": ["max_model_len", "99999"],
}
AT_DEBUG = "share_of_memory"
# For these a whole gateway is started; what the others are called is asked of one worker's process.
WHOLE = ("missing_folder", "no_checkpoint", "broken_checkpoint", "share_of_memory")


@dataclass(frozen=True)
class Ending:
    """How a start-up ended: the lines on stderr that are log events, and those that are not."""

    status: int
    plain: list[str]
    events: list[dict[str, Any]]


def _start(folder: Path, settings: dict[str, Any]) -> Ending:
    config = folder / "config.yaml"
    config.write_text(
        yaml.safe_dump({"port": 0, "log_format": "json", "enforce_eager": True, **settings})
    )
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("EMBEDDING_")
    }
    command = [sys.executable, "-m", "embedding_service", "serve", "--config", str(config)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    plain, events = [], []
    for line in done.stderr.splitlines():
        if line.startswith("{"):
            events.append(json.loads(line))
        else:
            plain.append(line)
    assert done.stdout == ""
    return Ending(done.returncode, plain, events)


def _explained(settings: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return each cause's line, from one process with a worker's environment."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.worker.test_startup"],
        input=json.dumps(settings),
        env={**os.environ, **environment(ModelOptions(), replica=0)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    lines: dict[str, str] = json.loads(done.stdout.splitlines()[-1])  # vLLM may have written others
    return lines


def main() -> None:
    """Be that process."""
    lines = {}
    for cause, settings in json.load(sys.stdin).items():
        options = ModelOptions(model_name="wrong", enforce_eager=True, **settings)
        try:
            loading.load(options)
        except Exception as error:  # noqa: BLE001 - as in a worker
            lines[cause] = loading.explain(error, options)
    print(json.dumps(lines), flush=True)  # noqa: T201 - for the test
    os._exit(0)  # as a worker: vLLM's atexit hooks can hang


def _wrong_settings(checkpoint: Checkpoint, folder: Path) -> dict[str, dict[str, Any]]:
    """Return for each cause the settings that have it."""
    encoder, decoder = checkpoint("tiny_bge_m3", heads=()), checkpoint("tiny_qwen3_embedding")

    def copy(name: str) -> Path:
        return shutil.copytree(encoder, folder / name)

    (folder / "no_checkpoint").mkdir()
    broken = copy("broken_checkpoint")
    os.truncate(broken / "model.safetensors", (broken / "model.safetensors").stat().st_size // 2)
    slow = copy("no_fast_tokenizer")
    (slow / "tokenizer.json").rename(slow / "vocab.json")  # a file that ByT5 does not read
    (slow / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    return {
        "missing_folder": {"model_path": "/nowhere/to/be/found"},
        "no_checkpoint": {"model_path": str(folder / "no_checkpoint")},
        "broken_checkpoint": {"model_path": str(broken)},
        "bad_dtype": {"model_path": str(encoder), "engine_args": {"dtype": "float77"}},
        "unknown_engine_args": {"model_path": str(encoder), "engine_args": {"no_such_option": 1}},
        "no_fast_tokenizer": {"model_path": str(slow)},
        "share_of_memory": {
            "model_path": str(encoder),
            "engine_args": {"gpu_memory_utilization": 1.0},
        },
        "too_little_memory": {
            "model_path": str(decoder),
            "engine_args": {"kv_cache_memory_bytes": 1 << 50},
        },
        "long_context": {"model_path": str(encoder), "max_model_len": 99999},
    }


class Runs:
    """The start-ups, two at a time, one at level debug; and the process with others' lines."""

    def __init__(
        self, threads: Executor, settings: dict[str, dict[str, Any]], folder: Path
    ) -> None:
        rest = {cause: options for cause, options in settings.items() if cause not in WHOLE}
        self.lines = threads.submit(_explained, rest)
        self.endings = {}
        for cause in WHOLE:
            (folder / f"start-{cause}").mkdir()
            options = {
                "model_name": "wrong",
                "log_level": "debug" if cause == AT_DEBUG else "info",
                **settings[cause],
            }
            self.endings[cause] = threads.submit(_start, folder / f"start-{cause}", options)


@pytest.fixture(scope="module")
def runs(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Return the start-ups, which go on while their ends are waited for."""
    folder = tmp_path_factory.mktemp("wrong")
    with ThreadPoolExecutor(2) as threads:
        yield Runs(threads, _wrong_settings(checkpoint, folder), folder)


@pytest.mark.parametrize("cause", WHOLE)
def test_one_line_names_the_cause(runs: Runs, cause: str) -> None:
    """Start-up ends with status 4 and a line with the cause; the debug log has the rest."""
    ending = runs.endings[cause].result()
    assert ending.status == 4
    (line,) = ending.plain
    assert line.startswith("embedding-service: wrong: ")
    for word in CAUSES[cause]:
        assert word in line
    traced = [event["level"] for event in ending.events if "Traceback" in json.dumps(event)]
    assert set(traced) == ({"debug"} if cause == AT_DEBUG else set())


@pytest.mark.parametrize("cause", [cause for cause in CAUSES if cause not in WHOLE])
def test_a_worker_names_the_cause(runs: Runs, cause: str) -> None:
    """An error of vLLM's becomes one line with the setting that is wrong."""
    line = runs.lines.result()[cause]
    assert "\n" not in line
    for word in CAUSES[cause]:
        assert word in line


if __name__ == "__main__":
    main()

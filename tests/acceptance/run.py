"""Start this project's gateway with checkpoints that `build` made, compare, and stop it.

Results also go into OUT/results.jsonl. Workers are forked from a process that has imported vLLM
already (`zygote.py`), which takes 12 s out of each start.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.acceptance import compare

if TYPE_CHECKING:
    from collections.abc import Iterator

    Told = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
MOST_MODELS = 16  # of one gateway, 0.8 GB each
SETTINGS = {
    "--trust-remote-code": ("trust_remote_code", lambda value: value == "true"),
    "--engine-args": ("engine_args", json.loads),
    "--dtype": ("dtype", str),
    "--score-label": ("score_label", str),
    "--task": ("task", str),
}
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


def entry(out: Path, reference: Told) -> Told:
    """Return a row's settings in the gateway's configuration."""
    settings = {
        "model_name": reference["hub"],
        "model_path": str(out / reference["name"]),
        "required": False,
        "dtype": "float32",
        "enforce_eager": True,  # compiling so small a model takes longer than all else
        "gpu_memory_utilization": 0.02,
    }
    args = reference["args"]
    for flag, value in zip(args[::2], args[1::2], strict=True):
        name, parse = SETTINGS[flag]
        settings[name] = parse(value)
    return settings


@contextlib.contextmanager
def zygote(folder: Path) -> Iterator[str]:
    """Start the process that workers are forked from; yield its socket."""
    path = str(folder / "zygote")
    command = [sys.executable, "-m", "tests.acceptance.zygote", path]
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while b"zygote ready" not in process.stdout.readline():
            assert process.poll() is None, "the zygote ended"
        try:
            yield path
        finally:
            process.kill()


@contextlib.contextmanager
def gateway(socket: str, config: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a gateway whose workers are forked at `socket`."""
    command = [sys.executable, "-m", "tests.acceptance.zygote", socket]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "serve", "--config", str(config)],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def loaded(url: str) -> set[str]:
    """Return the models that can be asked."""
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=20) as answer:
            return {model["id"] for model in json.loads(answer.read())["data"]}
    except OSError:
        return set()


def refused(log: Path) -> dict[str, str]:
    """Return why models could not be loaded, by their names."""
    lines = log.read_text(errors="replace").splitlines()
    # The last one may be half written.
    events = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    found = [event for event in events if event.get("event") == "model_not_loaded"]
    return {event["model"]: event["reason"] for event in found}


def serve(
    out: Path, port: int, references: list[Told], socket: str, limit_s: float = 600
) -> Iterator[Told]:
    """Yield the result of each row, served by one gateway."""
    waiting = {reference["hub"]: reference for reference in references}
    names = "+".join(reference["name"] for reference in references)
    config, log = out / f"config-{port}.json", out / f"server-{names[:150]}.log"
    models = [entry(out, reference) for reference in waiting.values()]
    config.write_text(json.dumps({"models": models, "port": port, "log_format": "json"}))
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + limit_s
    with gateway(socket, config, log) as process:
        while waiting and time.monotonic() < end and process.poll() is None:
            time.sleep(0.3)
            for hub in loaded(url) & waiting.keys():
                yield compare.compare(url, waiting.pop(hub))
            reasons = refused(log)
            for hub in reasons.keys() & waiting.keys():
                yield failed(waiting.pop(hub), "NOT SERVED", reasons[hub])
    for reference in waiting.values():
        yield failed(reference, "TIMEOUT", log.read_text(errors="replace")[-600:])


def failed(reference: Told, verdict: str, message: str) -> Told:
    """Return the result of a row that was not served."""
    shown = {key: reference[key] for key in ("name", "hub", "may_refuse")}
    return {**shown, "verdict": verdict, "message": message}


def groups(references: list[Told]) -> list[list[Told]]:
    """Spread rows over gateways, none of which has one hub name twice.

    Whatever may end its engine comes last.
    """
    spread: list[dict[str, Told]] = []
    for reference in sorted(references, key=lambda r: (r["kind"] == "positions", r["name"])):
        hub = reference["hub"]
        free = [group for group in spread if len(group) < MOST_MODELS and hub not in group]
        if not free:
            free = [{}]
            spread += free
        free[0][hub] = reference
    return [list(group.values()) for group in spread]


def run(out: Path, port: int, names: list[str]) -> Iterator[Told]:
    """Serve and compare rows, all without names; yield their results."""
    references = compare.read(out, names)
    with (
        tempfile.TemporaryDirectory() as folder,
        zygote(Path(folder)) as socket,
        (out / "results.jsonl").open("a") as file,
    ):
        for group in groups(references):
            for result in serve(out, port, group, socket):
                file.write(json.dumps(result, ensure_ascii=False) + "\n")
                yield result

"""infinity's own virtual environment, made where it is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from benchmarks.models import SCRATCH

VENV = SCRATCH / "infinity"


def command() -> str:
    """Return infinity's program, installed once (two minutes). Raises `CalledProcessError`."""
    if not (VENV / "complete").exists():
        print("installing infinity into .bench/infinity", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
        pip = [
            str(VENV / "bin" / "python"),
            "-m",
            "pip",
            "--quiet",
            "--disable-pip-version-check",
            "install",
        ]
        index = os.environ.get("TORCH_CPU_INDEX", "https://download.pytorch.org/whl/cpu")
        torch = f"torch=={metadata.version('torch')}"
        if subprocess.run([*pip, "--no-deps", torch], check=False).returncode:
            subprocess.run([*pip, "--no-deps", "--index-url", index, torch], check=True)
        requirements = str(Path(__file__).with_name("infinity-requirements.txt"))
        subprocess.run([*pip, "-r", requirements], check=True)
        (VENV / "complete").touch()
    return str(VENV / "bin" / "infinity_emb")

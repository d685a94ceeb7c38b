"""The machine of a reader: a checkout, a home and a `/` in one folder, in which blocks are run.

Its PATH has the `ORDINARY` programs and those of `reader/`, where `listed.sh` has the programs that
need more than a folder. Another program is not found, and ends the block.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.documents import ROOT
from tests.test_cli import ENVIRONMENT

if TYPE_CHECKING:
    from tests.documents import Block

OWN = Path(__file__).with_name("reader")
ORDINARY = (
    *("awk", "bash", "cat", "chmod", "cp", "date", "dirname", "env", "grep", "gzip", "head", "ls"),
    *("make", "mkdir", "mktemp", "openssl", "ps", "rm", "sed", "sh", "sleep", "tail", "uname"),
    *("curl", "install", "zcat"),
)
CLONED = ("Makefile", "Dockerfile", "pyproject.toml", "config", "deploy", "tests/clients")
STAMPS = ("pyvenv.cfg", ".engine-cpu", ".demo", ".test", ".project")
# By which a `make test ARGS=...` around the tests would hand its variables to a page's `make`.
_OF_MAKE = {"ARGS", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS"}
_FROM_THE_ROOT = re.compile(r"(?<![\w.$}/-])/(?=(?:etc|opt|srv|var/cache)/)")
_ADDRESS = re.compile(r"https?://[\w.-]+(?::\d+)?(?=[/\s\"']|$)", re.MULTILINE)


class Shell:
    """A folder to run blocks in; the engine is the fake one, and `serve` leaves a gateway behind."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.root, self.checkout = folder, folder / "root", folder / "checkout"
        outside = {key: value for key, value in ENVIRONMENT.items() if key not in _OF_MAKE}
        self._environment = outside | {
            "EMBEDDING_DRAIN_GRACE_S": "0",
            "EMBEDDING_ENGINE": "fake",
            "EMBEDDING_PORT": str(port),
            "HOME": str(folder / "home"),
            "PATH": str(folder / "bin"),
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "READER": str(folder),
            "SHELL": "/bin/bash",
        }
        for place in ("home", "root/etc/systemd/system", "root/etc/nginx/conf.d"):
            (folder / place).mkdir(parents=True)
        shutil.copytree(OWN, folder / "bin")
        for program in ORDINARY:
            if found := shutil.which(program):
                (folder / "bin" / program).symlink_to(found)
        self._clone()

    def _clone(self) -> None:
        """Copy what blocks read, and make a `.venv` that `make` takes for complete."""
        for name in (*CLONED, *(path.name for path in ROOT.glob("requirements*.txt"))):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
            copy(ROOT / name, self.checkout / name)
        venv = self.checkout / ".venv"
        shutil.copytree(OWN, venv / "bin")
        for name in (*STAMPS, "bin/activate"):
            (venv / name).touch()

    def run(self, block: Block, text: str) -> str:
        """Run a block, which reads as `text`; return what it printed. Raises `AssertionError`."""
        if block.language == "python":
            program = self.checkout / "program.py"
            program.write_text(_ADDRESS.sub("http://ADDRESS", text))
            text = 'sed -i "s|ADDRESS|$(cat $READER/address)|" program.py; $PYTHON program.py'
        else:
            text = _ADDRESS.sub("http://$(cat $READER/address)", text)
            text = _FROM_THE_ROOT.sub(f"{self.root}/", text)
        done = subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", f". $READER/bin/listed.sh\n{text}"],
            cwd=self.checkout,
            env=self._environment,
            input="emb-of-standard-input\n",
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def close(self) -> None:
        """End the gateway that a block has left behind."""
        pid = self.folder / "pid"
        if pid.exists():
            with contextlib.suppress(ProcessLookupError):  # it ended itself, of which a block tells
                os.kill(int(pid.read_text()), signal.SIGKILL)

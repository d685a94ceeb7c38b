"""The gateway's work a request, counted in instructions: `python -m benchmarks.instructions DIR …`.

Each DIR is a checkout, and the first one is what the others are compared with. Times of a shared
machine differ by a tenth from run to run, these counts by half a percent. Valgrind's callgrind
(https://valgrind.org/docs/manual/cl-manual.html) counts all of the gateway's process and nothing
of the fake engine's.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from benchmarks.load import HEADERS, Cell

if TYPE_CHECKING:
    from collections.abc import Iterator

CELLS = {Cell(1, 1, 8): 150, Cell(16, 1, 8): 12, Cell(4, 32, 8): 6}  # and requests of each client
WARM_UP = 10
SERVE = (
    "serve --engine fake --model-name fake --port 0 --log-format json --cache-max-bytes 0 "
    "--startup-timeout-s 600"
)


class Counted:
    """A gateway under callgrind; `count` returns its instructions since it was last asked."""

    def __init__(self, checkout: str, folder: Path) -> None:
        self._folder = folder
        tool = ["valgrind", "--tool=callgrind", "--instr-atstart=no"]
        tool += [f"--callgrind-out-file={folder}/out", f"--vgdb-prefix={folder}/vgdb"]
        command = [*tool, sys.executable, "-m", "embedding_service", *SERVE.split()]
        environ = {**os.environ, "PYTHONPATH": checkout}
        self._process = subprocess.Popen(
            command, cwd=checkout, env=environ, stderr=subprocess.PIPE, text=True
        )
        self.address = self._until_ready()
        self._dumps = 0

    def _until_ready(self) -> str:
        address = ""
        for line in self._process.stderr or ():
            event = json.loads(line) if line.startswith("{") else {}
            address = event.get("address", address)
            if event.get("event") == "ready":  # its log is of no more interest
                Thread(target=self._process.communicate, daemon=True).start()
                return str(address)
        raise RuntimeError("the gateway ended before it was ready")

    def control(self, *options: str) -> None:
        """Have callgrind begin, forget or write what it counts."""
        prefix = f"--vgdb-prefix={self._folder}/vgdb"
        command = ["callgrind_control", prefix, *options, str(self._process.pid)]
        subprocess.run(command, check=True, capture_output=True)

    def count(self) -> int:
        """Return the instructions since this was last asked."""
        self.control("-d")
        self._dumps += 1
        written = (self._folder / f"out.{self._dumps}").read_text(errors="replace")
        summary = next(line for line in written.splitlines() if line.startswith("summary:"))
        return int(summary.split()[1])

    def close(self) -> None:
        """End the gateway."""
        self._process.terminate()
        self._process.wait()


@contextlib.contextmanager
def counted(checkout: str) -> Iterator[Counted]:
    """Run the gateway of a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        gateway = Counted(checkout, Path(folder))
        with contextlib.closing(gateway):
            yield gateway


def send(address: str, body: bytes, requests: int) -> None:
    """Be one client on a kept connection."""
    connection = http.client.HTTPConnection(address)
    for _ in range(requests):
        connection.request("POST", "/v1/embeddings", body, HEADERS)
        answer = connection.getresponse()
        answer.read()
        if answer.status != http.client.OK:
            raise RuntimeError(f"status {answer.status}")


def load(address: str, cell: Cell, requests: int) -> None:
    """Let the clients of a cell send so many requests each."""
    words = " ".join(f"w{number}" for number in range(cell.tokens))
    (body,) = cell.bodies([f"{index} {words}" for index in range(cell.size)], "fake")
    with ThreadPoolExecutor(cell.clients) as clients:
        list(clients.map(partial(send, address, body), [requests] * cell.clients))


def measure(checkout: str) -> dict[Cell, float]:
    """Return thousands of instructions a request, for each cell."""
    with counted(checkout) as gateway:
        for cell in CELLS:
            load(gateway.address, cell, WARM_UP)
        gateway.control("-i", "on")
        load(gateway.address, next(iter(CELLS)), WARM_UP)  # what was translated before is not
        gateway.control("-z")
        found = {}
        for cell, requests in CELLS.items():
            load(gateway.address, cell, requests)
            found[cell] = gateway.count() / (requests * cell.clients) / 1000
        return found


def main() -> None:
    """Print a line for each cell and checkout."""
    checkouts = sys.argv[1:] or ["."]
    found = {checkout: measure(str(Path(checkout).resolve())) for checkout in checkouts}
    for cell in CELLS:
        for checkout, counts in found.items():
            ratio = counts[cell] / found[checkouts[0]][cell]
            sys.stdout.write(f"{cell}: {checkout}: {counts[cell]:,.0f} thousand, {ratio:.3f}\n")


if __name__ == "__main__":
    main()

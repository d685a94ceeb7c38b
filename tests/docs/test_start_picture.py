"""docs/images/start.svg is a real start; `python -m tests.docs.test_start_picture` takes it anew."""

from __future__ import annotations

import fcntl
import html
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from io import StringIO
from typing import TYPE_CHECKING

import pytest

from embedding_service.terminal import Story
from tests.child import wait_until
from tests.documents import ROOT
from tests.test_cli import ENVIRONMENT

if TYPE_CHECKING:
    from tests.conftest import RunningGateway

PICTURE = ROOT / "docs" / "images" / "start.svg"
COMMAND = "embedding-service serve --config config/demo.yaml"
COLUMNS = 118
# A line's beginning: a stage, or a name with its value or a request behind it.
SHAPE = re.compile(
    r"^\s*(✓ [a-zA-Z -]+?(?=  )|Ready after|(?:url|page|docs)(?=  )|curl|import openai)"
)


def shape(text: str) -> list[str]:
    """Return the beginnings of a start's lines, from its first stage on."""
    plain = re.sub(r"\x1b\[[\d;]*[a-zA-Z]", "", text)
    return [found[1] for line in plain.splitlines() if (found := SHAPE.match(line))]


def pictured() -> str:
    """Return the lines of the picture: its texts by their height."""
    lines: dict[float, str] = {}
    for y, text in re.findall(r'<text [^>]*y="([\d.]+)"[^>]*>([^<]*)</text>', PICTURE.read_text()):
        lines[float(y)] = lines.get(float(y), "") + html.unescape(text).replace("\xa0", " ")
    return "\n".join(lines[y] for y in sorted(lines))


@pytest.mark.engine
def test_the_picture_is_of_a_start_of_today(minilm: RunningGateway) -> None:
    """The lines of a real start begin as the picture's do, in its order."""
    wait_until(lambda: any(event["event"] == "ready" for event in minilm.log))
    story = Story(lambda *_: "", "")
    events = ("engine_stage", "loaded", "ready")
    told = [story(None, "info", event) for event in minilm.log if event["event"] in events]
    assert shape(pictured()) == shape("\n".join(told))
    assert "Ready after" in shape(pictured())


def start() -> str:
    """Return what a start of the demo model writes on a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    command = [sys.executable, "-m", *COMMAND.replace("-", "_", 1).split()]
    gateway = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    while b"import openai" not in said:
        said += os.read(ours, 1 << 16)
    said += os.read(ours, 1 << 16) if not said.endswith(b"\n") else b""
    gateway.terminate()
    gateway.wait()
    return said.decode()


def main() -> None:
    """Write the picture."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=COLUMNS, file=StringIO())
    text = re.sub(r"/\S*/site-packages", "…/site-packages", start().replace("\r", ""))
    console.print(Text(f"$ {COMMAND}"), Text.from_ansi(text.rstrip()), sep="\n")
    font = "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace"
    svg = console.export_svg(title="embedding-service", unique_id="terminal")
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)  # fonts of other sites
    PICTURE.write_text(svg.replace("Fira Code, monospace", font), encoding="utf-8")


if __name__ == "__main__":
    main()

"""The command as a process: killed, interrupted, without room, it loses and repeats nothing."""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from embedding_service.bulk.options import OutputFormat
from embedding_service.cli import app
from embedding_service.errors import BadConfiguration, JobStopped, RowsFailed
from embedding_service.types import Truncate
from tests.bulk.jobs import corpus, embed, files_of, pipe, texts_of, write_jsonl
from tests.test_cli import ENVIRONMENT, ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.process
# 5 ms a step: a part of 500 rows takes a tenth of a second.
SLOW = "{step_s: 0.005, dimension: 384}"
ROWS, PART = 5000, 500
SAME = {"engine_args": {"step_s": 0.005, "dimension": 384}, "aliases": {}}  # within this process


class Command:
    """`embedding-service embed` with the fake engine."""

    def __init__(self, *arguments: str | Path, engine_args: str = SLOW, **options: Any) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "embedding_service", "embed", *map(str, arguments)),
                *("--engine", "fake", "--model-name", "fake", "--log-format", "json"),
                *("--engine-args", engine_args),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            **{"env": ENVIRONMENT, "stderr": subprocess.PIPE, **options},
        )

    def wait_for(self, ready: Callable[[], bool]) -> bool:
        """Return whether something came true before it ended."""
        while self.process.poll() is None:
            if ready():
                return True
            time.sleep(0.01)
        return False

    def worker(self) -> int | None:
        """Return the process id of the engine, if there is one."""
        pid = self.process.pid
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        return int(found[0]) if found else None

    def end(self, number: int = 0, timeout_s: float = 100) -> tuple[int, list[str]]:
        """Send a signal; return the exit status and the lines on standard error."""
        if number:
            self.process.send_signal(number)
        _, words = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, (words or b"").decode().splitlines()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a corpus, some rows of which have no vectors."""
    path = tmp_path_factory.mktemp("texts") / "a.jsonl"
    lines = [{"id": f"t{i}", "text": text} for i, text in enumerate(texts_of(ROWS))]
    for row in range(0, ROWS, 700):
        lines[row]["text"] = ""
    return write_jsonl(path, lines)


@pytest.fixture(scope="module")
def undisturbed(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files that a run makes which nobody disturbs."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    with pytest.raises(RowsFailed, match="8 rows have no vectors"):
        embed(texts, out=out, rows_per_part=PART, settings=SAME, truncate=Truncate.ERROR)
    return files_of(out)


def parts_in(out: Path) -> int:
    return len(list(out.glob("part-*")))


def disturb(texts: Path, out: Path, target: str, chance: random.Random) -> int | None:
    """Run the command and kill it, or its engine, at some moment; return its exit status."""
    command = Command(texts, "--out", out, "--rows-per-part", str(PART))
    wanted = parts_in(out) + chance.randrange(4)
    if command.wait_for(lambda: command.worker() is not None and parts_in(out) >= wanted):
        time.sleep(chance.uniform(0, 0.15))
        victim = command.process.pid if target == "command" else command.worker()
        if victim is not None and command.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # an engine that ended in between
                os.kill(victim, signal.SIGKILL)
    status, words = command.end()
    assert "Traceback" not in "\n".join(words), words
    return status


def check_killed(texts: Path, out: Path, undisturbed: dict[str, bytes], kills: int) -> None:
    """Kill so often; afterwards, every file is as if nothing had happened."""
    chance = random.Random(kills)
    for kill in range(kills):
        target = "engine" if kill % 3 == 1 else "command"
        status = disturb(texts, out, target, chance)
        # 4: the engine was killed while it loaded, which ends the command before it begins.
        assert status in ((4, 12) if target == "engine" else (-signal.SIGKILL, 12))
        if status == 12:
            assert files_of(out) == undisturbed
            (out / f"part-{chance.randrange(ROWS // PART):06d}.parquet").unlink()
    go_on(texts, out, undisturbed)


def go_on(texts: Path, out: Path, undisturbed: dict[str, bytes]) -> None:
    """Do the rest in this process, which makes the same files as the command."""
    with pytest.raises(RowsFailed):
        embed(texts, out=out, rows_per_part=PART, settings=SAME, truncate=Truncate.ERROR)
    assert files_of(out) == undisturbed


def test_nothing_is_lost_by_kills(
    texts: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Of the command and of its engine, at any moment: byte for byte the undisturbed files."""
    check_killed(texts, tmp_path / "out", undisturbed, kills=2)


@pytest.mark.soak
def test_nothing_is_lost_by_twenty_kills(
    texts: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """The same, twenty times."""
    check_killed(texts, tmp_path / "out", undisturbed, kills=20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_at_once_and_can_be_continued(
    number: int, texts: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """The status is a shell's, there is a line, no process and no unfinished file are left."""
    out = tmp_path / "out"
    slow = ("--max-batch-size", "2")  # a part takes more than a second, and all twelve
    command = Command(texts, "--out", out, "--rows-per-part", str(PART), *slow)
    assert command.wait_for(lambda: parts_in(out) > 0)
    worker = command.worker()
    status, words = command.end(number, timeout_s=30)
    assert status == 128 + number
    assert words[-1] == "embedding-service: stopped; the same command goes on from there"
    assert not Path(f"/proc/{worker}").exists()
    assert not list(out.glob(".*"))
    assert 0 < parts_in(out) < ROWS // PART
    go_on(texts, out, undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a disk of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_can_be_continued(
    texts: Path, undisturbed: dict[str, bytes], small_disk: Path
) -> None:
    """One line, and whole parts; once there is room, the rest is done."""
    out = small_disk / "out"
    filler = small_disk / "filler"
    filler.write_bytes(bytes(200_000))
    with pytest.raises(JobStopped) as caught:
        embed(texts, out=out, rows_per_part=PART, settings=SAME, truncate=Truncate.ERROR)
    assert str(caught.value).startswith(f"{out}: No space left on device; ")
    assert parts_in(out) == 2
    assert not list(out.glob(".*"))
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    go_on(texts, out, undisturbed)


@pytest.mark.parametrize("form", ["parquet", "jsonl", "npy"])
def test_a_write_that_fails_is_told(form: OutputFormat, tmp_path: Path) -> None:
    """In the middle of a part of any format: one line, and no unfinished file."""
    path, out = corpus(tmp_path / "a.jsonl", 3000), tmp_path / "out"
    settings = {"engine_args": {"dimension": 384}}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(JobStopped) as caught:
            embed(path, out=out, format=OutputFormat(form), settings=settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value).startswith(f"{out}: File too large; ")
    assert [path.name for path in out.iterdir()] == ["_manifest.json"]


def test_standard_input_is_read_once_and_can_be_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe is a corpus; another one is not taken for the same."""
    path, out = corpus(tmp_path / "a.jsonl", 700), tmp_path / "out"
    with path.open("rb") as stream:
        status, words = Command("-", "--out", out, "--rows-per-part", "300", stdin=stream).end()
    assert status == 0
    last = orjson.loads(words[-1])  # in between there is one every half minute
    assert (last["event"], last["rows"], last["failed"]) == ("embedded", 700, 0)
    before = files_of(out)
    (out / "part-000001.parquet").unlink()
    again = {"out": out, "rows_per_part": 300, "settings": SAME, "truncate": Truncate.ERROR}
    pipe(path.read_bytes(), monkeypatch)
    embed("-", **again)
    assert files_of(out) == before
    pipe(b'{"id": 5, "text": "w1"}\n', monkeypatch)
    with pytest.raises(BadConfiguration, match="standard input begins with another line"):
        embed("-", **again)
    assert files_of(out) == before


def test_the_command_line_refuses_in_a_line(tmp_path: Path) -> None:
    """No folder, a wrong setting, a setting for another's server: exit status 2."""
    path, out = str(corpus(tmp_path / "a.jsonl", 1)), str(tmp_path / "out")
    server = ("--engine", "fake", "--server", "http://x")
    for arguments, reason in (
        ([path], "--out: name the folder of the vectors"),
        ([path, "--out", "s3://bucket/vectors"], "name a folder of this machine"),
        ([path, "--out", out, "--prot", "1"], "--prot: no such setting"),
        ([path, "--outt", out], "--outt: no such setting; try --out"),
        ([path, "--hlep"], "--hlep: no such setting; try --help"),
        ([path, "--out", out, *server], "has its own settings"),
    ):
        with pytest.raises(BadConfiguration, match=reason):
            app(["embed", *arguments], standalone_mode=False)
    status, words = Command(path).end()
    assert (status, len(words)) == (2, 1)
    assert "--out: name the folder" in words[0]


def test_a_dry_run_counts_and_measures(tmp_path: Path) -> None:
    """Rows, tokens and time on standard output, and nothing is written."""
    command = Command(corpus(tmp_path / "a.jsonl", 3000), "--dry-run")
    words, _ = command.process.communicate(timeout=60)
    assert command.process.returncode == 0
    lines = words.decode().splitlines()
    assert lines[0] == "3,000 rows"
    assert lines[1] == "12,000 tokens, 4.0 a row"
    assert lines[2].startswith("about ")
    assert "rows/s" in lines[2]
    assert lines[3] == "0 of the first 3,000 rows cannot be embedded"


def test_a_terminal_has_a_bar(tmp_path: Path) -> None:
    """With rows, tokens a second and the time left, on standard error."""
    master, slave = os.openpty()
    command = Command(corpus(tmp_path / "a.jsonl", 3000), "--out", tmp_path / "out", stderr=slave)
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while more := os.read(master, 1 << 16):
            shown += more
    os.close(master)
    assert command.end()[0] == 0
    assert re.search(rb"[\d,]+ rows, [\d,]+ tokens/s", shown)
    assert "━".encode() in shown
    assert re.search(rb"\d:\d\d:\d\d", shown)

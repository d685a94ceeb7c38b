"""The command line in processes of its own: exit statuses, one-line errors, flags, signals."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from embedding_service import __version__
from embedding_service.cli import app, main
from embedding_service.errors import BadConfiguration, NoVectors, StartupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[1]
FAKE = ["--engine", "fake", "--model-name", "fake", "--port", "0", "--log-format", "json"]
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith("EMBEDDING_")
}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "embedding_service", *arguments],
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Server:
    """A gateway started by its command; its log, a JSON object a line, is read as it comes."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "embedding_service", "serve", *FAKE, *arguments],
            cwd=ROOT,
            env=ENVIRONMENT | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.url = "http://" + self.wait_for("listening")["address"]

    def wait_for(self, event: str) -> dict[str, Any]:
        """Return the next log line about `event`."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            entry: dict[str, Any] = json.loads(line)
            if entry["event"] == event:
                return entry
        raise AssertionError(f"the server ended without saying {event!r}")

    def children(self) -> list[int]:
        """Return the process ids of the workers."""
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(
            encoding="ascii"
        )
        return [int(pid) for pid in text.split()]

    def end(self, number: int) -> int:
        """Send a signal; return the exit status."""
        self.process.send_signal(number)
        status = self.process.wait(60)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Return a function that starts servers; what still runs at the end is killed."""
    started: list[Server] = []

    def begin(*arguments: str) -> Server:
        started.append(Server(*arguments))
        return started[-1]

    yield begin
    for server in started:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)


def is_running(pid: int) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
            != "Z"
        )
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("arguments", "field"), [(["--prot", "1"], "--prot"), (["--host", "0.0.0.0"], "host")]
)
@pytest.mark.process
def test_a_wrong_setting_is_exit_status_2(arguments: list[str], field: str) -> None:
    """A wrong key or value is one line that names it, and exit status 2."""
    done = run("serve", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("embedding-service: ")
    assert field in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sreve"], "No such command 'sreve'. Did you mean 'serve'? See `COMMAND --help`"),
        (["keys", "nwe"], "No such command 'nwe'. Did you mean 'new'? See `COMMAND keys --help`"),
        (["init", "--modle", "a"], "No such option: --modle (Possible options: --model); see "),
        (["init", "--model"], "Option '--model' requires an argument. See --help"),
        (["init", "--for", "me"], "Invalid value for '--for': 'me' is not one of 'systemd', "),
        (["embed"], "Missing argument 'INPUT...'. See `COMMAND embed --help`"),
        (["settings", "a", "b"], "Got unexpected extra argument(s) (b); see `COMMAND settings "),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A command or an option that is wrong is one line, as a wrong setting is: no box, no usage."""
    assert _main(arguments, monkeypatch) == 2
    out, line = capsys.readouterr()
    assert out == ""
    assert line.count("\n") == 1
    line = re.sub(r"`(python -m \S+|\S*pytest|embedding-service)", "`COMMAND", line)
    assert line.startswith(f"embedding-service: {said}")


def test_without_a_command_there_is_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The help is all that is said where no command is given; a finished command is status 0."""
    assert _main([], monkeypatch) == 2
    out, error = capsys.readouterr()
    assert "check-config" in out
    assert error == ""
    assert _main(["version"], monkeypatch) == 0


def _main(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command line in this process; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["embedding-service", *arguments])
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.process
def test_a_wrong_setting_is_found_without_the_heavy_imports() -> None:
    """A configuration is refused quickly: without the web framework and without an engine."""
    script = """
import os, sys
from embedding_service import cli
def report(status):
    heavy = "fastapi starlette uvicorn numpy torch vllm transformers tokenizers zmq uvloop"
    print(sorted(set(heavy.split()) & sys.modules.keys()))
    os.write(1, b"status %d\\n" % status)
    sys.stdout.flush()
    os.abort()
os._exit = report
sys.argv = ["embedding-service", "serve", "--port", "high"]
cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "status 2" in done.stdout, done.stderr
    assert "[]" in done.stdout


@pytest.mark.process
def test_a_port_in_use_is_exit_status_3_before_the_model_loads() -> None:
    """A taken port is found before a model is touched, or even mentioned."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("serve", *FAKE, "--port", port, "--engine-args", "{refuse: it was loaded}")
    assert done.returncode == 3
    assert port in done.stderr
    assert "it was loaded" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.process
def test_a_model_that_is_refused_is_exit_status_4() -> None:
    """A model that cannot be loaded ends start-up with one line that names model and cause."""
    done = run("serve", *FAKE, "--engine-args", "{refuse: its files are damaged}")
    assert done.returncode == 4
    last = done.stderr.splitlines()[-1]
    assert last.startswith("embedding-service: fake: ")
    assert "its files are damaged" in last
    assert "Traceback" not in done.stderr


@pytest.mark.process
def test_sigterm_finishes_and_is_exit_status_0(start: Callable[..., Server]) -> None:
    """SIGTERM ends an idle gateway with status 0, and no worker is left."""
    server = start()
    server.wait_for("ready")
    (worker,) = server.children()
    assert (
        httpx.post(server.url + "/v1/embeddings", json={"model": "fake", "input": "w1"}).status_code
        == 200
    )
    assert server.end(signal.SIGTERM) == 0
    assert not is_running(worker)


@pytest.mark.process
def test_a_killed_gateway_leaves_no_worker(start: Callable[..., Server]) -> None:
    """When the gateway dies without a word, its worker ends too, even inside a step."""
    server = start("--request-timeout-s", "3600")
    server.wait_for("ready")
    (worker,) = server.children()
    with socket.create_connection(
        tuple(server.url.removeprefix("http://").split(":")), timeout=30
    ) as hanging:  # type: ignore[arg-type]
        body = b'{"model":"fake","input":"fault-hang"}'
        hanging.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
            + body
        )
        until = time.monotonic() + 60
        while httpx.get(server.url + "/stats").json()["models"]["fake"]["queued_tokens"] == 0:
            assert time.monotonic() < until
        assert is_running(worker)
        server.end(signal.SIGKILL)
    until = time.monotonic() + 30
    while is_running(worker):
        if time.monotonic() > until:
            os.killpg(worker, signal.SIGKILL)
            pytest.fail("the worker outlived its gateway")
        time.sleep(0.05)


@pytest.mark.process
def test_check_config_prints_the_settings_in_force(tmp_path: Path) -> None:
    """`check-config` prints the tree as YAML with masked keys; unknown variables warn."""
    config = tmp_path / "config.yaml"
    config.write_text(
        "model_name: from-file\nport: 1\napi_keys: [a-secret-key]\n", encoding="utf-8"
    )
    done = run(
        "check-config",
        "--port=3",
        EMBEDDING_CONFIG=str(config),
        EMBEDDING_PORT="2",
        EMBEDDING_PROT="4",
    )
    assert done.returncode == 0
    tree = yaml.safe_load(done.stdout)
    assert tree["port"] == 3
    assert tree["models"][0]["model_name"] == "from-file"
    assert "a-secret-key" not in done.stdout + done.stderr
    assert done.stderr.startswith("warning: EMBEDDING_PROT")


@pytest.mark.process
def test_check_config_refuses_what_serve_would_refuse() -> None:
    """`check-config` exits with 2 and the same line as `serve`."""
    checked, served = run("check-config", "--dtype", "fp16"), run("serve", "--dtype", "fp16")
    assert checked.returncode == served.returncode == 2
    assert checked.stderr == served.stderr


NOWHERE = "/proc/nowhere/x"


@pytest.mark.parametrize(
    ("setting", "value", "status"),
    [
        ("model_path", NOWHERE, 4),
        ("canary_file", NOWHERE, 2),
        ("calibration_file", NOWHERE, 2),
        ("api_keys_file", NOWHERE, 2),
        ("redis_url", "localhost:6379", 2),
        ("state_dir", NOWHERE, 2),
        ("runtime_dir", NOWHERE, 2),
        ("uds", NOWHERE, 2),
    ],
)
def test_check_config_looks_at_files_and_urls(setting: str, value: str, status: int) -> None:
    """A file that is not there, or a URL of another form, is found before anything is loaded."""
    flag = f"--{setting.replace('_', '-')}"
    result = CliRunner().invoke(app, ["check-config", flag, value])
    assert isinstance(result.exception, StartupError)
    assert result.exception.exit_code == status
    assert f"{setting}: " in str(result.exception)
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [([], True), (["--model-name", "m"], False), (["--config", "embedding-service.yaml"], False)],
)
def test_a_file_of_settings_that_is_forgotten(
    arguments: list[str], told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where `init` has written a file and nothing names a model, the default one is a surprise."""
    monkeypatch.chdir(tmp_path)
    Path("embedding-service.yaml").write_text("engine: fake\nmodel_name: mine\n")
    result = CliRunner().invoke(app, ["check-config", *arguments])
    assert result.exit_code == 0
    warning = "warning: embedding-service.yaml is here and not read; give --config embedding-"
    assert (warning in result.stderr) is told


def test_fetch_without_a_network_or_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline it says so in a line, and a model that is made up has nothing to download."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = CliRunner().invoke(app, ["fetch", "--model-name", "a/b"])
    assert str(result.exception) == (
        "a/b: HF_HUB_OFFLINE is set; unset it to download, or set model_path"
    )
    result = CliRunner().invoke(app, ["fetch", "--model-name", "m", "--engine", "fake"])
    assert result.output == "m: made up, there is nothing to download\n"


@pytest.mark.process
def test_a_socket_in_no_folder_is_exit_status_3(tmp_path: Path) -> None:
    """A Unix socket that cannot be made gets the remedy for sockets, and not the one for ports."""
    done = run("serve", *FAKE, "--uds", str(tmp_path / "nowhere" / "x.sock"))
    assert done.returncode == 3
    assert done.stderr.endswith("or set another uds, or make its folder\n")


def test_check_config_leaves_nothing_behind(tmp_path: Path) -> None:
    """Folders that `serve` would make are not made."""
    there = tmp_path / "there"
    there.mkdir()
    for folder in (there, tmp_path / "new" / "state"):
        result = CliRunner().invoke(app, ["check-config", "--state-dir", str(folder)])
        assert result.exit_code == 0
    assert list(tmp_path.rglob("*")) == [there]


def test_pinned_vectors_are_not_overwritten(tmp_path: Path) -> None:
    """A file of canaries that is there stays, without --force, and nobody is asked for others."""
    path = tmp_path / "canaries.json"
    path.write_text("mine")
    arguments = ["canary", "pin", str(path), "--server", "http://127.0.0.1:1"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, BadConfiguration)
    assert str(result.exception).endswith("left as it is; name another file, or give --force")
    assert path.read_text() == "mine"
    result = CliRunner().invoke(app, [*arguments, "--force"])
    assert isinstance(result.exception, NoVectors)


@pytest.mark.process
def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    """A command in a folder that was deleted is one line, too."""
    (tmp_path / "gone").mkdir()
    command = f"cd {tmp_path}/gone && rmdir ../gone && exec {sys.executable} -m embedding_service"
    done = subprocess.run(
        ["sh", "-c", f"{command} init --model bge-m3"],
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.endswith("the current folder is gone; change to one that is there\n")


@pytest.mark.process
def test_version() -> None:
    """`version` prints the package's version."""
    assert run("version").stdout == __version__ + "\n"


@pytest.mark.process
def test_a_start_on_a_terminal_tells_what_to_do_next() -> None:
    """On a terminal the log is a story that ends in a request; SIGTERM ends it with 0."""
    ours, theirs = pty.openpty()
    arguments = ["serve", "--engine", "fake", "--model-name", "fake", "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "embedding_service", *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    told = ""
    until = time.monotonic() + 60
    while "import openai" not in told:
        assert time.monotonic() < until, told
        told += os.read(ours, 65536).decode()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    os.close(ours)
    for part in (
        "listens on 127.0.0.1:",
        "✓",
        "warm-up",
        "loaded",
        "Ready",
        "curl http://127.0.0.1:",
    ):
        assert part in told
    assert "[info" not in told
    assert '"event"' not in told

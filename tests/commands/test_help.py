"""The command line explains itself: help by groups, pages of settings, completion in a shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embedding_service.cli import app
from embedding_service.commands.lazy import COMMANDS
from embedding_service.errors import BadConfiguration
from embedding_service.settings import catalogue
from embedding_service.settings.groups import GROUPS

ROOT = Path(__file__).parents[2]
WITH_SETTINGS = ("serve", "check-config", "fetch")
ANSI = re.compile(r"\x1b\[[0-9;]*m")
HELPS = [
    *(["--help"], ["serve", "--help"], ["serve", "--help-all"], ["check-config", "--help"]),
    *(["fetch", "--help"], ["settings", "--help"], ["settings"], ["init", "--help"]),
    *(["keys", "--help"], ["keys", "new", "--help"], ["keys", "hash", "--help"]),
    *(["settings", name] for name in catalogue.settings()),
]


# The installed script; `python -m` has another name, under which no shell asks.
AS_INSTALLED = """
import sys
sys.argv = ["embedding-service"]
from embedding_service.cli import main
main()
"""


def said(*arguments: str) -> str:
    """Return what a command prints, without colours."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return ANSI.sub("", result.output)


@pytest.mark.parametrize("arguments", HELPS, ids=" ".join)
def test_no_help_shows_how_python_sees_it(arguments: list[str]) -> None:
    """No text has the inside of a library in it, and none is wider than a hundred columns."""
    text = said(*arguments)
    for inside in ("Pydantic", "<class", "typing.", "SecretStr", "NoneType", "EnumMeta"):
        assert inside not in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("command", WITH_SETTINGS)
def test_help_has_a_heading_for_each_wish(command: str) -> None:
    """The common settings are there under their headings, with type, default and variable."""
    text = said(command, "--help")
    places = [text.index(f"\n{group.title}\n") for group in GROUPS]
    assert places == sorted(places)
    assert "--port INTEGER" in text
    assert "EMBEDDING_PORT\n" in text
    assert "Default: 8890" in text
    assert f"embedding-service {command} --model-name" in text.replace("root", "embedding-service")
    assert text.count("\n") <= 76


@pytest.mark.parametrize("command", WITH_SETTINGS)
def test_all_of_help_has_every_setting(command: str) -> None:
    """`--help-all` has each flag, its type and its variable; `--help` counts those it leaves out."""
    everything, short = said(command, "--help-all"), said(command, "--help")
    for setting in catalogue.settings().values():
        assert f"\n  {setting.flag} {setting.type}" in everything
        assert f"{setting.variable}\n" in everything
    left_out = everything.count("EMBEDDING_") - short.count("EMBEDDING_")
    assert f"--help-all shows {left_out} settings more" in short


@pytest.mark.parametrize("command", [[], ["serve"], ["init"], ["keys", "new"], ["verify"]])
def test_the_short_flags_that_people_try(command: list[str]) -> None:
    """`-h` is `--help` everywhere, and `--version` is `version`."""
    assert said(*command, "-h") == said(*command, "--help")
    assert said("--version") == said("version")


def test_settings_lists_all() -> None:
    """`settings` alone has a line for each setting."""
    text = said("settings")
    for name in catalogue.settings():
        assert re.search(rf"^  {name} +\S", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["max_queued_tokens", "--max-queued-tokens"])
def test_a_setting_has_a_page(name: str) -> None:
    """The page has all that is known: type, default, bounds, names, neighbours."""
    text = said("settings", name)
    for part in (
        *("INTEGER", "2000000", "at least 1", "max_queued_tokens: 2000000", "Limits"),
        *("EMBEDDING_MAX_QUEUED_TOKENS=2000000", "--max-queued-tokens 2000000", "max_inputs"),
    ):
        assert part in text


def test_an_unknown_setting_suggests_the_near_ones() -> None:
    """A slip is an error that names what was meant."""
    with pytest.raises(BadConfiguration, match="prot: no such setting; near: port"):
        CliRunner().invoke(app, ["settings", "prot"], catch_exceptions=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_elsewhere_are_known_by_their_sentence(name: str) -> None:
    """The list has a command's sentence as its own module has it, and its help is its own."""
    own = " ".join(said(name, "--help").split())
    assert COMMANDS[name].help in own
    assert f"Usage: root {name}" in own
    assert COMMANDS[name].help.split()[0] in said("--help")


def completed(line: str) -> list[str]:
    """Return the words that bash would offer at the end of a line."""
    done = subprocess.run(
        [sys.executable, "-c", AS_INSTALLED],
        cwd=ROOT,
        env=os.environ
        | {
            "_EMBEDDING_SERVICE_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout.split()


@pytest.mark.process
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("embedding-service ser", {"serve"}),
        ("embedding-service serve --max-q", {"--max-queued-tokens"}),
        ("embedding-service serve --dtype b", {"bfloat16"}),
        ("embedding-service settings cache_", {"cache_ttl_s", "cache_max_bytes"}),
        ("embedding-service init --device ", {"gpu", "cpu"}),
        ("embedding-service init --model qwen3-", {"qwen3-0.6b", "qwen3-8b"}),
        ("embedding-service init --model tests/com", {"tests/commands/"}),
        ("embedding-service --ver", {"--version"}),
    ],
)
def test_a_shell_completes(line: str, words: set[str]) -> None:
    """Commands, flags of settings, their values and names of settings are offered."""
    assert words <= set(completed(line))


@pytest.mark.process
def test_help_and_completion_read_no_settings() -> None:
    """Completion is quick, since a person waits at each key: nothing needless is imported."""
    script = """
import sys
from typer.testing import CliRunner
from embedding_service.cli import app
from embedding_service.commands.lazy import COMMANDS
CliRunner().invoke(app, ["--help"])
heavy = "pydantic pydantic_settings huggingface_hub numpy fastapi structlog torch vllm"
print(sorted(set(heavy.split()) & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"

"""Flags: every setting on the command line."""

from __future__ import annotations

from typing import Any

import pytest

from embedding_service.errors import BadConfiguration
from embedding_service.settings import flags


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ([], {}),
        (["--port", "1"], {"port": "1"}),
        (["--port=1"], {"port": "1"}),
        (["--max-model-len", "5", "--docs", "off"], {"max_model_len": "5", "docs": "off"}),
        (["--max_model_len", "5"], {"max_model_len": "5"}),
        (["--model-name", "a=b"], {"model_name": "a=b"}),
        (["--model-name=a=b"], {"model_name": "a=b"}),
        (["--devices", "0"], {"devices": "0"}),
        (["--devices", "[0, 1]"], {"devices": [0, 1]}),
        (["--engine-args", "{a: 1, b: x}"], {"engine_args": {"a": 1, "b": "x"}}),
        (["--revision", "1234567"], {"revision": "1234567"}),
        (["--max-model-len", "null"], {"max_model_len": None}),
        (["--model-path="], {"model_path": ""}),
        (["--port", "1", "--port", "2"], {"port": "2"}),
        (["--allow-anonymous"], {"allow_anonymous": "true"}),
        (["--echo-model", "--port", "1"], {"echo_model": "true", "port": "1"}),
        (
            ["--enforce-eager", "--required", "false"],
            {"enforce_eager": "true", "required": "false"},
        ),
    ],
)
def test_flags_are_read(arguments: list[str], settings: dict[str, Any]) -> None:
    """Flags come with a blank or an equals sign; brackets make lists and mappings.

    Alone, a flag that may be true is.
    """
    assert flags.read(arguments) == settings


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["port"], "'port'"),
        (["-p", "1"], "'-p'"),
        (["--prot", "1"], "--prot"),
        (["--port"], "--port"),
        (["--replicas", "--port", "1"], "--replicas"),
        (["--engine-args", "{a"], "--engine-args"),
        (["--yaml-tree", "1"], "--yaml-tree"),
    ],
)
def test_wrong_flags_are_named(arguments: list[str], words: str) -> None:
    """An argument that is no flag, names no setting or has no value is refused by its name."""
    with pytest.raises(BadConfiguration) as caught:
        flags.read(arguments)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "value", ["[a-secret", "{a-secret", "[*a-secret]", "{b: !a-secret c}", "[2001-99-99]"]
)
def test_a_value_is_not_printed(value: str) -> None:
    """A list or mapping that cannot be read is refused without showing it."""
    with pytest.raises(
        BadConfiguration, match=r"^--api-keys: its value is not valid YAML; put it in quotes$"
    ):
        flags.read(["--api-keys", value])


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--confg", "--config"),
        ("--prot", "--port"),
        ("--max-bach-size", "--max-batch-size"),
        ("--model", "--models or --model-name or --model-path"),
        ("--model-id", "--model-name or --model-path"),
        ("--max-length", "--max-model-len"),
        ("--zzzz", "`embedding-service settings`, which lists all"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(flag: str, meant: str) -> None:
    """An unknown flag is answered with the near ones, the option for the file among them."""
    with pytest.raises(BadConfiguration, match=f"^{flag}: no such setting; try {meant}"):
        flags.read([flag, "1"], ["--config", "-c"])

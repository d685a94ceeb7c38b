"""Every setting has its place, its sentence and its page, and the schema is the one published."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jsonschema
import pytest
import yaml

from embedding_service.commands.settings_text import page, samples, unknown
from embedding_service.dropin.presets import PRESETS
from embedding_service.settings import catalogue, flags
from embedding_service.settings.gateway import Settings
from embedding_service.settings.groups import GROUPS
from embedding_service.settings.load import load
from embedding_service.settings.schema import schema_text

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"
SHIPPED = sorted([*CONFIG.rglob("*.yaml"), ROOT / "deploy/kubernetes/config.yaml"])
SETTINGS = catalogue.settings()
SCHEMA = schema_text()
VALIDATOR = jsonschema.Draft202012Validator(json.loads(SCHEMA))
# Accepted at the start only with something beside them.
BESIDE = {"preset": {"allow_anonymous": True, "unknown_model": "serve_default"}}


def test_every_setting_has_one_group() -> None:
    """A setting without a group would be in no help; one in two groups would be there twice."""
    grouped = [name for group in GROUPS for name in group.names]
    assert [name for name in Settings.model_fields if name not in grouped] == []
    assert [name for name in grouped if name not in Settings.model_fields] == []
    assert len(grouped) == len(set(grouped))


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_a_sentence(name: str) -> None:
    """Each setting has a type and a description that begins and ends as a sentence does."""
    setting = SETTINGS[name]
    assert setting.type
    assert "VALUE" not in setting.type
    assert setting.description.endswith(".")
    assert len(setting.description) <= 120


@pytest.mark.parametrize("name", SETTINGS)
def test_the_page_of_a_setting_can_be_copied(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line for the file, the variable and the flag of a page each give the setting a value."""
    setting, beside = SETTINGS[name], BESIDE.get(name, {})
    text = page(setting)
    in_file, elsewhere = samples(setting)
    assert f"{name}: {in_file}" in " ".join(text.split())
    file = tmp_path / "settings.yaml"
    file.write_text(f"{name}: {in_file}\n{yaml.safe_dump(beside) if beside else ''}", "utf-8")
    from_file, _ = load(file, presets=PRESETS.copy)
    VALIDATOR.validate(yaml.safe_load(file.read_text()))
    from_flag, _ = load(
        None, {**beside, **flags.read([setting.flag, elsewhere])}, presets=PRESETS.copy
    )
    monkeypatch.setitem(os.environ, setting.variable, elsewhere)
    from_variable, _ = load(None, beside, presets=PRESETS.copy)
    assert getattr(from_file, name) == getattr(from_flag, name) == getattr(from_variable, name)


def test_names_are_found_however_they_are_written() -> None:
    """A flag, a variable and a setting's name mean the same; a slip is answered with what is near."""
    for name in ("port", "--port", "EMBEDDING_PORT"):
        found = catalogue.find(name)
        assert found is not None
        assert found.name == "port"
    assert catalogue.find("prot") is None
    assert "port" in unknown("prot")
    assert "max_queued_tokens" in unknown("queued")
    assert unknown("zzzz").endswith("`embedding-service settings` lists all")


def test_settings_that_name_each_other_are_related() -> None:
    """A page leads to the settings that its own is about."""
    assert "max_text_characters" in catalogue.related(SETTINGS["over_long_texts"])
    assert "over_long_texts" in catalogue.related(SETTINGS["max_text_characters"])


def test_the_published_schema_is_the_one_printed() -> None:
    """`embedding-service check-config --schema >config/settings.schema.json` brings it up to date."""
    assert (CONFIG / "settings.schema.json").read_text("utf-8") == SCHEMA


def test_the_schema_is_one() -> None:
    """It is valid, has every setting, and each of them with its sentence."""
    tree = json.loads(SCHEMA)
    jsonschema.Draft202012Validator.check_schema(tree)
    assert tree["properties"].keys() == Settings.model_fields.keys()
    assert all(entry["description"] for entry in tree["properties"].values())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_follow_the_schema_and_name_it(path: Path) -> None:
    """Every shipped settings file validates, and its first line has editors check it."""
    text = path.read_text("utf-8")
    VALIDATOR.validate(yaml.safe_load(text))
    line = text.partition("\n")[0]
    assert line.startswith("# yaml-language-server: $schema=")
    assert (path.parent / line.partition("=")[2]).resolve() == CONFIG / "settings.schema.json"


@pytest.mark.parametrize(
    "text",
    [
        "prot: 1",
        "port: high",
        "port: 65536",
        "dtype: fp16",
        "models: [{model_nam: x}]",
        "rate_limit_requests: 100 a minute",
        "docs: true",
        "api_keys: [{name: without-a-key}]",
        "replicas: 0",
    ],
)
def test_the_schema_refuses_what_the_start_refuses(text: str, tmp_path: Path) -> None:
    """An editor marks names, types, bounds and words that would end the start."""
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(yaml.safe_load(text))
    (tmp_path / "settings.yaml").write_text(text, "utf-8")
    with pytest.raises(Exception, match=text.partition(":")[0]):
        load(tmp_path / "settings.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "aliases: [a, b]",
        "aliases: a,b",
        "aliases: {a: {input_type: query}}",
        "docs: off",
        "metrics: off",
        "api_keys: [KEY, {key: OTHER, models: [m]}]",
        "devices: 0,1",
        "log_level: WARN",
        "environment: {A: port, B: null, C: [port, host], D: {settings: [docs], values: {1: open}}}",
        "enforce_eager: auto",
        "redis_url: null",
    ],
)
def test_the_schema_knows_the_short_forms(text: str, tmp_path: Path) -> None:
    """Forms that the start accepts are not marked."""
    VALIDATOR.validate(yaml.safe_load(text))
    (tmp_path / "settings.yaml").write_text(text, "utf-8")
    load(tmp_path / "settings.yaml")

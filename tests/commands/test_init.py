"""`init` writes files that the service, systemd, Docker and Kubernetes accept."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import subprocess
import sys
from functools import cache
from importlib.metadata import files
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from embedding_service.cli import app
from embedding_service.errors import BadConfiguration
from embedding_service.settings.load import load
from embedding_service.settings.schema import schema
from tests.deploy.tools import program

ROOT = Path(__file__).parents[2]
MODELS = (
    "qwen3-0.6b",
    "qwen3-4b",
    "qwen3-8b",
    "bge-m3",
    "intfloat/e5-small",
    "./my model: 1",
    "./null",
)
PLATFORMS = {
    None: None,
    "systemd": "embedding-service.service",
    "compose": "compose.yaml",
    "kubernetes": "kubernetes.yaml",
}
CASES = list(product(MODELS, (False, True), ("gpu", "cpu"), PLATFORMS))
SCHEMA = jsonschema.Draft202012Validator(schema())


def init(*arguments: str) -> str:
    """Run the command; return what it prints."""
    result = CliRunner().invoke(app, ["init", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_model(folder: Path) -> None:
    """Make what passes for a model's folder."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")


def uncommented(text: str) -> str:
    """Return the file with every setting that it proposes."""
    lines = text.splitlines()
    return "\n".join(
        line[1:] if line[:1] == "#" and line[1:2].isalpha() else line for line in lines
    )


@pytest.mark.parametrize(("model", "reranker", "device", "platform"), CASES)
def test_every_combination_is_accepted(
    model: str, reranker: bool, device: str, platform: str | None, folder: Path
) -> None:
    """The settings are valid as they are, and with every proposal taken up; so is what starts them."""
    if model.startswith("."):
        make_model(folder / model)
    flags = ["--model", model, "--reranker" if reranker else "--no-reranker", "--device", device]
    init(*flags, *(["--for", platform] if platform else []))
    file = folder / "embedding-service.yaml"
    settings, warnings = load(file)
    assert warnings == []
    assert len(settings.served_models) == 1 + reranker
    assert {each.device for each in settings.served_models} == {
        "cuda" if device == "gpu" else "cpu"
    }
    text = file.read_text("utf-8")
    SCHEMA.validate(yaml.safe_load(text))
    file.write_text(uncommented(text), "utf-8")
    everything, _ = load(file)
    if platform in {"compose", "kubernetes"}:  # where the image and its file decide
        assert not re.search(r"\nport:|--config", text)
        assert everything.uds is everything.state_dir is None
    else:
        assert re.search(r"\nport:", text)
        assert everything.uds is not None
    assert json.loads((folder / "embedding-service.schema.json").read_text()) == SCHEMA.schema
    if platform is not None:
        CHECKS[platform]((folder / (PLATFORMS[platform] or "")).read_text("utf-8"), text)


@cache
def compose_specification() -> Any:
    (spec,) = (each for each in files("check-jsonschema") or [] if each.name == "compose-spec.json")
    return jsonschema.Draft7Validator(json.loads(spec.read_text()))


def check_unit(unit: str, _: str) -> None:
    """The unit reads the file that was written, and has no line of another machine's user."""
    assert f"EMBEDDING_CONFIG={Path.cwd()}/embedding-service.yaml" in unit
    assert ("DynamicUser=yes" in unit) != ("\nUser=" in unit)
    assert "@" not in unit


def check_compose(text: str, _: str) -> None:
    """It follows the Compose Specification, and files and batches outlive the container."""
    tree = yaml.safe_load(text)
    compose_specification().validate(tree)
    gateway = tree["services"]["gateway"]
    kept = {volume for volume in gateway["volumes"] if isinstance(volume, str)}
    assert f"state:{gateway['environment']['EMBEDDING_STATE_DIR']}" in kept
    assert {"state", "cache"} == tree["volumes"].keys()


def check_manifests(text: str, settings: str) -> None:
    """They follow Kubernetes' schemas, carry the settings, and keep files and batches."""
    every = list(yaml.safe_load_all(text))
    for document in every:
        kubernetes_validate.validate(document, "1.34", strict=True)
    documents: dict[str, Any] = {each["kind"]: each for each in every}
    check_state(documents["Deployment"]["spec"]["template"]["spec"], every)
    carried = yaml.safe_load(documents["ConfigMap"]["data"]["config.yaml"])
    assert carried == yaml.safe_load(settings)


def check_state(pod: dict[str, Any], documents: list[dict[str, Any]]) -> None:
    """The folder of files and batches is on a claim that is one of the documents."""
    (gateway,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in gateway["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounts.keys() == volumes.keys()
    variables = {each["name"]: each["value"] for each in gateway["env"]}
    assert Path(variables["EMBEDDING_STATE_DIR"]).is_relative_to(mounts["state"])
    claims = {each["metadata"]["name"] for each in documents if "Claim" in each["kind"]}
    assert volumes["state"]["persistentVolumeClaim"]["claimName"] in claims


CHECKS = {"systemd": check_unit, "compose": check_compose, "kubernetes": check_manifests}


@pytest.mark.server
@pytest.mark.parametrize("name", ["plain", "with 100% space"])
def test_systemd_accepts_the_unit(folder: Path, name: str) -> None:
    """`systemd-analyze verify` has nothing to say about it, wherever the files are."""
    place = folder / name
    place.mkdir()
    init("--model", "bge-m3", "--for", "systemd", "-o", str(place / "settings.yaml"))
    unit = place / "embedding-service.service"
    executable = str(Path(sys.executable).with_name("embedding-service"))
    unit.write_text(unit.read_text().replace(executable, sys.executable))
    command = [program("systemd-analyze", "systemd"), "--no-pager", "verify", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert [line for line in lines if "embedding-service" in line] == []


def test_the_last_line_is_the_next_step(folder: Path) -> None:
    """A settings file is served; what starts it elsewhere says itself how it is used."""
    assert init("--model", "bge-m3", "-o", "a b.yaml").endswith("serve --config 'a b.yaml'\n")
    said = init("--model", "bge-m3", "--for", "systemd", "-o", "c.yaml")
    assert said.endswith("the first lines of embedding-service.service\n")
    assert "systemctl" in Path("embedding-service.service").read_text("utf-8")[:200]


def test_a_unit_for_settings_that_are_there(folder: Path) -> None:
    """Without a model the unit is for the file that was made before, whatever is in it by now."""
    settings = folder / "embedding-service.yaml"
    settings.write_text("model_name: mine\nmodel_path: /tmp/mine\n")
    said = init("--for", "systemd")
    unit = (folder / "embedding-service.service").read_text("utf-8")
    assert f"EMBEDDING_CONFIG={settings}\n" in unit
    assert "the unit cannot read /tmp/mine;" in said
    assert said.count("Wrote") == 1
    with pytest.raises(BadConfiguration, match=r"embedding-service.service exists"):
        init("--for", "systemd")
    settings.write_text("modelname: mine\n")
    with pytest.raises(BadConfiguration, match="did you mean model_name"):
        init("--for", "systemd")


def test_a_unit_that_cannot_read_its_files_is_told(folder: Path) -> None:
    """A folder in /tmp, which is another one for the unit, is named at once."""
    assert str(folder).startswith("/tmp/")
    note = f"Note: the unit cannot read {folder}/embedding-service.yaml; run init again in a folder"
    assert note in init("--model", "bge-m3", "--for", "systemd")
    assert "Note" not in init("--model", "bge-m3", "--for", "compose", "-o", "b.yaml")


def test_a_folder_has_no_revision(folder: Path) -> None:
    """Settings that only the hub has are not proposed for a folder."""
    assert "#revision" in init("--model", "bge-m3", "-o", "-")
    make_model(folder / "mine")
    assert "#revision" not in init("--model", "./mine", "-o", "-")


def test_a_folder_is_where_containers_have_it(folder: Path) -> None:
    """A folder is served from its own place, and in a container from where it is mounted."""
    make_model(folder / "mine")
    init("--model", "mine", "-o", "a.yaml")
    (alone,) = load(folder / "a.yaml")[0].served_models
    assert alone.model_path == str(folder / "mine")
    init("--model", "mine", "--for", "compose", "-o", "b.yaml")
    (contained,) = load(folder / "b.yaml")[0].served_models
    gateway = yaml.safe_load(Path("compose.yaml").read_text("utf-8"))["services"]["gateway"]
    (mount,) = (volume for volume in gateway["volumes"] if isinstance(volume, dict))
    assert (mount["source"], mount["target"]) == (f"{folder}/mine", contained.model_path)


@pytest.mark.parametrize("there", ["embedding-service.yaml", "compose.yaml"])
def test_nothing_is_overwritten(there: str, folder: Path) -> None:
    """If one of the files exists, it is named, it is left as it is, and none is written."""
    (folder / there).write_text("mine")
    with pytest.raises(BadConfiguration, match=f"{there} exists"):
        init("--model", "bge-m3", "--for", "compose")
    assert [path.name for path in folder.iterdir()] == [there]
    assert (folder / there).read_text() == "mine"


def test_a_place_that_cannot_be_written(folder: Path) -> None:
    """A folder that is not there is one line with the next step."""
    with pytest.raises(BadConfiguration, match=r"no/where.yaml: No such file .* --output"):
        init("--model", "bge-m3", "-o", "no/where.yaml")


def test_a_full_disk_leaves_no_half_of_a_file(folder: Path) -> None:
    """If one file cannot be written, none is left that the next try would not overwrite."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))  # the schema is longer
    try:
        with pytest.raises(BadConfiguration, match=r"schema.json: File too large; .* --output"):
            init("--model", "bge-m3")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(folder.iterdir()) == []


def test_without_a_terminal_the_model_must_be_given() -> None:
    """A script is never asked."""
    with pytest.raises(BadConfiguration, match=r"--model is missing: give qwen3-0.6b, .* a folder"):
        init()


def test_it_prints_to_a_pipe() -> None:
    """`--output -` writes no file."""
    text = init("--model", "qwen3-8b", "-o", "-", "--device", "cpu")
    assert yaml.safe_load(text)["model_name"] == "Qwen/Qwen3-Embedding-8B"
    assert "--config FILE\n" in text
    assert list(Path.cwd().iterdir()) == []


def test_a_folder_without_a_model_is_refused(folder: Path) -> None:
    """A folder that is not there, or has no model, is named; a cluster has its folders elsewhere."""
    (folder / "empty").mkdir()
    for model in ("./nothere", "empty", "/nowhere/at/all", "~nobody/x"):
        with pytest.raises(BadConfiguration, match=r"holds no config.json, .* or a folder$"):
            init("--model", model)
    assert [path.name for path in folder.iterdir()] == ["empty"]
    init("--model", "/models/mine", "--for", "kubernetes")


@pytest.mark.parametrize(
    ("slip", "meant"), [("bge-m33", "bge-m3"), ("BGE-M3", "bge-m3"), ("qwen3-06b", "qwen3-0.6b")]
)
def test_a_slip_in_a_short_name(slip: str, meant: str) -> None:
    """A name that is nearly a short one is not taken for one of the hub's."""
    with pytest.raises(BadConfiguration, match=f"did you mean {meant}"):
        init("--model", slip)
    assert yaml.safe_load(init("--model", f"me/{slip}", "-o", "-"))["model_name"] == f"me/{slip}"


def test_a_path_is_written_without_detours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`..` of the shell's folder means nothing to a reader of the file."""
    make_model(folder / "mine")
    (folder / "here").mkdir()
    monkeypatch.chdir(folder / "here")
    tree = yaml.safe_load(init("--model", "../mine", "-o", "-"))
    assert tree["model_path"] == str(folder / "mine")


@pytest.mark.process
def test_on_a_terminal_it_asks(folder: Path) -> None:
    """Without flags it asks four questions, each until its answer means something."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "embedding_service", "init"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    os.write(ours, b"9\n./nothere\n4\nperhaps\ny\ncpu\nmoon\nsystemd\n")
    assert process.wait(60) == 0
    said = os.read(ours, 1 << 16).decode()
    assert "There is no 9; give 1 to 4, a hub's name, or a folder" in said
    assert "nothere holds no config.json" in said
    assert "Give one of y, n" in said
    assert "Give one of nothing, systemd, compose, kubernetes" in said
    os.close(ours)
    models = load(folder / "embedding-service.yaml")[0].served_models
    assert [model.model_name for model in models] == ["BAAI/bge-m3", "BAAI/bge-reranker-v2-m3"]
    assert list(models[1].aliases) == ["bge-reranker-v2-m3", "reranker"]
    assert (folder / "embedding-service.service").exists()

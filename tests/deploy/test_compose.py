"""The compose files: valid, hardened, and true to the files that they use."""

from __future__ import annotations

import json
import re
import subprocess
from importlib.metadata import files
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml

from embedding_service.settings.gateway import Settings
from tests.deploy.tools import DEPLOY, ROOT, free_ports, program, replaced

if TYPE_CHECKING:
    from pathlib import Path

COMPOSE = DEPLOY / "compose"
OVERLAYS = ("compose.yaml", "compose.gpu.yaml")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())[
    "services"
]


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_file_is_valid(name: str) -> None:
    """It follows the Compose Specification's own schema."""
    (schema,) = (
        file for file in files("check-jsonschema") or [] if file.name == "compose-spec.json"
    )
    jsonschema.validate(
        yaml.safe_load((COMPOSE / name).read_text()), json.loads(schema.read_text())
    )


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(name: str) -> None:
    """Read-only, without capabilities; Docker knows whether it works; its version is named."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert ":" in service["image"]
    dockerfile = ROOT / service["build"]["dockerfile"] if "build" in service else None
    assert "healthcheck" in service or (dockerfile and "\nHEALTHCHECK " in dockerfile.read_text())


def test_only_nginx_is_reached_from_outside() -> None:
    """The gateway has no port of its own on the host, and Grafana's is the host's alone."""
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(ports) == {"nginx", "grafana"}
    assert all(port.startswith("127.0.0.1:") for port in ports["grafana"])


def test_what_is_mounted_exists() -> None:
    """Every file that a container gets from the checkout is there."""
    mounts = [volume for service in SERVICES.values() for volume in service.get("volumes", ())]
    paths = [COMPOSE / mount.partition(":")[0] for mount in mounts if mount.startswith(".")]
    assert paths
    assert [path for path in paths if not path.exists()] == []


def test_the_gateway_understands_its_environment() -> None:
    """Every EMBEDDING_ variable is a setting."""
    names = {name for name in SERVICES["gateway"]["environment"] if name.startswith("EMBEDDING_")}
    assert {name.removeprefix("EMBEDDING_").lower() for name in names} <= set(Settings.model_fields)


def test_gateways_share_a_folder_that_is_theirs() -> None:
    """Files and batches are on a volume, which begins as a folder of the image's user."""
    gateway = SERVICES["gateway"]
    folder = gateway["environment"]["EMBEDDING_STATE_DIR"]
    assert f"state:{folder}" in gateway["volumes"]
    for dockerfile in ("Dockerfile", "Dockerfile.cpu"):
        made = f"install -d -m 0700 -o 10001 -g 10001 {folder}\n"
        assert made in (ROOT / dockerfile).read_text()


def test_a_drain_is_never_cut_short() -> None:
    """Docker waits longer than the longest drain and the end of the engines after it."""
    settings = Settings()
    grace_s = int(SERVICES["gateway"]["stop_grace_period"].removesuffix("s"))
    assert grace_s >= settings.drain_grace_s + settings.drain_timeout_s + 30


@pytest.mark.server
def test_nginx_takes_the_rewritten_configuration(tmp_path: Path) -> None:
    """`nginx -t` takes what the container makes of the configuration, and every change was made."""
    shipped, made = DEPLOY / "nginx" / "embedding-service.conf", tmp_path / "default.conf"
    *_, script = SERVICES["nginx"]["command"]
    rewrite = script.partition("exec nginx")[0]
    for expression in re.findall(r"-e '([^']+)'", rewrite):
        changed = subprocess.run(
            ["sed", "-e", expression, shipped], capture_output=True, text=True, check=True
        ).stdout
        assert changed != shipped.read_text(), expression
    subprocess.run(
        [
            "sh",
            "-ec",
            replaced(
                rewrite,
                {"/etc/embedding-service.conf": str(shipped), "/tmp/default.conf": str(made)},
            ),
        ],
        check=True,
    )
    assert "gateway:8890 max_fails=0" in made.read_text()
    listen = f"listen 127.0.0.1:{free_ports(1)[0]}"
    made.write_text(
        replaced(made.read_text(), {"gateway:8890": "127.0.0.1:8890", "listen 8080": listen})
    )
    frame = tmp_path / "nginx.conf"
    frame.write_text(replaced((COMPOSE / "nginx.conf").read_text(), {"/tmp/": f"{tmp_path}/"}))
    command = [program("nginx", "nginx"), "-e", "stderr", "-t", "-c", str(frame)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_prometheus_looks_for_the_same_alerts() -> None:
    """The container's configuration has the job of the alerts, and scrapes every gateway's port."""
    config = yaml.safe_load((COMPOSE / "prometheus.yaml").read_text())
    example = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    assert config["rule_files"] == example["rule_files"]
    (ours,), (theirs,) = config["scrape_configs"], example["scrape_configs"]
    assert ours["job_name"] == theirs["job_name"]
    assert ours["dns_sd_configs"] == [
        {"names": ["gateway"], "type": "A", "port": 8890, "refresh_interval": "15s"}
    ]

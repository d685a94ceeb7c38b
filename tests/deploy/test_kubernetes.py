"""The Kubernetes manifests: valid, restricted, and true to each other."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import promql_parser
import pytest
import yaml

from embedding_service.settings.gateway import Settings
from embedding_service.settings.load import load
from tests.deploy.test_monitoring import SERIES
from tests.deploy.tools import DEPLOY, ROOT, replaced

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = DEPLOY / "kubernetes"
VERSION = "1.34"  # of Kubernetes


def read(name: str) -> dict[str, Any]:
    """Return one file's only document."""
    document: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return document


KUSTOMIZATION = read("kustomization.yaml")
MANIFESTS = {document["kind"]: document for document in map(read, KUSTOMIZATION["resources"])}
POD = MANIFESTS["Deployment"]["spec"]["template"]
(GATEWAY,) = POD["spec"]["containers"]


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_is_valid(kind: str) -> None:
    """It follows Kubernetes' own schema, and has no field that this does not know."""
    kubernetes_validate.validate(MANIFESTS[kind], VERSION, strict=True)


def test_validation_would_find_a_mistake() -> None:
    """The check above is one: a misspelt field is refused."""
    wrong = {**MANIFESTS["Service"], "spec": {**MANIFESTS["Service"]["spec"], "selectr": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_everything_selects_the_pod() -> None:
    """Service, disruption budget, autoscaler and deployment mean the same pods."""
    labels = POD["metadata"]["labels"]
    assert MANIFESTS["Service"]["spec"]["selector"] == labels
    assert MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    target = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == MANIFESTS["Deployment"]["metadata"]["name"]
    assert MANIFESTS["Service"]["spec"]["ports"][0]["targetPort"] == GATEWAY["ports"][0]["name"]


def test_the_pod_is_restricted() -> None:
    """It keeps to the `restricted` standard, on a read-only root, as the user that the image has."""
    pod, container = POD["spec"]["securityContext"], GATEWAY["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    for dockerfile in ("Dockerfile", "Dockerfile.cpu"):
        assert f"\nUSER {pod['runAsUser']}:{pod['runAsGroup']}\n" in (ROOT / dockerfile).read_text()
    assert container["allowPrivilegeEscalation"] is False
    assert container["readOnlyRootFilesystem"] is True
    assert container["capabilities"] == {"drop": ["ALL"]}
    assert POD["spec"]["automountServiceAccountToken"] is False


def test_a_service_cannot_set_a_setting() -> None:
    """Kubernetes' variables for services, such as EMBEDDING_PORT, are off."""
    assert POD["spec"]["enableServiceLinks"] is False


def test_every_mount_has_its_volume() -> None:
    """Mounted and declared volumes are the same; the claim and settings that they name exist."""
    volumes = {volume["name"]: volume for volume in POD["spec"]["volumes"]}
    assert {mount["name"] for mount in GATEWAY["volumeMounts"]} == set(volumes)
    claim = MANIFESTS["PersistentVolumeClaim"]["metadata"]["name"]
    assert volumes["cache"]["persistentVolumeClaim"]["claimName"] == claim
    (generator,) = KUSTOMIZATION["configMapGenerator"]
    assert volumes["config"]["configMap"]["name"] == generator["name"]


@pytest.mark.server
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is in no Debian package")
def test_pods_share_the_volume_of_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the component on, every pod mounts one folder, and all are on the node that has it."""
    folder = shutil.copytree(FOLDER, tmp_path / "kubernetes")
    main = folder / "kustomization.yaml"
    main.write_text(replaced(main.read_text(), {"# components:": "components:"}))
    made = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, check=True)
    documents = list(yaml.safe_load_all(made.stdout))
    claim, deployment = (
        next(each for each in documents if (each["kind"], each["metadata"]["name"]) == wanted)
        for wanted in (
            ("PersistentVolumeClaim", "embedding-state"),
            ("Deployment", "embedding-service"),
        )
    )
    kubernetes_validate.validate(claim, VERSION, strict=True)
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    kubernetes_validate.validate(deployment, VERSION, strict=True)
    pod = deployment["spec"]["template"]
    (together,) = pod["spec"]["affinity"]["podAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert together["topologyKey"] == "kubernetes.io/hostname"
    assert together["labelSelector"]["matchLabels"] == pod["metadata"]["labels"]
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert volumes["state"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (gateway,) = pod["spec"]["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in gateway["volumeMounts"]}
    assert set(mounts) == set(volumes)
    for variable in gateway["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    state_dir = load(FOLDER / "config.yaml")[0].state_dir
    assert state_dir is not None
    assert state_dir.is_relative_to(mounts["state"])


def test_the_settings_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway accepts the file and the Secret's keys, and drains within the pod's grace."""
    (generator,) = KUSTOMIZATION["configMapGenerator"]
    for variable in GATEWAY["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    (name,) = generator["files"]
    loaded, warnings = load(FOLDER / name)
    assert warnings == []
    assert loaded.port == GATEWAY["ports"][0]["containerPort"]
    drain_s = (
        GATEWAY["lifecycle"]["preStop"]["sleep"]["seconds"]
        + loaded.drain_grace_s
        + loaded.drain_timeout_s
    )
    assert POD["spec"]["terminationGracePeriodSeconds"] >= drain_s + 30


def test_probes_ask_the_right_questions() -> None:
    """A pod that loads is neither restarted nor asked; nor is one restarted for its engine."""
    paths = {
        probe: GATEWAY[f"{probe}Probe"]["httpGet"]["path"]
        for probe in ("startup", "readiness", "liveness")
    }
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    startup = GATEWAY["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > Settings().startup_timeout_s


def test_the_autoscaler_follows_a_metric_that_exists() -> None:
    """prometheus-adapter reads one of our metrics under the name that the autoscaler asks for."""
    (metric,) = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["metrics"]
    (rule,) = read("prometheus-adapter.yaml")["rules"]["custom"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    series = promql_parser.parse(rule["seriesQuery"])
    assert isinstance(series, promql_parser.VectorSelector)
    assert series.name in SERIES
    query = rule["metricsQuery"].replace("<<.Series>>", series.name)
    promql_parser.parse(
        query.replace("<<.LabelMatchers>>", 'pod="a"').replace("<<.GroupBy>>", "pod")
    )

"""What an operator copies, manifests, unit and environment, fits the code and is what its reader accepts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from samples import ENVIRONMENT, variable_defaults

from rythmiq_ray import __version__
from rythmiq_ray.config_loader import VARIABLES, load

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
ENV_FILE = ROOT / ".env.worker.camber"
KUBERNETES = "1.37"
RAY_DRAIN_S = 30
"""RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S of Ray 2.60."""
CRDS = {"RayCluster": "raycluster-v1.schema.json", "PodMonitor": "podmonitor-v1.schema.json"}
Manifest = dict[str, Any]


def manifests() -> Iterator[tuple[str, Manifest]]:
    """Each object of deploy/kubernetes with its name for a test."""
    for path in sorted((DEPLOY / "kubernetes").rglob("*.yaml")):
        for number, manifest in enumerate(yaml.safe_load_all(path.read_text(encoding="utf-8"))):
            yield f"{path.parent.name}/{path.name}#{number}", manifest


MANIFESTS = dict(manifests())


def of_kind(*kinds: str) -> list[Manifest]:
    return [manifest for manifest in MANIFESTS.values() if manifest["kind"] in kinds]


def ray_groups(cluster: Manifest) -> list[Manifest]:
    return [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]


def pod_templates() -> list[Manifest]:
    ours = [manifest["spec"]["template"] for manifest in of_kind("Deployment", "Job")]
    return ours + [group["template"] for cluster in of_kind("RayCluster") for group in ray_groups(cluster)]


def component(pod: Manifest) -> str:
    return str(pod["metadata"]["labels"]["app.kubernetes.io/component"])


def driver_pods() -> list[Manifest]:
    return [pod for pod in pod_templates() if component(pod) == "driver"]


def single_container(pod: Manifest) -> Manifest:
    (container,) = pod["spec"]["containers"]
    assert isinstance(container, dict)
    return container


# -------------------------------------------------------------------------------------------------- Kubernetes


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_takes_the_manifest(name: str) -> None:
    manifest = MANIFESTS[name]
    if manifest["kind"] == "Kustomization":
        folder = next((DEPLOY / "kubernetes").glob(name.partition("#")[0])).parent
        assert all((folder / resource).exists() for resource in manifest["resources"])
    elif manifest["kind"] in CRDS:
        schema = json.loads((Path(__file__).parent / "data" / CRDS[manifest["kind"]]).read_text(encoding="utf-8"))
        jsonschema.validate(manifest, schema)
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    "pod", pod_templates(), ids=lambda pod: pod["metadata"]["labels"]["app.kubernetes.io/component"]
)
def test_each_pod_is_a_careful_one(pod: Manifest) -> None:
    # The schema of RayCluster leaves pods open, so this is where theirs are checked.
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", **pod["metadata"]}, "spec": pod["spec"]},
        KUBERNETES,
        strict=True,
    )
    spec, container = pod["spec"], single_container(pod)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    assert "memory" in container["resources"]["limits"]
    assert container["image"].endswith(f"/rythmiq-worker:{__version__}")
    for variable in container.get("env", []):
        assert "value" not in variable, "values come from a ConfigMap or a Secret"


def test_the_ray_cluster_runs_the_ray_that_is_installed() -> None:
    (ray,) = (match[1] for need in requires("rythmiq-ray") or [] if (match := re.match(r"ray\[default\]==(.*)", need)))
    assert [cluster["spec"]["rayVersion"] for cluster in of_kind("RayCluster")] == [ray]


def test_pods_have_the_time_to_end() -> None:
    grace_s = load(environ=ENVIRONMENT).config.shutdown.grace_s
    for pod in pod_templates():
        if component(pod) != "migrate":
            assert pod["spec"]["terminationGracePeriodSeconds"] > max(grace_s + 10, RAY_DRAIN_S + 10)


def test_drivers_are_told_what_they_need_and_probed_where_they_listen() -> None:
    maps = {manifest["metadata"]["name"]: manifest["data"] for manifest in of_kind("ConfigMap")}
    assert maps["rythmiq-driver"].keys() <= VARIABLES.keys()
    secrets = {name: ENVIRONMENT[name] for name in ("DATABASE_URL", "CAMBER_API_KEY")}
    # The key's file is not here.
    config = load(environ=maps["rythmiq-driver"] | secrets | {"CAMBER_API_KEY_FILE": ""}).config
    assert len(driver_pods()) == 2
    for pod in driver_pods():
        container = single_container(pod)
        assert container["envFrom"] == [
            {"configMapRef": {"name": "rythmiq-node"}},
            {"configMapRef": {"name": "rythmiq-driver"}},
            {"secretRef": {"name": "rythmiq-driver"}},
        ]
        (port,) = (port for port in container["ports"] if port["name"] == "http")
        assert port["containerPort"] == config.health.port
        probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
        assert probes == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}
        (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "camber")
        assert maps["rythmiq-driver"]["CAMBER_API_KEY_FILE"].startswith(f"{mount['mountPath']}/")
        assert "subPath" not in mount, "a file mounted so would not follow the Secret"


def test_no_secret_is_in_a_manifest() -> None:
    assert of_kind("Secret") == []
    for manifest in of_kind("ConfigMap"):
        assert not [name for name in manifest["data"] if re.search(r"SECRET|TOKEN|PASSWORD|API_KEY$|_URL$", name)]


def test_the_pod_monitor_finds_the_drivers() -> None:
    (monitor,) = of_kind("PodMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    found = [pod for pod in pod_templates() if wanted <= pod["metadata"]["labels"].items()]
    assert found == driver_pods()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for pod in found:
        assert endpoint["port"] in {port["name"] for port in single_container(pod)["ports"]}


def test_nodes_and_driver_agree_about_keep_alive() -> None:
    source = (ROOT / "rythmiq_ray/cluster.py").read_text(encoding="utf-8")
    said = dict(re.findall(r'os\.environ\.setdefault\("(RAY_\w+)", "(\w+)"\)', source))
    (node,) = (manifest["data"] for manifest in of_kind("ConfigMap") if manifest["metadata"]["name"] == "rythmiq-node")
    assert len(said) >= 2
    assert said.items() <= node.items()
    for pod in pod_templates():
        if component(pod) != "migrate":
            assert {"configMapRef": {"name": "rythmiq-node"}} in single_container(pod)["envFrom"]


def test_the_shell_of_the_driver_in_a_ray_cluster_is_valid() -> None:
    containers = [single_container(pod) for pod in driver_pods()]
    (script,) = (container["args"][0] for container in containers if container["command"][0] == "/bin/bash")
    subprocess.run(["bash", "-n", "-c", script], check=True)


# ----------------------------------------------------------------------------------------------------- systemd


def unit() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "systemd/rythmiq-driver.service").read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_stops_as_the_driver_does() -> None:
    settings = unit()
    assert (settings["KillSignal"], settings["KillMode"]) == (["SIGTERM"], ["mixed"])
    assert float(settings["TimeoutStopSec"][0]) > load(environ=ENVIRONMENT).config.shutdown.grace_s + 10
    assert settings["Restart"] == ["always"]
    assert settings["RestartPreventExitStatus"] == ["2"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / "rythmiq-driver.service"
    text = (DEPLOY / "systemd/rythmiq-driver.service").read_text(encoding="utf-8")
    copy.write_text(text.replace("/opt/rythmiq/bin/python", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --------------------------------------------------------------------------------------------------- variables


def env_file() -> dict[str, tuple[str, bool]]:
    """Each variable of the file: its value, and whether its line is in force."""
    lines = ENV_FILE.read_text(encoding="utf-8").splitlines()
    found = (re.fullmatch(r"(# )?([A-Z][A-Z0-9_]+)=(.*)", line) for line in lines)
    return {match[2]: (match[3], match[1] is None) for match in found if match}


def test_the_environment_file_has_every_variable_with_its_default() -> None:
    found = env_file()
    assert VARIABLES.keys() <= found.keys()
    others = found.keys() - VARIABLES.keys()
    assert all(re.match(r"AWS_|RAY_|RYTHMIQ_", name) for name in others)
    expected = variable_defaults()
    for name in VARIABLES:
        value, in_force = found[name]
        assert in_force or value == expected[name], name


def test_the_environment_file_holds_no_secret_and_names_what_is_missing() -> None:
    in_force = {name: value for name, (value, said) in env_file().items() if said}
    assert {name for name, value in in_force.items() if not value} == {
        *("DATABASE_URL", "ARTIFACT_STORE_BUCKET", "CAMBER_API_KEY")
    }
    filled = {"DATABASE_URL": "postgresql://h/d", "ARTIFACT_STORE_BUCKET": "b", "CAMBER_API_KEY": "k"}
    assert load(environ=in_force | filled).config.artifacts.bucket == "b"

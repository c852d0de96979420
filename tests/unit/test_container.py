"""The image and the cluster files, as far as they can be checked without a Docker engine or a cloud."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile.worker").read_text()
KEEPALIVE = {"RAY_grpc_client_keepalive_time_ms=10000", "RAY_grpc_client_keepalive_timeout_ms=5000"}


def cluster(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / name).read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_the_dockerfile_passes_hadolint() -> None:
    program = shutil.which("hadolint")
    assert program is not None, "it comes with the dev extra"
    done = subprocess.run(
        [program, "--format", "json", str(ROOT / "Dockerfile.worker")], capture_output=True, text=True
    )
    assert json.loads(done.stdout) == []


def test_the_image_has_the_ray_that_the_project_pins() -> None:
    (image,) = re.findall(r"^ARG RAY_IMAGE=rayproject/ray:(\S+)-py311$", DOCKERFILE, re.MULTILINE)
    assert image == version("ray")
    pins = (ROOT / "constraints.txt").read_text()
    assert f"ray=={image}" in pins


def test_the_image_runs_the_driver_as_nobody_special_behind_an_init_that_signals_it_alone() -> None:
    final = DOCKERFILE.rsplit("\nFROM ", 1)[1]
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", final, re.MULTILINE)
    assert json.loads(entry) == ["dumb-init", "--single-child", "--", "python", "-m", "rythmiq_ray.driver"]
    assert re.findall(r"^USER (.*)$", final, re.MULTILINE) == ["1000"]
    assert "HEALTHCHECK" in final
    assert "/livez" in final
    assert not re.search(r"apt-get|gcc|COPY", final), "all that is in it came out of the first stage as wheels"
    assert {line.strip(" \\") for line in final.splitlines()} >= KEEPALIVE


def test_the_version_of_the_image_is_that_of_the_project() -> None:
    (label,) = re.findall(r"^ARG VERSION=(.*)$", DOCKERFILE, re.MULTILINE)
    assert f'version = "{label}"' in (ROOT / "pyproject.toml").read_text()


def test_only_what_the_image_needs_is_sent_to_the_builder() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*", "nothing is sent that is not named"
    copied = {
        name for line in re.findall(r"^COPY (?:--\S+ )?(.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()
    }
    allowed = {rule.lstrip("!").split("/")[0] for rule in rules if rule.startswith("!")}
    assert copied == allowed
    assert "**/.env*" in rules


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster.local.yaml"])
def test_ray_takes_the_cluster_file(name: str) -> None:
    # Private, and the only check that needs no cloud (Ray 2.60).
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster(name)))


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster.local.yaml"])
def test_a_cluster_is_closed_to_others_and_shows_no_secret(name: str) -> None:
    config = cluster(name)
    (head,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    (worker,) = [line for line in config["worker_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in head
    for line in (head, worker):
        assert "RAY_AUTH_MODE=token" in line
    assert any(line.startswith("rm -f") and "driver.env" in line for line in config["worker_start_ray_commands"])
    assert config["setup_commands"], "Ray's own would install a nightly build"
    text = (ROOT / name).read_text()
    assert not re.search(r"(?i)(secret_access_key|api_key|password)\s*[:=]\s*\S", text)


def test_aws_nodes_have_a_role_instead_of_keys_and_workers_are_spot() -> None:
    types = cluster("cluster.yaml")["available_node_types"]
    for kind in types.values():
        assert kind["node_config"]["IamInstanceProfile"]
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["on_demand"]["node_config"]

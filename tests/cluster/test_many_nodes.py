"""Nodes that come and go while there is work: a new one takes its share, and a drained one loses nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg2
import pytest
import yaml
from ray_nodes import WAIT_S, Node, creates, wait_for

from rythmiq_ray import JobSpec, NewJob, enqueue_many
from rythmiq_ray.local.camber import Emulator
from rythmiq_ray.local.camber.faults import Faults

Drive = Callable[..., "subprocess.Popen[bytes]"]
Environment = dict[str, str]

DRAIN = """
import sys, time, ray
from ray._raylet import GcsClient
ray.init(log_to_driver=False)
(node,) = [node for node in ray.nodes() if sys.argv[1] in node["Resources"]]
accepted, reason = GcsClient(address=ray.get_runtime_context().gcs_address).drain_node(
    node["NodeID"], 2, "its machine is taken away", int(time.time() * 1000) + 60_000
)
assert accepted, reason
"""


def attempts(url: str) -> list[tuple[str, int]]:
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT DISTINCT state, attempt FROM rythmiq.jobs")
        return [(state, attempt) for state, attempt in cursor.fetchall()]


def unfinished(url: str) -> int:
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM rythmiq.jobs WHERE finished_at IS NULL")
        return int(cursor.fetchone()[0])


def put(url: str, jobs: int) -> None:
    with psycopg2.connect(url) as connection:
        enqueue_many(connection, [NewJob(spec=JobSpec(command="true"), max_attempts=1) for _ in range(jobs)])


@pytest.mark.timeout(300)
def test_a_node_that_is_added_takes_work_and_one_that_is_drained_loses_none(
    database_url: str,
    environment: Environment,
    nodes: Callable[..., Node],
    drive: Drive,
    camber: Emulator,
    tmp_path: Path,
) -> None:
    nodes()
    first = nodes("--num-cpus=1", "--resources", json.dumps({"first": 1}))
    second = nodes("--num-cpus=1")
    # Slow creates keep tasks long enough on a node to be seen there.
    camber.faults = Faults(create_latency_s=0.5)
    put(database_url, 80)
    driver = drive("--drain", "ray.jobs_per_task=1")
    wait_for(lambda: first.works, "the first node works")
    wait_for(lambda: second.works, "the second node works")
    third = nodes("--num-cpus=1")

    def third_works() -> bool:
        # However long the node takes to start, there is work left when it has.
        if unfinished(database_url) < 20:
            put(database_url, 20)
        return third.works

    wait_for(third_works, "the node that was added works")
    subprocess.run([sys.executable, "-c", DRAIN, "first"], env=environment, check=True, timeout=60)
    wait_for(lambda: first.raylets == 0, "the drained node ends itself once its task is done")
    assert driver.wait(WAIT_S * 2) == 0, (tmp_path / "driver-0.log").read_text()
    assert attempts(database_url) == [("SUCCEEDED", 1)]
    assert set(creates(camber).values()) == {1}
    assert "Task lost" not in (tmp_path / "driver-0.log").read_text()


def fake_provider(tmp_path: Path, address: str) -> Path:
    """A provider that starts nodes as processes here; the autoscaler that asks for them is the real one."""
    config = {
        "cluster_name": "fake",
        "max_workers": 2,
        "idle_timeout_minutes": 0.05,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": address,
        },
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "head_node_type": "head",
        "upscaling_speed": 1.0,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }
    path = tmp_path / "fake.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.timeout(300)
def test_work_that_waits_makes_the_autoscaler_add_nodes_and_idle_ones_go(
    database_url: str,
    environment: Environment,
    nodes: Callable[..., Node],
    drive: Drive,
    camber: Emulator,
    tmp_path: Path,
) -> None:
    address = environment["RAY_ADDRESS"]
    environment |= {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "0",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": "f" * 51 + "00000",
    }
    head = nodes(f"--autoscaling-config={fake_provider(tmp_path, address)}")
    for name in ("RAY_FAKE_CLUSTER", "RAY_OVERRIDE_NODE_ID_FOR_TESTING"):
        del environment[name]
    wait_for(lambda: head.raylets == 1, "there is only the head, which takes no tasks")
    camber.faults = Faults(create_latency_s=0.5)
    put(database_url, 30)
    driver = drive("--drain", "ray.jobs_per_task=1", "driver.lease_s=30")
    wait_for(lambda: head.raylets == 3, "both nodes that may be added are there")
    assert driver.wait(WAIT_S * 2) == 0, (tmp_path / "driver-0.log").read_text()
    assert attempts(database_url) == [("SUCCEEDED", 1)]
    assert set(creates(camber).values()) == {1}
    wait_for(lambda: head.raylets == 1, "idle nodes go")

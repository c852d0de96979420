"""Ray nodes that go: killed in mid-collect, and the head under the driver. Each costs time, and no attempt."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg2
import pytest
import requests
from ray_nodes import WAIT_S, Node, creates, wait_for

from rythmiq_ray import JobSpec, enqueue
from rythmiq_ray.local.camber import Emulator
from rythmiq_ray.local.process import free_ports

Drive = Callable[..., "subprocess.Popen[bytes]"]
Environment = dict[str, str]


@pytest.mark.timeout(300)
def test_a_node_killed_while_it_collects_costs_no_attempt(
    database_url: str,
    environment: Environment,
    nodes: Callable[..., Node],
    drive: Drive,
    camber: Emulator,
    tmp_path: Path,
) -> None:
    connection = psycopg2.connect(database_url)
    connection.autocommit = True
    nodes()
    doomed = nodes("--num-cpus=1")
    size = 300_000_000
    enqueue(connection, JobSpec(command=f"head -c {size} /dev/zero > big.bin", outputs=("big.bin",)))
    for _ in range(5):
        enqueue(connection, JobSpec(command="echo small"))
    driver = drive("--drain")

    def collecting() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM rythmiq.jobs WHERE phase = 'collecting' AND spec->>'command' LIKE 'head%'"
            )
            return bool(cursor.fetchone()[0])  # type: ignore[index]

    wait_for(collecting, "the large file is collected")
    doomed.kill()
    nodes("--num-cpus=1")
    assert driver.wait(WAIT_S * 2) == 0, (tmp_path / "driver-0.log").read_text()
    with connection.cursor() as cursor:
        cursor.execute("SELECT DISTINCT state, attempt FROM rythmiq.jobs")
        assert cursor.fetchall() == [("SUCCEEDED", 1)]
        cursor.execute("SELECT bytes FROM rythmiq.artifacts WHERE name = 'big.bin'")
        assert cursor.fetchall() == [(size,)]
    connection.close()
    assert set(creates(camber).values()) == {1}


@pytest.mark.timeout(300)
def test_a_driver_whose_head_is_killed_ends_and_the_next_one_takes_over(
    database_url: str,
    environment: Environment,
    nodes: Callable[..., Node],
    drive: Drive,
    camber: Emulator,
    tmp_path: Path,
) -> None:
    connection = psycopg2.connect(database_url)
    connection.autocommit = True
    # The default is 60 s, in which the driver cannot know that its head will not come back.
    environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = "10"
    (port,) = free_ports(1)
    environment["PORT"] = str(port)
    head = nodes()
    nodes("--num-cpus=1")
    for _ in range(4):
        enqueue(connection, JobSpec(command="while [ ! -e go ]; do sleep 0.1; done"))
    driver = drive("--drain")

    def waiting() -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM rythmiq.jobs WHERE phase = 'waiting'")
            return cursor.fetchone() == (4,)

    wait_for(waiting, "all wait")
    head.kill()

    def ray_is_missed() -> bool:
        assert driver.poll() is None, "it ended before its health told of Ray"
        return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=10).json()["checks"]["ray"] == {"ok": False}

    wait_for(ray_is_missed, "its health tells that Ray is gone")
    assert driver.wait(WAIT_S) != 0
    del environment["RAY_ADDRESS"]
    second = drive("--drain")

    def ended() -> bool:
        for path in camber.root.glob("work/*/workdir"):
            (path / "go").touch()
        return second.poll() is not None

    wait_for(ended, "the second driver is done")
    assert second.wait() == 0, (tmp_path / "driver-1.log").read_text()
    with connection.cursor() as cursor:
        cursor.execute("SELECT DISTINCT state, attempt FROM rythmiq.jobs")
        assert cursor.fetchall() == [("SUCCEEDED", 1)]
    connection.close()
    assert set(creates(camber).values()) == {1}

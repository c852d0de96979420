"""What the tests with a real driver on a real Ray share: its environment, and a way to run it as its users do."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray_nodes import Node
from samples import API_KEY

from rythmiq_ray.local.camber import Emulator
from rythmiq_ray.local.process import free_ports
from rythmiq_ray.local.s3 import S3

CANARY_SECRET = "canary-secret-x-0123"
FAST = (
    "driver.poll_interval_s=0.2",
    "driver.lease_s=5",
    "retry.base_delay_s=0.2",
    "camber.settle_s=0.5",
    "camber.create_timeout_s=5",
    "camber.sync_timeout_s=10",
    "ray.num_cpus=2",
    "driver.start_timeout_s=120",
)

Environment = dict[str, str]


@pytest.fixture
def environment(database_url: str, s3: S3, s3_environment: dict[str, str], camber: Emulator) -> Environment:
    """All that a driver is told, with real parts behind it."""
    return {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        **s3_environment,
        "DATABASE_URL": database_url,
        "ARTIFACT_STORE_TYPE": "s3",
        "ARTIFACT_STORE_BUCKET": s3.bucket,
        "EXECUTION_BACKEND": "camber",
        "CAMBER_API_KEY": API_KEY,
        "CAMBER_API_ENDPOINT": camber.endpoint,
        "SERVICE_ENV": "prod",
        "RYTHMIQ_SECRET_X": CANARY_SECRET,
        "PYTHONUNBUFFERED": "1",
        "RAY_enable_metrics_collection": "0",  # A second of work for each Ray that starts.
    }


@pytest.fixture
def drive(environment: Environment, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts ``python -m rythmiq_ray.driver`` with these arguments; its output goes to ``driver-<n>.log``."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        log = tmp_path / f"driver-{len(started)}.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "rythmiq_ray.driver", *arguments, *FAST],
                env=environment,
                cwd=tmp_path,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture
def nodes(environment: Environment, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Starts nodes of one Ray cluster; the first is a head without CPUs, which the driver joins."""
    started: list[Node] = []
    folder = tempfile.mkdtemp(prefix="rq-")
    (port,) = free_ports(1)
    environment["RAY_ADDRESS"] = f"127.0.0.1:{port}"

    def start(*arguments: str) -> Node:
        if started:
            place = [f"--address=127.0.0.1:{port}"]
        else:
            place = ["--head", f"--port={port}", f"--temp-dir={folder}", "--num-cpus=0", "--include-dashboard=false"]
        started.append(Node(tmp_path, environment, "--node-ip-address=127.0.0.1", *place, *arguments))
        return started[-1]

    yield start
    for node in reversed(started):
        node.kill()

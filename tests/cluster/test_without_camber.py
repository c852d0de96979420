"""The driver from outside, with processes of the node as its backend and a folder as its store: no key, no service."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psycopg2
import pytest

from rythmiq_ray import JobSpec, enqueue
from rythmiq_ray.model import JobState, Phase
from rythmiq_ray.queue import inspect

Drive = Callable[..., subprocess.Popen[bytes]]
WAIT_S = 150.0


@pytest.fixture
def environment(database_url: str, tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "DATABASE_URL": database_url,
        "ARTIFACT_STORE_TYPE": "local",
        "ARTIFACT_STORE_PATH": str(tmp_path / "store"),
        "EXECUTION_BACKEND": "local",
        "EXECUTION_LOCAL_PATH": "jobs",
        "RYTHMIQ_SECRET_X": "canary-secret-x-0123",
    }


@pytest.mark.timeout(400)
def test_jobs_run_without_camber_and_once_each_although_the_driver_is_killed(
    database_url: str, drive: Drive, tmp_path: Path
) -> None:
    connection = psycopg2.connect(database_url)
    connection.autocommit = True
    go, runs = tmp_path / "go", tmp_path / "runs"
    wait = f"echo $RYTHMIQ_JOB_ID >>{runs}; while [ ! -e {go} ]; do sleep 0.1; done"
    ok = enqueue(connection, JobSpec(command=f'{wait}; [ "$X" = canary-secret-x-0123 ]', secrets=("X",)))
    fails = enqueue(connection, JobSpec(command=f"{wait}; exit 3", retry_exit_codes=(4,)))
    outputs = enqueue(
        connection, JobSpec(command=f"{wait}; echo a >out/a.csv; env >out/env", outputs=("out/*",), node_size="large")
    )
    jobs = (ok, fails, outputs)

    first = drive("camber.max_in_flight=3")
    deadline = time.monotonic() + WAIT_S
    while not all(inspect.job(connection, job).phase is Phase.WAITING for job in jobs):
        assert time.monotonic() < deadline, (tmp_path / "driver-0.log").read_text()
        time.sleep(0.05)
    first.kill()
    first.wait()
    go.touch()
    assert drive("--drain").wait(WAIT_S) == 3, (tmp_path / "driver-1.log").read_text()

    ends = [(found.state, found.exit_code, found.attempt) for found in (inspect.job(connection, job) for job in jobs)]
    assert ends == [(JobState.SUCCEEDED, 0, 1), (JobState.FAILED, 3, 1), (JobState.SUCCEEDED, 0, 1)]
    assert sorted(runs.read_text().split()) == sorted(map(str, jobs)), "each ran once"
    stored = {file.name: Path(file.uri.removeprefix("file://")) for _, file in inspect.artifacts(connection, outputs)}
    assert stored.keys() == {"log.txt", "out/a.csv", "out/env"}
    assert stored["out/a.csv"].read_text() == "a\n"
    assert "canary" not in stored["out/env"].read_text()
    assert [path.name for path in (tmp_path / "jobs").rglob("*")] == [".ledger"], "each path is removed once it is safe"
    connection.close()

    log = (tmp_path / "driver-1.log").read_text()
    assert "Configuration loaded backend=local" in log
    assert "Execution backend initialized backendType=LocalExecutionBackend" in log

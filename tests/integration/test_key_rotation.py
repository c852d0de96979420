"""Camber's key is changed under a working driver: no restart, no attempt burned, neither key anywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg2
import pytest
from samples import API_KEY

from rythmiq_ray import JobSpec, enqueue
from rythmiq_ray.local.camber import Emulator
from rythmiq_ray.model import JobState, Phase
from rythmiq_ray.queue import inspect

WAIT_S = 90.0
NEW_KEY = "canarynew" * 4


def until(condition: Callable[[], object], what: str, log: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S:.0f} s: {what}\n{log.read_text()}"
        time.sleep(0.05)


@pytest.mark.timeout(300)
def test_the_key_is_changed_without_a_restart(database_url: str, camber: Emulator, tmp_path: Path) -> None:
    secret, log = tmp_path / "camber-api-key", tmp_path / "driver.log"
    secret.write_text(f"{API_KEY}\n")
    environ = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "DATABASE_URL": database_url,
        "ARTIFACT_STORE_TYPE": "local",
        "ARTIFACT_STORE_PATH": str(tmp_path / "store"),
        "EXECUTION_BACKEND": "camber",
        "CAMBER_API_KEY_FILE": str(secret),
        "CAMBER_API_ENDPOINT": camber.endpoint,
        "PYTHONUNBUFFERED": "1",
    }
    overrides = ("driver.poll_interval_s=0.2", "ray.num_cpus=1", "outage.probe_interval_s=0.5")
    connection = psycopg2.connect(database_url)
    connection.autocommit = True
    release = tmp_path / "release"
    waiting = f"while [ ! -e {release} ]; do sleep 0.1; done; echo done > out.txt"
    jobs = [enqueue(connection, JobSpec(command=waiting, outputs=("out.txt",))) for _ in range(3)]

    with log.open("wb") as sink:
        driver = subprocess.Popen(
            [sys.executable, "-m", "rythmiq_ray.driver", *overrides], env=environ, stdout=sink, stderr=sink
        )
    try:
        until(
            lambda: all(inspect.job(connection, job).phase is Phase.WAITING for job in jobs), "all wait at Camber", log
        )
        camber.api_key = NEW_KEY  # as by a revocation: the old key is refused before the new one is in the file
        jobs += [enqueue(connection, JobSpec(command="echo late")) for _ in range(3)]
        until(lambda: "Dispatch paused" in log.read_text(), "dispatch pauses", log)
        # Docker and Kubernetes replace the file as a whole.
        replacement = secret.with_suffix(".new")
        replacement.write_text(NEW_KEY)
        replacement.replace(secret)
        until(lambda: "Dispatch resumed" in log.read_text(), "dispatch resumes", log)
        release.touch()
        until(lambda: all(inspect.job(connection, job).state is JobState.SUCCEEDED for job in jobs), "all succeed", log)
        # Nor does a worker process that has worked with the first key go on with it.
        jobs.append(enqueue(connection, JobSpec(command="echo after")))
        until(lambda: inspect.job(connection, jobs[-1]).state is JobState.SUCCEEDED, "one more succeeds", log)
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(WAIT_S) == 0
    finally:
        if driver.poll() is None:
            driver.kill()
            driver.wait()
    assert {inspect.job(connection, job).attempt for job in jobs} == {1}, "an attempt was burned"
    connection.close()
    text = log.read_text()
    assert text.count("Camber's API key was read again") == 1
    assert API_KEY not in text
    assert NEW_KEY not in text

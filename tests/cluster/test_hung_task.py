"""A Ray task that hangs: it is given up at its deadline, its phase is run again, and nothing is made twice."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg2
import pytest
from ray_nodes import WAIT_S, creates, wait_for

from rythmiq_ray import JobSpec, enqueue
from rythmiq_ray.local.camber import Emulator, Faults


@pytest.mark.timeout(240)
def test_a_task_that_hangs_is_given_up_and_its_phase_run_again(
    database_url: str, drive: Callable[..., subprocess.Popen[bytes]], camber: Emulator, tmp_path: Path
) -> None:
    connection = psycopg2.connect(database_url)
    connection.autocommit = True
    # The create is under way when its task stops, so that it is done and nobody is there to take the answer.
    camber.faults = Faults(create_latency_s=1.0)
    enqueue(connection, JobSpec(command="echo done"), max_attempts=1)
    driver = drive("--drain", "ray.task_timeout_s=4")
    stopped: list[psutil.Process] = []

    def submitting() -> bool:
        if not list((camber.root / "stash").rglob("run.sh")):
            return False
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(driver.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if " ".join(process.cmdline()).startswith("ray::rythmiq.submit"):
                        process.send_signal(signal.SIGSTOP)
                        stopped.append(process)
                        return True
        return False

    wait_for(submitting, "a task submits")
    camber.faults = Faults()
    log = tmp_path / "driver-0.log"
    wait_for(lambda: "Task lost" in log.read_text(), "it is given up")
    assert driver.wait(WAIT_S) == 0, log.read_text()
    assert "a hang" in log.read_text()
    with connection.cursor() as cursor:
        cursor.execute("SELECT state, attempt FROM rythmiq.jobs")
        assert cursor.fetchall() == [("SUCCEEDED", 1)]
    connection.close()
    assert list(creates(camber).values()) == [1]
    wait_for(
        lambda: not stopped[0].is_running() or stopped[0].status() == psutil.STATUS_ZOMBIE, "the hung task is gone"
    )

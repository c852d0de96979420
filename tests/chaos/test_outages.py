"""An outage is not a failure of jobs: dispatch pauses with one line, no attempt is burned, and it resumes by itself."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg2
import pytest
from inline_cluster import InlineCluster, in_phase
from samples import API_KEY

from rythmiq_ray import JobSpec, enqueue
from rythmiq_ray.artifacts import open_store
from rythmiq_ray.backends.camber import CamberExecutionBackend
from rythmiq_ray.driver.loop import Loop
from rythmiq_ray.driver.outages import BACKEND, STORE
from rythmiq_ray.driver.poller import Poller
from rythmiq_ray.driver.wakeup import Wakeup
from rythmiq_ray.executor import Executor
from rythmiq_ray.layers import load
from rythmiq_ray.local.camber import Emulator, Faults, Outage
from rythmiq_ray.local.postgres import Postgres
from rythmiq_ray.model import JobState, Phase
from rythmiq_ray.queue import Heartbeat, Queue, inspect

WAIT_S = 60.0
Message = Callable[[], list[str]]


class Run:
    """A driver whose ticks the test makes."""

    def __init__(self, url: str, store: Path, camber: Emulator) -> None:
        environ = {
            "DATABASE_URL": url,
            "ARTIFACT_STORE_TYPE": "local",
            "ARTIFACT_STORE_PATH": str(store),
            "EXECUTION_BACKEND": "camber",
            "CAMBER_API_KEY": API_KEY,
            "CAMBER_API_ENDPOINT": camber.endpoint,
        }
        overrides = ["driver.poll_interval_s=0.1", "driver.lease_s=5", "camber.settle_s=0.3", "camber.call_attempts=1"]
        overrides += ["outage.probe_interval_s=0.2", "outage.probe_max_interval_s=0.4", "camber.create_timeout_s=1"]
        config = load(overrides, environ=environ).config
        backend, artifacts = CamberExecutionBackend(config.camber), open_store(config.artifacts)
        executor = Executor(backend=backend, store=artifacts, timeout_s=60.0, concurrency=2)
        wakeup = Wakeup()
        self.queue = Queue(config.database.url, lease_s=config.driver.lease_s)
        self.heartbeat = Heartbeat(config.database.url, lease_s=config.driver.lease_s)
        self.poller = Poller(backend, {BACKEND: backend.check, STORE: artifacts.check}, wake=wakeup.set)
        cluster = InlineCluster(executor, wake=wakeup.set)
        self.loop = Loop(config, self.queue, self.heartbeat, cluster, self.poller, wakeup)
        self.loop.register()
        self.loop.lease.start()
        self.poller.start()
        self.jobs = 0
        self.connection = psycopg2.connect(url)
        self.connection.autocommit = True

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, f"not within {WAIT_S:.0f} s: {what}"
            self.loop.tick()
            self.loop.wait()

    def put(self, count: int, command: str = "echo done") -> None:
        self.jobs += count
        for _ in range(count):
            enqueue(self.connection, JobSpec(command=command))

    def all_succeeded_at_once(self) -> bool:
        jobs = inspect.jobs(self.connection)
        assert len(jobs) == self.jobs, "a job was lost"
        assert all(job.attempt <= 1 for job in jobs), "an attempt was burned"
        return all(job.state is JobState.SUCCEEDED for job in jobs)

    def close(self) -> None:
        self.loop.stop()
        self.loop.lease.stop(resign=False)
        self.poller.stop()
        self.queue.close()
        self.heartbeat.close()
        self.connection.close()


@pytest.fixture
def run(database_url: str, tmp_path: Path, camber: Emulator) -> Iterator[Run]:
    run = Run(database_url, tmp_path / "store", camber)
    yield run
    run.close()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Message:
    caplog.set_level(logging.INFO, logger="rythmiq")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    "faults", [Faults(refuse_key=True), Faults(outage=Outage.UNAVAILABLE)], ids=["refused key", "Camber down"]
)
def test_camber_away(run: Run, camber: Emulator, said: Message, faults: Faults) -> None:
    run.put(4, "sleep 0.5; echo done")
    run.until(lambda: in_phase(run.loop, Phase.WAITING) == 4, "all wait")
    camber.faults = faults
    run.put(4)
    run.until(lambda: "Dispatch paused" in said(), "dispatch pauses")
    seen = time.monotonic()
    run.until(lambda: time.monotonic() > seen + 1.0, "some probes fail")
    assert said().count("Dispatch paused") == 1
    assert "Dispatch resumed" not in said()
    camber.faults = Faults()
    run.until(run.all_succeeded_at_once, "all succeed in their first attempt")
    assert said().count("Dispatch resumed") == 1


def test_artifact_store_away(run: Run, tmp_path: Path, said: Message) -> None:
    run.put(3)
    store, aside = tmp_path / "store", tmp_path / "aside"
    store.mkdir(exist_ok=True)
    store.rename(aside)
    store.write_text("a file where the folder was")
    run.until(lambda: "Dispatch paused" in said(), "dispatch pauses")
    store.unlink()
    aside.rename(store)
    run.until(run.all_succeeded_at_once, "all succeed in their first attempt")
    assert said().count("Dispatch paused") == said().count("Dispatch resumed") == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB where the artifacts go."""
    folder = tmp_path / "store"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("not allowed to mount a file system (needs root)")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_disk_of_the_local_store_full(small_disk: Path, run: Run, said: Message) -> None:
    filler = small_disk / "of somebody else"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    run.put(4)
    run.until(lambda: "Dispatch paused" in said(), "dispatch pauses")
    assert "Dispatch resumed" not in said()
    filler.unlink()
    run.until(run.all_succeeded_at_once, "all succeed in their first attempt")
    assert said().count("Dispatch paused") == said().count("Dispatch resumed") == 1


@pytest.mark.parametrize("crash", [False, True])
def test_postgres_away(run: Run, postgres: Postgres, said: Message, crash: bool) -> None:
    run.put(4, "sleep 0.3; echo done")
    run.until(lambda: in_phase(run.loop, Phase.WAITING) >= 1, "some wait")
    postgres.restart(crash=crash)
    run.connection = psycopg2.connect(run.connection.dsn)
    run.connection.autocommit = True
    run.until(run.all_succeeded_at_once, "all succeed in their first attempt")
    assert said().count("Postgres is away, outcomes are kept") == said().count("Postgres is back") == 1

"""A driver in the test's own process, over a real Postgres and a real emulator; the test makes its ticks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psycopg2
from inline_cluster import InlineCluster
from samples import API_KEY

from rythmiq_ray import JobSpec, enqueue
from rythmiq_ray.artifacts import open_store
from rythmiq_ray.backends.camber import CamberExecutionBackend
from rythmiq_ray.config_loader import load
from rythmiq_ray.driver.loop import Loop
from rythmiq_ray.driver.outages import BACKEND, STORE
from rythmiq_ray.driver.poller import Poller
from rythmiq_ray.executor import Executor
from rythmiq_ray.model import JobState
from rythmiq_ray.queue import Heartbeat, Queue, listing
from rythmiq_ray.wakeup import Wakeup

WAIT_S = 60.0


class Run:
    """One driver, registered and polling."""

    def __init__(
        self, url: str, store: Path, endpoint: str, *more: str, threads: int = 8, layer: Path | None = None
    ) -> None:
        """``endpoint``: Camber's; ``more``: overrides of the configuration beside those that make it quick.

        ``layer``: a file for RYTHMIQ_CONFIG.
        """
        environ = {
            "DATABASE_URL": url,
            "ARTIFACT_STORE_TYPE": "local",
            "ARTIFACT_STORE_PATH": str(store),
            "EXECUTION_BACKEND": "camber",
            "CAMBER_API_KEY": API_KEY,
            "CAMBER_API_ENDPOINT": endpoint,
        }
        if layer is not None:
            environ["RYTHMIQ_CONFIG"] = str(layer)
        overrides = ["driver.poll_interval_s=0.1", "driver.lease_s=5", "camber.settle_s=0.3", "camber.call_attempts=1"]
        overrides += ["outage.probe_interval_s=0.2", "outage.probe_max_interval_s=0.4", "camber.create_timeout_s=1"]
        config = load([*overrides, *more], environ=environ).config
        backend, artifacts = CamberExecutionBackend(config.camber), open_store(config.artifacts)
        executor = Executor(backend=backend, store=artifacts, timeout_s=60.0, concurrency=2, settled_s=1.0)
        wakeup = Wakeup()
        self.queue = Queue(config.database.url, lease_s=config.driver.lease_s)
        self.heartbeat = Heartbeat(config.database.url, lease_s=config.driver.lease_s)
        self.poller = Poller(backend, {BACKEND: backend.check, STORE: artifacts.check}, wake=wakeup.set)
        cluster = InlineCluster(executor, wake=wakeup.set, threads=threads)
        self.loop = Loop(config, self.queue, self.heartbeat, cluster, self.poller, wakeup)
        self.loop.register()
        self.loop.lease.start()
        self.poller.start()
        self.jobs = 0
        self.connection = psycopg2.connect(url)
        self.connection.autocommit = True

    def until(self, condition: Callable[[], object], what: str, *, wait_s: float = WAIT_S) -> None:
        deadline = time.monotonic() + wait_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {wait_s:.0f} s: {what}"
            self.loop.tick()
            self.loop.wait()

    def put(self, count: int, command: str = "echo done") -> None:
        self.jobs += count
        for _ in range(count):
            enqueue(self.connection, JobSpec(command=command))

    def all_succeeded_at_once(self) -> bool:
        jobs = list(listing.jobs(self.connection))
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

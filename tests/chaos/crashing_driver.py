"""A driver with threads for Ray, in a process of its own, that dies at a point."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

from inline_cluster import InlineCluster, in_phase
from side_effects import Tripwire

import rythmiq_ray.driver.janitor
from rythmiq_ray.artifacts import open_store
from rythmiq_ray.backends.camber import CamberExecutionBackend
from rythmiq_ray.config_loader import load
from rythmiq_ray.driver.loop import Loop
from rythmiq_ray.driver.notifier import Notifier
from rythmiq_ray.driver.outages import BACKEND, STORE
from rythmiq_ray.driver.poller import Poller
from rythmiq_ray.executor import Executor
from rythmiq_ray.model import Phase
from rythmiq_ray.queue import Heartbeat, Queue
from rythmiq_ray.telemetry.logs import setup
from rythmiq_ray.wakeup import Wakeup
from rythmiq_ray.webhooks import Answer

OVERRIDES = (
    "driver.lease_s=1",
    "driver.poll_interval_s=0.1",
    "camber.settle_s=0.3",
    "camber.create_timeout_s=1",
    "camber.sync_timeout_s=8",
    "retry.base_delay_s=0.1",
    "shutdown.grace_s=5",
    "notify.timeout_s=0.1",  # What a dead driver has taken is soon due again.
)


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["rythmiq_ray.testing"])
"""A driver that is forked needs no seconds for its imports."""


def start(
    folder: Path, environ: Mapping[str, str], point: str | None = None, *, stop_when_waiting: bool = False
) -> BaseProcess:
    """Starts a driver that runs until nothing is left to do, or until ``point``. Its output is in a file ``output``."""
    process = FORKS.Process(target=_run, args=(folder, dict(environ), point, stop_when_waiting))
    process.start()
    return process


def _run(folder: Path, environ: Mapping[str, str], point: str | None, stop_when_waiting: bool) -> None:
    os.environ.clear()
    os.environ.update(environ)
    with (folder / "output").open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    config = load(OVERRIDES).config
    setup(config.logging)
    rythmiq_ray.driver.janitor.LEASES = 0.1  # type: ignore[misc]  # What the dead left is old enough at once.
    Tripwire(folder / "record", point).install()
    executor = Executor(
        backend=CamberExecutionBackend(config.camber),
        store=open_store(config.artifacts),
        timeout_s=60.0,
        concurrency=4,
    )
    wakeup = Wakeup()
    queue = Queue(config.database.url, lease_s=config.driver.lease_s)
    heartbeat = Heartbeat(config.database.url, lease_s=config.driver.lease_s)
    probes = {BACKEND: executor.backend.check, STORE: executor.store.check}
    poller = Poller(executor.backend, probes, wake=wakeup.set)
    told = folder / "told"

    def send(notification_id: str, _url: str, body: str) -> Answer:
        with told.open("a") as file:
            file.write(f"{notification_id} {json.loads(body)['data']['job_id']}\n")
        return Answer(error=None)

    notifier = Notifier(config.notify, queue, send=send, wake=wakeup.set)
    cluster = InlineCluster(executor, wake=wakeup.set)
    loop = Loop(config, queue, heartbeat, cluster, poller, wakeup, notifier=notifier)
    executor.backend.check()
    loop.register()
    poller.start()
    if stop_when_waiting:
        loop.lease.start()
        while not in_phase(loop, Phase.WAITING) or in_phase(loop, Phase.SUBMITTING):
            loop.tick()
            loop.wait()
    else:
        loop.run(drain=True)
    loop.stop()

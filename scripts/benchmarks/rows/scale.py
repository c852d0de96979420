"""How cost grows: sweeps of the remote list with the number of waiting jobs, and the queue with the number of drivers.
It is measured, and extrapolated to the point where it no longer works.

The model has one measured constant, the time for a page of the list (100 jobs). A sweep reads the pages one after the
other, so it takes the number of pages times that. Once this exceeds the poll interval, sweeps follow each other without
a pause, and a job's end is seen later.
"""

from __future__ import annotations

import random
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from multiprocessing import get_context

from benchmarks.environment import Environment
from benchmarks.measure import Bench, Row
from benchmarks.peers.rythmiq_worker import drain
from rythmiq_ray.backends.camber import CamberExecutionBackend

PAGE = 100
SWEEPS = 5
DRIVERS = (1, 2, 4)
MODEL = (1_000, 10_000, 100_000, 1_000_000)
ENDS = 2000
"""How many job ends the simulation draws for each size."""


def measure(bench: Bench) -> Row:
    row = Row("scale", "how cost grows with jobs that wait and with drivers")
    sizes = (200, 400) if bench.quick else (1_000, 2_000, 5_000, 10_000)
    with Environment(bench.root / "scale", "--instant", "7200") as environment:
        interval_s = environment.config().driver.poll_interval_s
        for waiting, seconds in _sweeps(environment, sizes).items():
            row.add(f"sweep of {waiting:,} waiting", "ms", seconds * 1e3)
        page_s = statistics.median(
            series.values[0] / 1e3 / (size / PAGE) for series, size in zip(row.series, sizes, strict=True)
        )
        row.add("a page of 100 jobs", "ms", page_s * 1e3)
        jobs = bench.size(30_000, 2_000)
        for drivers in DRIVERS:
            row.add(f"claim to finish, {drivers} drivers", "jobs/s", _queue_rate(environment, drivers, jobs))
    for waiting in MODEL:
        row.add(f"model: sweep of {waiting:,}", "s", page_s * waiting / PAGE)
        row.add(f"model: an end is seen after, p50, {waiting:,} waiting", "s", _seen_after(waiting, page_s, interval_s))
    row.add("model: waiting jobs at which sweeps fill the interval", "jobs", interval_s / page_s * PAGE)
    return row


def _sweeps(environment: Environment, sizes: tuple[int, ...]) -> dict[int, float]:
    """Seconds for one sweep of the list, by the number of waiting jobs."""
    found: dict[int, float] = {}
    with closing(CamberExecutionBackend(environment.config().camber)) as backend, ThreadPoolExecutor(50) as threads:
        body = {"command": "true", "engine_type": "BASE", "node_size": "XXSMALL", "num_nodes": 1, "with_gpu": False}

        def create(number: int) -> int:
            return backend.client.create({**body, "mount_dir": f"scale/{number}"}).remote_id

        ids: list[int] = []
        since = datetime.now(UTC)
        for size in sizes:
            for start in range(len(ids), size, 500):
                ids += threads.map(create, range(start, min(start + 500, size)))
            times = []
            for _ in range(SWEEPS):
                begun = time.perf_counter()
                seen = sum(1 for _ in backend.watch(ids, (), since))
                times.append(time.perf_counter() - begun)
                if seen != size:
                    raise RuntimeError(f"the sweep found {seen} of {size} jobs")
            found[size] = statistics.median(times)
    return found


def _queue_rate(environment: Environment, drivers: int, jobs: int) -> float:
    environment.clear()
    environment.put(jobs)
    with ProcessPoolExecutor(drivers, mp_context=get_context("spawn")) as pool:
        list(pool.map(abs, range(drivers)))
        begun = time.perf_counter()
        done = sum(pool.map(drain, [environment.postgres.url] * drivers))
        seconds = time.perf_counter() - begun
    if done != jobs:
        raise RuntimeError(f"{done} of {jobs} jobs were finished")
    return jobs / seconds


def _seen_after(waiting: int, page_s: float, interval_s: float) -> float:
    """Simulates sweeps over a list in which jobs end at random: the median time until a sweep reads the ended job."""
    chance = random.Random(waiting)
    sweep_s = page_s * waiting / PAGE
    period_s = max(interval_s, sweep_s)
    delays = []
    for _ in range(ENDS):
        place_s = chance.random() * sweep_s
        ended_s = chance.random() * period_s
        read_s = place_s if place_s >= ended_s else place_s + period_s
        delays.append(read_s - ended_s)
    return statistics.median(delays)

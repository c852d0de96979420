"""P2 and P8: very many jobs wait at once: memory, calls, and whether the poll interval is kept."""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import pairwise

import psutil

from benchmarks.environment import Environment, kill
from benchmarks.measure import Bench, Goal, Row, cpu_s, memory_mb, wait_for
from benchmarks.rows.start import bare_ray

HOURS = "7200"
WAITING = "SELECT count(*) FROM rythmiq.jobs WHERE phase = 'waiting'"
PEER_TASKS = 24
"""The tasks of the plain Ray script, in which each waiting job has a worker process; a small machine can run these."""


def measure(bench: Bench) -> Row:
    row = Row("P2", "jobs that wait at once")
    waiting = bench.size(10_000, 600)
    watched_s = bench.size(30, 5)
    interval_s = bench.size(2, 1)
    for run in range(bench.repeat):
        with Environment(bench.root / f"waiting-{run}", "--instant", HOURS) as environment:
            with bare_ray(environment) as bare:
                row.add("idle Ray", "MB", memory_mb([bare.pid]))
            overrides = [f"camber.max_in_flight={waiting}", f"driver.poll_interval_s={interval_s}"]
            with environment.driver(*overrides) as driver:
                row.add("idle driver and its Ray", "MB", memory_mb([driver.pid]))
                begun = time.perf_counter()
                environment.put(waiting)
                wait_for(lambda: int(environment.one(WAITING)) == waiting, "all wait", every_s=0.5)
                row.add("submitted", "jobs/s", waiting / (time.perf_counter() - begun))
                time.sleep(interval_s)
                environment.reset_calls()
                cpu, begun = cpu_s(driver.pid), time.monotonic()
                time.sleep(watched_s)
                seconds, cpu = time.monotonic() - begun, cpu_s(driver.pid) - cpu
                times = environment.call_times("list")
                calls = environment.calls()
                row.add(f"driver and Ray with {waiting:,} waiting", "MB", memory_mb([driver.pid]))
            starts = _sweeps(times, pause_s=interval_s / 2)
            kept_s = (starts[-1] - starts[0]) / (len(starts) - 1)
            lists = sum(at < starts[-1] for at in times if at >= starts[0]) / (len(starts) - 1)
            others = (sum(calls.values()) - calls["list"]) * kept_s / seconds
            row.add("list calls per 100 jobs and interval", "calls", lists / (waiting / 100))
            row.add("all calls per job and interval", "calls", (lists + others) / waiting)
            row.add("interval, as kept", "s", kept_s)
            row.add("CPU of driver and Ray", "cores", cpu / seconds)
            if not bench.quick:
                script_mb = _script(environment, row["idle Ray"][-1], PEER_TASKS)
                row.add("plain Ray script, per waiting job", "MB", script_mb)
                fit = psutil.virtual_memory().total / 1e6 / script_mb
                row.add("plain Ray script, jobs until memory is full", "jobs", fit)
            bench.say(", ".join(f"{series.name} {series.values[-1]:.3g} {series.unit}" for series in row.series))
    full = f"driver and Ray with {waiting:,} waiting"
    ratios = [ours / idle for ours, idle in zip(row[full], row["idle Ray"], strict=True)]
    row.goals = [
        Goal("memory of driver and Ray over that of an idle Ray", ratios, 1.5, at_most=True),
        Goal("list calls per 100 jobs and interval", row["list calls per 100 jobs and interval"], 1.05, at_most=True),
        Goal("P8: calls per job and interval", row["all calls per job and interval"], 0.011, at_most=True),
        Goal(f"interval as kept, s, of {interval_s} s", row["interval, as kept"], 1.1 * interval_s, at_most=True),
    ]
    if not bench.quick:
        row.notes.append(
            f"the plain Ray script was measured with {PEER_TASKS} waiting jobs;"
            " what fills the memory is reckoned from it"
        )
    return row


def _sweeps(times: list[float], *, pause_s: float) -> list[float]:
    """When sweeps began: the calls that come after a pause, because the pages of one sweep follow without a pause."""
    starts = [at for before, at in pairwise(times) if at - before > pause_s]
    if len(starts) < 2:
        raise RuntimeError(f"{len(starts)} sweeps began in the time watched; two at least were expected")
    return starts


def _script(environment: Environment, idle_mb: float, tasks: int) -> float:
    """Memory in MB that the plain Ray script takes for each waiting job, in addition to an idle Ray."""
    before = len(environment.journal("create"))
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "benchmarks.peers.ray_script", "--jobs", str(tasks), "--warm", "0"),
            *("--concurrency", str(tasks)),
        ],
        env=environment.environ(),
        cwd=environment.root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: len(environment.journal("create")) - before >= tasks, "the script's jobs wait", timeout_s=120)
        return (memory_mb([process.pid]) - idle_mb) / tasks
    finally:
        kill(process)

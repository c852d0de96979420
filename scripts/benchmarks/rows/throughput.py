"""P1 and P8: empty jobs, from enqueue to SUCCEEDED with manifest, beside what users would pick instead."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from benchmarks.measure import Bench, Goal, Row
from benchmarks.world import World
from rythmiq_ray.assembly import ExecutorFactory
from rythmiq_ray.model import Collected, Job, JobState, Order, Phase, RemoteStatus, Step, Submitted
from rythmiq_ray.queue import Ending, Progress, Queue
from rythmiq_ray.secret import Secret

PEERS = {
    "plain Ray script": ("ray_script", 2),
    "procrastinate worker": ("procrastinate_worker", 20),
    "pgqueuer worker": ("pgqueuer_worker", 20),
}
"""Module and concurrency; of those tried, what measured best."""
SLOW = ("plain Ray script", "procrastinate worker")
"""They are given half of the jobs, so that they end before the reader's patience."""
BATCH = 100
CALLS_GOAL = 5.2
PEER_LIMIT_S = 300


def measure(bench: Bench) -> Row:
    row = Row("P1", "throughput of empty jobs, enqueue to SUCCEEDED with manifest")
    jobs = bench.size(6000, 1000)
    for run in range(bench.repeat):
        with World(bench.root / f"throughput-{run}", "--instant") as world:
            _ours(world, row, jobs)
            bench.say(f"rythmiq-ray {row['rythmiq-ray'][-1]:.0f} jobs/s")
            parts: dict[str, float] = {}
            for name, (module, concurrency) in PEERS.items():
                count = jobs // 2 if name in SLOW else jobs
                seconds = run_peer(world, module, jobs=count, concurrency=concurrency)
                row.add(name, "jobs/s", count / seconds["work"])
                bench.say(f"{name} {row[name][-1]:.0f} jobs/s")
                if "tasks_per_job" in seconds:
                    parts["Ray"] = seconds["tasks_per_job"]
            parts |= _parts(world, bench.size(300, 100))
            for name, cost_s in parts.items():
                row.add(f"alone: {name}", "ms/job", cost_s * 1e3)
            row.add("sum of the parts alone", "jobs/s", 1 / sum(parts.values()))
    row.compare("rythmiq-ray", "sum of the parts alone", 0.6)
    for name in PEERS:
        row.compare("rythmiq-ray", name, 2.0)
    row.notes.append(f"{' and '.join(SLOW)}: {jobs // 2:,} jobs, the others {jobs:,}")
    row.goals.append(Goal("P8: calls of Camber per job", row["calls per job"], CALLS_GOAL, at_most=True))
    return row


def _ours(world: World, row: Row, jobs: int) -> None:
    with world.driver():
        world.put(60)
        world.wait_finished()
        world.reset_calls()
        begun = time.perf_counter()
        world.put(jobs)
        world.wait_finished()
        row.add("rythmiq-ray, to SUCCEEDED", "jobs/s", jobs / (time.perf_counter() - begun))
        # The peers remove a job's path before they count it as done, so the same is waited for here.
        world.wait_cleaned()
        row.add("rythmiq-ray", "jobs/s", jobs / (time.perf_counter() - begun))
    succeeded = world.one("SELECT count(*) FROM rythmiq.jobs WHERE state = 'SUCCEEDED' AND artifact_uri IS NOT NULL")
    if succeeded != jobs + 60:
        raise RuntimeError(f"{succeeded} of {jobs + 60} jobs succeeded")
    calls = world.calls()
    row.add("calls per job", "calls", sum(calls.values()) / jobs)


def run_peer(world: World, module: str, *, jobs: int, concurrency: int, empty: bool = False) -> dict[str, float]:
    """Runs a peer as a process of its own; seconds, by what they went into. All of its jobs must have been done."""
    removed = len(world.journal("remove"))
    command = [sys.executable, "-m", f"benchmarks.peers.{module}"]
    arguments = ["--jobs", str(jobs), "--concurrency", str(concurrency), *(["--empty"] if empty else [])]
    done = subprocess.run(
        [*command, *arguments],
        env=world.environ(),
        cwd=world.root,
        capture_output=True,
        text=True,
        timeout=PEER_LIMIT_S,
    )
    if done.returncode:
        raise RuntimeError(f"{module} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    worked = len(world.journal("remove")) - removed
    if not empty and worked < jobs:
        raise RuntimeError(f"{module} did the remote work of {worked} jobs instead of {jobs}:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _parts(world: World, jobs: int) -> dict[str, float]:
    """Seconds a job in queue and executor, one after the other, with nothing else to do: the queue in batches of 100,
    the executor's calls and files from one thread."""
    world.clear()
    executor = replace(ExecutorFactory.of(world.config()), threads=1).build()
    queue = Queue(Secret(world.postgres.url), lease_s=600)
    queue.register()
    world.put(jobs)
    spent = {"queue": 0.0, "calls and files": 0.0}
    while batch := _timed(spent, "queue", lambda: queue.claim(BATCH)):
        collected = [_timed(spent, "calls and files", lambda job=job: _carry_out(executor.run, job)) for job in batch]
        steps = [
            Progress(
                job_id=job.job_id,
                attempt=job.attempt,
                phase=Phase.WAITING,
                remote_id=1,
                remote_status=RemoteStatus.PENDING,
            )
            for job in batch
        ]
        endings = [
            Ending(
                job_id=job.job_id,
                attempt=job.attempt,
                state=JobState.SUCCEEDED,
                exit_code=0,
                artifact_uri=result.manifest_uri,
                artifacts=result.artifacts,
            )
            for job, result in zip(batch, collected, strict=True)
        ]
        _timed(spent, "queue", lambda steps=steps: queue.advance(steps))
        _timed(spent, "queue", lambda endings=endings: queue.finish(endings))
    queue.close()
    return {name: seconds / jobs for name, seconds in spent.items()}


def _timed(spent: dict[str, float], name: str, call: Any) -> Any:
    begun = time.perf_counter()
    try:
        return call()
    finally:
        spent[name] += time.perf_counter() - begun


def _carry_out(run: Any, claimed: Job) -> Collected:
    """Submit, collect and clean of one job."""
    job = replace(claimed, remote_path=f"rythmiq/{claimed.job_id}/{claimed.attempt}-{uuid4().hex[:8]}")
    submitted = run(Order(step=Step.SUBMIT, job=job))
    assert isinstance(submitted, Submitted), submitted
    now = datetime.now(UTC)
    remote = replace(submitted.remote, status=RemoteStatus.COMPLETED, started_at=now, finished_at=now)
    result = run(Order(step=Step.COLLECT, job=job, remote=remote))
    while not isinstance(result, Collected):
        result = run(Order(step=Step.COLLECT, job=job, remote=remote))
    run(Order(step=Step.CLEAN, job=job))
    return result

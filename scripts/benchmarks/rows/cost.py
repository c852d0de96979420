"""P1c and P8: the processor time of an empty job, by process, with a service that answers at once."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psutil

from benchmarks.environment import Environment
from benchmarks.measure import Bench, Goal, Row, cpu_s
from benchmarks.peer import run_peer
from rythmiq_ray.assembly import ExecutorFactory
from rythmiq_ray.model import Collected, Job, JobState, Phase, RemoteStatus, Step, StepRequest, Submitted
from rythmiq_ray.queue import Ending, Progress, Queue
from rythmiq_ray.secret import Secret

PEERS = {
    "plain Ray script": ("ray_script", 2),
    "procrastinate worker": ("procrastinate_worker", 20),
    "pgqueuer worker": ("pgqueuer_worker", 20),
}
"""Module and concurrency by peer; the concurrency is the fastest of those tried."""
SLOW = ("plain Ray script", "procrastinate worker")
"""These get half of the jobs, so that the benchmark does not take too long."""
BATCH = 100
CALLS_GOAL = 5.2
CPU_GOAL_MS = 4.0


def measure(bench: Bench) -> Row:
    row = Row("P1c", "what an empty job costs, by process, with a service that answers in no time")
    jobs = bench.size(6000, 1000)
    for run in range(bench.repeat):
        with Environment(bench.root / f"cost-{run}", "--instant") as environment:
            _ours(environment, row, jobs)
            bench.say(f"rythmiq-ray {row['rythmiq-ray'][-1]:.2f} ms of processor time a job")
            for name, (module, concurrency) in PEERS.items():
                count = jobs // 2 if name in SLOW else jobs
                before = environment.postgres_cpu_s()
                figures = run_peer(environment, module, jobs=count, concurrency=concurrency)
                cpu = figures["cpu"] + environment.postgres_cpu_s() - before
                row.add(name, "ms/job", cpu * 1e3 / count)
                row.add(f"{name}, at", "jobs/s", count / figures["work"])
                bench.say(f"{name} {row[name][-1]:.2f} ms of processor time a job")
            for name, cost_s in _parts(environment, bench.size(300, 100)).items():
                row.add(f"alone: {name}", "ms/job", cost_s * 1e3)
    row.goals.append(Goal("processor time of a job, ms", row["rythmiq-ray"], CPU_GOAL_MS, at_most=True))
    row.goals.append(Goal("P8: calls of Camber per job", row["calls per job"], CALLS_GOAL, at_most=True))
    row.notes.append("processor time is of all processes but the emulator's, Postgres among them")
    row.notes.append(f"{' and '.join(SLOW)}: {jobs // 2:,} jobs, the others {jobs:,}")
    return row


def _ours(environment: Environment, row: Row, jobs: int) -> None:
    with environment.driver() as driver:
        environment.put(60)
        environment.wait_finished()
        environment.reset_calls()
        before = _spent(environment, driver)
        begun = time.perf_counter()
        environment.put(jobs)
        environment.wait_finished()
        # The peers remove a job's path before they count it as done, so this waits for the same.
        environment.wait_cleaned()
        row.add("rythmiq-ray, at", "jobs/s", jobs / (time.perf_counter() - begun))
        spent = {name: seconds - before[name] for name, seconds in _spent(environment, driver).items()}
    succeeded = environment.one(
        "SELECT count(*) FROM rythmiq.jobs WHERE state = 'SUCCEEDED' AND artifact_uri IS NOT NULL"
    )
    if succeeded != jobs + 60:
        raise RuntimeError(f"{succeeded} of {jobs + 60} jobs succeeded")
    for name, seconds in spent.items():
        row.add(f"of it: {name}" if name != "the emulator" else name, "ms/job", seconds * 1e3 / jobs)
    row.add("rythmiq-ray", "ms/job", sum(s for name, s in spent.items() if name != "the emulator") * 1e3 / jobs)
    calls = environment.calls()
    row.add("calls per job", "calls", sum(calls.values()) / jobs)


def _spent(environment: Environment, driver: subprocess.Popen[bytes]) -> dict[str, float]:
    """The processor time so far in seconds, by process."""
    own = psutil.Process(driver.pid).cpu_times()
    main = own.user + own.system
    return {
        "driver": main,
        "Ray and its tasks": cpu_s(driver.pid) - main,
        "Postgres": environment.postgres_cpu_s(),
        "the emulator": cpu_s(environment.emulator.pid),
    }


def _parts(environment: Environment, jobs: int) -> dict[str, float]:
    """Seconds for each job in the queue and in the executor, measured one after the other.

    The queue works in batches of 100, the executor in one thread.
    """
    environment.clear()
    executor = replace(ExecutorFactory.of(environment.config()), threads=1).build()
    queue = Queue(Secret(environment.postgres.url), lease_s=600)
    queue.register()
    environment.put(jobs)
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
    """Runs submit, collect and clean for one job."""
    job = replace(claimed, remote_path=f"rythmiq/{claimed.job_id}/{claimed.attempt}-{uuid4().hex[:8]}")
    submitted = run(StepRequest(step=Step.SUBMIT, job=job))
    assert isinstance(submitted, Submitted), submitted
    now = datetime.now(UTC)
    remote = replace(submitted.remote, status=RemoteStatus.COMPLETED, started_at=now, finished_at=now)
    result = run(StepRequest(step=Step.COLLECT, job=job, remote=remote))
    while not isinstance(result, Collected):
        result = run(StepRequest(step=Step.COLLECT, job=job, remote=remote))
    run(StepRequest(step=Step.CLEAN, job=job))
    return result

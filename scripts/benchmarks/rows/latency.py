"""P3 and P4: the time from the commit of an INSERT to the create at Camber, and from a remote job's end to its row."""

from __future__ import annotations

import time
from datetime import datetime
from uuid import UUID

from benchmarks.environment import Environment
from benchmarks.measure import Bench, Goal, Row, percentile, wait_for
from rythmiq_ray import JobSpec, enqueue

RUN_S = "2-4"
"""How long remote jobs run: their ends are spread over the poll interval. Shorter ones would cause more sweeps."""

SUBMITTED = "SELECT count(*) FROM rythmiq.jobs WHERE remote_id IS NOT NULL"


def measure(bench: Bench) -> Row:
    row = Row("P3", "pick-up latency, and P4: finish latency")
    jobs = bench.size(500, 100)
    for run in range(bench.repeat):
        with Environment(bench.root / f"latency-{run}", "--instant", RUN_S) as environment, environment.driver():
            interval_s = environment.config().driver.poll_interval_s
            environment.put(20)
            wait_for(
                lambda environment=environment: int(environment.one(SUBMITTED)) == 20,
                "Ray's worker processes are there",
            )
            latencies = _pick_up(environment, jobs)
            row.add("pick-up p50", "ms", percentile(latencies, 50) * 1e3)
            row.add("pick-up p99", "ms", percentile(latencies, 99) * 1e3)
            environment.wait_finished()
            latencies = _finish(environment)
            row.add("finish p50", "s", percentile(latencies, 50))
            row.add("finish p99", "s", percentile(latencies, 99))
            bench.say(", ".join(f"{series.name} {series.values[-1]:.3g} {series.unit}" for series in row.series))
    row.goals = [
        Goal("P3: pick-up p50, ms", row["pick-up p50"], 30, at_most=True),
        Goal("P3: pick-up p99, ms", row["pick-up p99"], 150, at_most=True),
        Goal(f"P4: finish p50, s, at an interval of {interval_s:g} s", row["finish p50"], 0.6 * interval_s + 0.3, True),
    ]
    return row


def _pick_up(environment: Environment, count: int) -> list[float]:
    """Seconds from each commit to the arrival of its create, one job after the other, with an otherwise idle driver."""
    committed: dict[UUID, float] = {}
    for _ in range(count):
        before = environment.calls().get("create", 0)
        job_id = enqueue(environment.connection, JobSpec(command="true"))
        committed[job_id] = time.time()
        wait_for(
            lambda before=before: environment.calls().get("create", 0) > before, "the create arrives", every_s=0.005
        )
    arrived = {UUID(record["mount_dir"].split("/")[1]): record["time"] for record in environment.journal("create")}
    return [arrived[job_id] - at for job_id, at in committed.items()]


def _finish(environment: Environment) -> list[float]:
    """Seconds from the end of each remote job to the time in its row."""
    ended = {UUID(record["mount_dir"].split("/")[1]): record["time"] for record in environment.journal("end")}
    rows: list[tuple[str, datetime]] = environment.rows("SELECT job_id::text, finished_at FROM rythmiq.jobs")
    return [finished.timestamp() - ended[UUID(job_id)] for job_id, finished in rows]

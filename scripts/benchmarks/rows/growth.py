"""A month of 100,000 jobs a day with retention: how tables, dead rows and the rate develop.

Time is a parameter of the queue's statements, so a day takes as long as its work.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from benchmarks.environment import Environment
from benchmarks.measure import Bench, Goal, Row
from rythmiq_ray import JobSpec, NewJob, enqueue_many
from rythmiq_ray.config import RetentionConfig
from rythmiq_ray.driver.retention import Retention
from rythmiq_ray.model import Artifact, JobState
from rythmiq_ray.queue import Ending, Queue
from rythmiq_ray.secret import Secret

DAYS = 30
KEEP_DAYS = 7
BATCH = 100
USERS = 50
DAY_S = 86_400.0


def measure(bench: Bench) -> Row:
    row = Row("growth", "a month of jobs with retention.succeeded of 7 days: tables, dead rows, and the rate")
    jobs = bench.size(100_000, 2_000)
    sizes: list[float] = []
    rates: list[float] = []
    with Environment(bench.root / "growth", "--instant") as environment:
        queue = Queue(Secret(environment.postgres.url), lease_s=100 * DAY_S)
        start = datetime.now(UTC) - timedelta(days=DAYS)
        queue.now = start
        queue.register()
        config = RetentionConfig(succeeded_s=KEEP_DAYS * DAY_S, failed_s=KEEP_DAYS * DAY_S, artifacts_s=None)
        retention = Retention(config, queue, delete=lambda _uri: None, wake=lambda: None)
        for day in range(DAYS):
            queue.now = start + timedelta(days=day)
            begun = time.perf_counter()
            _day(environment, queue, jobs)
            rates.append(jobs / (time.perf_counter() - begun))
            begun = time.perf_counter()
            at = 0.0
            while retention.due_at is not None and retention.due_at <= at + day * DAY_S:
                retention.tick(at + day * DAY_S)
            row.add("deleting what is past its retention", "s a day", time.perf_counter() - begun)
            with environment.connection.cursor() as cursor:
                # Autovacuum does this many times in a real day; a simulated day takes only seconds.
                cursor.execute("VACUUM rythmiq.jobs, rythmiq.attempts, rythmiq.artifacts")
            sizes.append(_size_mb(environment))
            if day % 5 == 4:
                bench.say(
                    f"day {day + 1}: {sizes[-1]:.0f} MB, {rates[-1]:.0f} jobs/s, {_dead(environment):,} dead rows"
                )
        row.add(f"jobs, attempts and artifacts after {KEEP_DAYS} days", "MB", sizes[KEEP_DAYS])
        row.add(f"the same after {DAYS} days", "MB", sizes[-1])
        row.add("costs after the month", "rows", environment.one("SELECT count(*) FROM rythmiq.costs"))
        row.add("jobs in the table after the month", "rows", environment.one("SELECT count(*) FROM rythmiq.jobs"))
        row.add("put in, claimed and ended, first week", "jobs/s", sorted(rates[:7])[3])
        row.add("the same, last week", "jobs/s", sorted(rates[-7:])[3])
        queue.close()
    growth = sizes[-1] / sizes[KEEP_DAYS]
    row.goals.append(Goal("size after the month over that after a week", [growth], 1.5, at_most=True))
    row.compare("the same, last week", "put in, claimed and ended, first week", 0.8)
    return row


def _day(environment: Environment, queue: Queue, jobs: int) -> None:
    spec = JobSpec(command="true")
    enqueue_many(environment.connection, [NewJob(spec=spec, user_id=f"user-{n % USERS}") for n in range(jobs)])
    # The database's clock sets their times.
    now, queue.now = queue.now, None
    while claimed := queue.claim(BATCH):
        queue.now = now
        queue.finish(
            Ending(
                job_id=job.job_id,
                attempt=job.attempt,
                state=JobState.SUCCEEDED,
                cost_credits=0.01,
                artifacts=(Artifact(name="log.txt", uri="s3://b/x", bytes=1, sha256="0", content_type="text/plain"),),
            )
            for job in claimed
        )
        queue.cleaned((job.job_id, job.attempt) for job in claimed)
        queue.now = None
    queue.now = now


def _size_mb(environment: Environment) -> float:
    found = environment.one(
        "SELECT sum(pg_total_relation_size(('rythmiq.' || t)::regclass))"
        " FROM unnest(ARRAY['jobs', 'attempts', 'artifacts']) AS t"
    )
    return float(found) / 1e6


def _dead(environment: Environment) -> int:
    return int(
        environment.one("SELECT coalesce(sum(n_dead_tup), 0) FROM pg_stat_user_tables WHERE schemaname = 'rythmiq'")
    )

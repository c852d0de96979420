"""A plain Ray script: reads pending rows from Postgres, runs a blocking task for each, writes outcomes as they come in.

Beside that it measures what Ray's tasks alone cost the runner for each job, as a Ray is up here.
"""

from __future__ import annotations

import os
import time

import psycopg2
import psycopg2.extras
import ray

from benchmarks.peers import arguments, ray_tasks
from benchmarks.peers.work import blocking_client, run_blocking

TASK_JOBS = 2000


@ray.remote(num_cpus=1, max_retries=3)
def run(job: int) -> tuple[int, int]:
    return job, run_blocking(*blocking_client(), f"ray-script/{job}-{os.getpid()}-{time.time_ns()}")


def run_pending(connection: psycopg2.extensions.connection) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT id FROM script_jobs WHERE state = 'QUEUED' ORDER BY id")
        pending = [run.remote(row[0]) for row in cursor.fetchall()]
        while pending:
            ready, pending = ray.wait(pending, num_returns=min(len(pending), 100), timeout=0.1)
            if ready:
                psycopg2.extras.execute_values(
                    cursor,
                    "UPDATE script_jobs AS j SET state = 'SUCCEEDED', remote_id = v.remote_id FROM (VALUES %s)"
                    " AS v (id, remote_id) WHERE j.id = v.id",
                    ray.get(ready),
                )


def put(connection: psycopg2.extensions.connection, count: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO script_jobs (state) SELECT 'QUEUED' FROM generate_series(1, %s)", (count,))


def main() -> None:
    options = arguments.parse(__doc__)
    ray.init(num_cpus=options.concurrency, include_dashboard=False, log_to_driver=False)
    connection = psycopg2.connect(os.environ["DATABASE_URL"])
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE IF NOT EXISTS script_jobs (id bigserial PRIMARY KEY, state text NOT NULL, remote_id bigint)"
        )
    put(connection, options.warm)
    run_pending(connection)
    begun = time.perf_counter()
    put(connection, options.jobs)
    run_pending(connection)
    work = time.perf_counter() - begun
    ray_tasks.run(TASK_JOBS)
    arguments.report(work=work, tasks_per_job=ray_tasks.run(TASK_JOBS) / TASK_JOBS)


if __name__ == "__main__":
    main()

"""Only the queue of rythmiq-ray, measured like its peers: jobs are claimed and finished in batches, without work.

Two threads act as two drivers, each with its own connection, so that one makes its rows while Postgres works for the
other. pgqueuer's worker also has two connections, procrastinate's has a pool.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psycopg2

from benchmarks.peers import arguments
from rythmiq_ray import JobSpec, NewJob, enqueue_many
from rythmiq_ray.model import JobState
from rythmiq_ray.queue import Ending, Queue
from rythmiq_ray.secret import Secret

BATCH = 100
SIDES = 2


def main() -> None:
    options = arguments.parse(__doc__ or "")
    url = os.environ["DATABASE_URL"]
    connection = psycopg2.connect(url)
    connection.autocommit = True

    def put(count: int) -> float:
        commands = [f"true rythmiq/{uuid4()}" for _ in range(count)]
        begun = time.perf_counter()
        enqueue_many(connection, [NewJob(spec=JobSpec(command=command)) for command in commands])
        return time.perf_counter() - begun

    def run() -> float:
        begun = time.perf_counter()
        with ThreadPoolExecutor(SIDES) as threads:
            list(threads.map(drain, [url] * SIDES))
        return time.perf_counter() - begun

    put(options.warm)
    run()
    arguments.report(enqueue=put(options.jobs), work=run())
    connection.close()


def drain(url: str) -> int:
    """Claims and finishes all queued jobs in batches, without remote work or artifacts; returns how many."""
    queue = Queue(Secret(url), lease_s=600)
    queue.register()
    done = 0
    while batch := queue.claim(BATCH):
        endings = [
            Ending(job_id=job.job_id, attempt=job.attempt, state=JobState.SUCCEEDED, exit_code=0) for job in batch
        ]
        done += len(queue.finish(endings).ours)
    queue.close()
    return done


if __name__ == "__main__":
    main()

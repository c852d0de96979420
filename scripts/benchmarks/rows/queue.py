"""P10: the queue alone, claim to finish of no-op jobs and bulk enqueue, beside pgqueuer and procrastinate."""

from __future__ import annotations

import time

from benchmarks.measure import Bench, Row
from benchmarks.rows.throughput import run_peer
from benchmarks.world import World
from rythmiq_ray.model import JobState
from rythmiq_ray.queue import Ending, Queue
from rythmiq_ray.secret import Secret

BATCH = 100
PEERS = {"pgqueuer": "pgqueuer_worker", "procrastinate": "procrastinate_worker"}
SLOW = "procrastinate"
"""It is given a tenth of the jobs, so that it ends before the reader's patience."""


def measure(bench: Bench) -> Row:
    row = Row("P10", "the queue alone: claim to finish of no-op jobs, and bulk enqueue")
    jobs = bench.size(100_000, 3_000)
    with World(bench.root / "queue", "--instant") as world:
        for _ in range(bench.repeat):
            world.clear()
            begun = time.perf_counter()
            world.put(jobs)
            row.add("rythmiq-ray enqueue", "jobs/s", jobs / (time.perf_counter() - begun))
            begun = time.perf_counter()
            row.add("rythmiq-ray claim to finish", "jobs/s", drain(world.postgres.url) / (time.perf_counter() - begun))
            for name, module in PEERS.items():
                count = jobs // 10 if name == SLOW else jobs
                seconds = run_peer(world, module, jobs=count, concurrency=20, empty=True)
                row.add(f"{name} enqueue", "jobs/s", count / seconds["enqueue"])
                row.add(f"{name} claim to finish", "jobs/s", count / seconds["work"])
            bench.say(", ".join(f"{series.name} {series.values[-1]:.0f}/s" for series in row.series))
    for name in PEERS:
        for what in ("enqueue", "claim to finish"):
            row.compare(f"rythmiq-ray {what}", f"{name} {what}", 1.5)
    return row


def drain(url: str) -> int:
    """Claims and finishes all that is queued, in batches, without remote work and without artifacts; how many."""
    queue = Queue(Secret(url), lease_s=600)
    queue.register()
    done = 0
    while batch := queue.claim(BATCH):
        endings = [
            Ending(job_id=job.job_id, attempt=job.attempt, state=JobState.SUCCEEDED, exit_code=0) for job in batch
        ]
        done += len(queue.finish(endings))
    queue.close()
    return done

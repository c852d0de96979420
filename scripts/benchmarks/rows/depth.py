"""P7: the rate of claims with few and with very many queued rows, and after very many jobs have ended."""

from __future__ import annotations

import statistics
import time

from benchmarks.environment import Environment
from benchmarks.measure import Bench, Row
from rythmiq_ray.queue import Queue
from rythmiq_ray.secret import Secret

BATCH = 100
CLAIMS = 10
ROUNDS = 7
"""The number of rounds; the median counts, because a round takes only about 50 ms and varies."""


def measure(bench: Bench) -> Row:
    row = Row("P7", "claim rate by depth of the queue")
    deep = bench.size(1_000_000, 50_000)
    with Environment(bench.root / "depth", "--instant") as environment:
        for _ in range(bench.repeat):
            environment.clear()
            row.add("1,000 queued", "jobs/s", _claims(environment))
            environment.put(deep)
            row.add(f"{deep:,} queued", "jobs/s", _claims(environment))
            with environment.connection.cursor() as cursor:
                cursor.execute(
                    "UPDATE rythmiq.jobs SET state = 'SUCCEEDED', phase = NULL, driver_id = NULL, finished_at = now()"
                )
                row.add(f"1,000 queued, {deep:,} ended this moment", "jobs/s", _claims(environment))
                # Autovacuum would do this within a minute.
                cursor.execute("VACUUM rythmiq.jobs")
            row.add(f"1,000 queued after {deep:,} ended", "jobs/s", _claims(environment))
            bench.say(", ".join(f"{series.name}: {series.values[-1]:.0f}/s" for series in row.series))
    for name in (f"{deep:,} queued", f"1,000 queued after {deep:,} ended"):
        row.compare(name, "1,000 queued", 0.8)
    return row


def _claims(environment: Environment) -> float:
    """The rate of claims in jobs per second; as many jobs are enqueued as claimed, so that the depth stays the same."""
    queue = Queue(Secret(environment.postgres.url), lease_s=600)
    queue.register()
    rates = []
    for _ in range(ROUNDS):
        environment.put(CLAIMS * BATCH)
        begun = time.perf_counter()
        claimed = sum(len(queue.claim(BATCH)) for _ in range(CLAIMS))
        rates.append(claimed / (time.perf_counter() - begun))
    queue.close()
    return statistics.median(rates)

"""P7: the rate of claims at few and at very many queued rows, and after very many have ended."""

from __future__ import annotations

import time

from benchmarks.measure import Bench, Row
from benchmarks.world import World
from rythmiq_ray.queue import Queue
from rythmiq_ray.secret import Secret

BATCH = 100
CLAIMS = 10
"""So that the shallow queue holds what is claimed."""


def measure(bench: Bench) -> Row:
    row = Row("P7", "claim rate by depth of the queue")
    deep = bench.size(1_000_000, 50_000)
    with World(bench.root / "depth", "--instant") as world:
        for _ in range(bench.repeat):
            world.clear()
            world.put(CLAIMS * BATCH)
            shallow = _claims(world)
            row.add("1,000 queued", "jobs/s", shallow)
            world.put(deep)
            row.add(f"{deep:,} queued", "jobs/s", _claims(world))
            with world.connection.cursor() as cursor:
                # As time leaves it: rows that ended, and what autovacuum has not come to yet.
                cursor.execute(
                    "UPDATE rythmiq.jobs SET state = 'SUCCEEDED', phase = NULL, driver_id = NULL, finished_at = now()"
                )
            world.put(CLAIMS * BATCH)
            row.add(f"1,000 queued after {deep:,} ended", "jobs/s", _claims(world))
            bench.say(", ".join(f"{series.name}: {series.values[-1]:.0f}/s" for series in row.series))
    for name in (f"{deep:,} queued", f"1,000 queued after {deep:,} ended"):
        row.compare(name, "1,000 queued", 0.8)
    return row


def _claims(world: World) -> float:
    queue = Queue(Secret(world.postgres.url), lease_s=600)
    queue.register()
    begun = time.perf_counter()
    claimed = sum(len(queue.claim(BATCH)) for _ in range(CLAIMS))
    seconds = time.perf_counter() - begun
    queue.close()
    return claimed / seconds

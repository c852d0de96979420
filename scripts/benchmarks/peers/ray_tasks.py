"""Ray alone: the cost of tasks with 50 step requests each that do nothing; three steps for a job, as in the runner."""

from __future__ import annotations

import os
import time

import ray

ORDERS = 50
STEPS = 3


@ray.remote(num_cpus=1)
def carry(orders: list[bytes]) -> list[bytes]:
    return orders


def run(jobs: int) -> float:
    """Seconds that the tasks of this many jobs take."""
    begun = time.perf_counter()
    orders = [os.urandom(1000) for _ in range(ORDERS)]
    pending = [carry.remote(orders) for _ in range(jobs * STEPS // ORDERS)]
    while pending:
        _ready, pending = ray.wait(pending, num_returns=min(len(pending), 50))
    return time.perf_counter() - begun

"""P9: the time from the command to "Worker ready", compared with a bare ``ray.init()``."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.environment import Environment, kill
from benchmarks.measure import Bench, Goal, Row

BARE = "import ray; ray.init(include_dashboard=False); print('ready', flush=True); input()"
BEYOND_S = 1.0
STARTS = 3
"""How often a run starts the driver; the fastest start counts, because Ray itself sometimes takes a second longer."""


def measure(bench: Bench) -> Row:
    row = Row("P9", 'cold start, command to "Worker ready"')
    with Environment(bench.root / "start", "--instant") as environment:
        for _ in range(bench.repeat):
            starts = [(_bare(environment), _driver(environment)) for _ in range(bench.size(STARTS, 1))]
            for name, seconds in zip(("bare ray.init()", "driver"), map(min, zip(*starts, strict=True)), strict=True):
                row.add(name, "s", seconds)
            bench.say(", ".join(f"{series.name} {series.values[-1]:.2f} s" for series in row.series))
    beyond = [driver - bare for driver, bare in zip(row["driver"], row["bare ray.init()"], strict=True)]
    row.goals.append(Goal("driver beyond a bare ray.init(), seconds", beyond, BEYOND_S, at_most=True))
    if not bench.quick:
        row.notes.append(f"the fastest of {STARTS} starts in each run")
    return row


@contextmanager
def bare_ray(environment: Environment) -> Iterator[subprocess.Popen[str]]:
    """A process that has done ``ray.init()`` and nothing else."""
    process = subprocess.Popen(
        [sys.executable, "-c", BARE],
        env=environment.environ(),
        cwd=environment.root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise RuntimeError("ray.init() failed")
    try:
        yield process
    finally:
        kill(process)


def _bare(environment: Environment) -> float:
    begun = time.perf_counter()
    with bare_ray(environment):
        return time.perf_counter() - begun


def _driver(environment: Environment) -> float:
    begun = time.perf_counter()
    with environment.driver():
        return time.perf_counter() - begun

"""P9: from the command to "Worker ready", beside a bare ``ray.init()``."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.measure import Bench, Goal, Row, wait_for
from benchmarks.world import World

BARE = "import ray; ray.init(include_dashboard=False); print('ready', flush=True); ray.shutdown()"
BEYOND_S = 1.0


def measure(bench: Bench) -> Row:
    row = Row("P9", 'cold start, command to "Worker ready"')
    with World(bench.root / "start", "--instant") as world:
        for _ in range(bench.repeat):
            row.add("bare ray.init()", "s", _bare(world))
            begun = time.perf_counter()
            with world.driver():
                row.add("driver", "s", time.perf_counter() - begun)
            bench.say(", ".join(f"{series.name} {series.values[-1]:.2f} s" for series in row.series))
    beyond = [driver - bare for driver, bare in zip(row["driver"], row["bare ray.init()"], strict=True)]
    row.goals.append(Goal("driver beyond a bare ray.init(), seconds", beyond, BEYOND_S, at_most=True))
    return row


def _bare(world: World) -> float:
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", BARE],
        env=world.environ(),
        cwd=world.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise RuntimeError("ray.init() failed")
    seconds = time.perf_counter() - begun
    wait_for(lambda: process.poll() is not None, "Ray ends", timeout_s=60)
    return seconds

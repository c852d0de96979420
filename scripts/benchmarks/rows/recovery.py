"""P6: kills a driver with jobs in all phases, again and again; and measures the cost of a rolling restart."""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter
from contextlib import ExitStack, suppress
from threading import Thread

from chaos import ray_head

from benchmarks.environment import Environment
from benchmarks.measure import Bench, Goal, Row, wait_for

CREATE_TIMEOUT_S = 3
"""How long a killed driver's creates may still be in progress; only then are its attempts searched or repeated."""
SETTLE_S = 1
"""Short, because the emulator's list shows a job at once."""
KILL_AFTER_S = 2.0
DRIVERS = 2
UNFINISHED = "SELECT count(*) FROM rythmiq.jobs WHERE state IN ('QUEUED', 'RETRYING', 'RUNNING')"


def measure(bench: Bench) -> Row:
    row = Row("P6", "recovery from kill -9 of one of two drivers, and a rolling restart")
    kills = bench.kills or bench.size(100, 1)
    lease_s = bench.size(5, 3)
    unfinished = bench.size(1000, 200)
    # The run times are chosen so that at any moment some jobs are in each phase.
    with (
        Environment(bench.root / "recovery", "--instant", "1-3" if bench.quick else "2-20") as environment,
        ExitStack() as stack,
    ):
        environ = {"RAY_ADDRESS": stack.enter_context(ray_head(environment.root, environment.environ())), **NO_TOKEN}
        fleet = Fleet(environment, stack, environ, lease_s)
        total = 0
        for kill in range(kills):
            missing = unfinished - int(environment.one(UNFINISHED))
            environment.put(missing)
            total += missing
            time.sleep(KILL_AFTER_S)
            row.add("until all of its jobs have a driver", "s", fleet.kill_one(row, replace=kill + 1 < kills))
            if kill % 10 == 0:
                bench.say(f"kill {kill + 1}: {row['until all of its jobs have a driver'][-1]:.1f} s")
        environment.wait_finished()
        creates = Counter(record["mount_dir"] for record in environment.journal("create"))
        twice = sum(count > 1 for count in creates.values())
        good = int(environment.one("SELECT count(*) FROM rythmiq.jobs WHERE state = 'SUCCEEDED' AND attempt = 1"))
        row.add("kills", "kills", kills)
        row.add("jobs", "jobs", total)
        row.goals += [
            Goal(
                "until all of its jobs have a driver, s", row["until all of its jobs have a driver"], lease_s + 2, True
            ),
            Goal("jobs lost or tried again", [total - good], 0, True),
            Goal("attempts with two remote jobs", [twice], 0, True),
        ]
    if not bench.quick:
        _restart(bench, row, lease_s)
    row.notes.append(
        f"lease {lease_s} s, create time-out {CREATE_TIMEOUT_S} s, settling {SETTLE_S} s;"
        f" {DRIVERS} drivers that share one Ray; {unfinished} jobs unfinished at each kill"
    )
    return row


def _restart(bench: Bench, row: Row, lease_s: int) -> None:
    """Measures the cost of a rolling restart."""
    with Environment(bench.root / "rolling", "--instant", "0-0.5") as environment, ExitStack() as stack:
        environ = {"RAY_ADDRESS": stack.enter_context(ray_head(environment.root, environment.environ())), **NO_TOKEN}
        fleet = Fleet(environment, stack, environ, lease_s)
        jobs = 5000
        environment.put(60)  # starts Ray's worker processes before the measurement
        environment.wait_finished()
        for _ in range(bench.repeat):
            for name, restart in (("undisturbed", False), ("while each driver is restarted in turn", True)):
                row.add(f"throughput {name}", "jobs/s", jobs / _throughput(environment, fleet, jobs, restart=restart))
        last = environment.one("SELECT count(*) FROM rythmiq.jobs WHERE state <> 'SUCCEEDED' OR attempt <> 1")
        row.goals.append(Goal("rolling restart: jobs lost or tried again", [float(last)], 0, True))


NO_TOKEN = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
}
"""The environment of the Ray cluster on the loopback interface that both drivers share."""


class Fleet:
    """Drivers that are killed and restarted."""

    def __init__(self, environment: Environment, stack: ExitStack, environ: dict[str, str], lease_s: int) -> None:
        self._world = environment
        self._stack = stack
        self._environ = environ
        self._lease_s = lease_s
        self._drivers = [self._start(ready=False) for _ in range(DRIVERS)]
        for driver in self._drivers:
            environment.wait_ready(driver)

    def kill_one(self, row: Row, *, replace: bool) -> float:
        """Kills the oldest driver; returns the seconds until another has its jobs, and adds their phases to the row."""
        victim = self._drivers.pop(0)
        latest = "SELECT driver_id FROM rythmiq.drivers WHERE pid = %s ORDER BY started_at DESC LIMIT 1"
        driver_id = self._world.one(latest, victim.pid)
        victim.kill()
        victim.wait()
        killed = time.monotonic()
        held = dict(
            self._world.rows(
                "SELECT phase::text, count(*) FROM rythmiq.jobs WHERE driver_id = %s AND state = 'RUNNING' GROUP BY 1",
                driver_id,
            )
        )
        if not held:
            raise RuntimeError("the driver that was killed had no jobs, so there is nothing to measure")
        for phase in ("submitting", "waiting", "collecting"):
            row.add(f"its jobs in {phase}", "jobs", held.get(phase, 0))
        orphans = "SELECT count(*) FROM rythmiq.jobs WHERE driver_id = %s AND state = 'RUNNING'"
        wait_for(lambda: self._world.one(orphans, driver_id) == 0, "its jobs are taken over", timeout_s=120)
        seconds = time.monotonic() - killed
        if replace:
            self._drivers.append(self._start())
        return seconds

    def restart_each(self) -> None:
        for _ in range(DRIVERS):
            driver = self._drivers.pop(0)
            driver.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                driver.wait(60)
            self._drivers.append(self._start())

    def _start(self, *, ready: bool = True) -> subprocess.Popen[bytes]:
        overrides = (
            f"driver.lease_s={self._lease_s}",
            f"camber.create_timeout_s={CREATE_TIMEOUT_S}",
            f"camber.settle_s={SETTLE_S}",
        )
        return self._stack.enter_context(self._world.driver(*overrides, environ=self._environ, ready=ready))


def _throughput(environment: Environment, fleet: Fleet, jobs: int, *, restart: bool) -> float:
    """Seconds for this many jobs."""
    begun = time.monotonic()
    environment.put(jobs)
    thread = Thread(target=fleet.restart_each if restart else lambda: None)
    thread.start()
    environment.wait_finished()
    seconds = time.monotonic() - begun
    thread.join()
    return seconds

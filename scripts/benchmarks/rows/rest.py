"""P14: the cost of an idle driver."""

from __future__ import annotations

import time

import psutil

from benchmarks.environment import Environment
from benchmarks.measure import Bench, Goal, Row

BEFORE_S = 10.0
"""Seconds to wait after the start, while Ray's workers start and end."""


def measure(bench: Bench) -> Row:
    row = Row("P14", "at rest: a driver with nothing to do, and its Ray")
    seconds = bench.size(60, 10)
    driver_cpu, others_cpu, statements = "driver", "its Ray", "transactions in Postgres"
    with Environment(bench.root / "rest", "--instant") as environment:
        for _ in range(bench.repeat):
            with environment.driver() as driver:
                time.sleep(BEFORE_S)
                process = psutil.Process(driver.pid)
                own, others = _own_s(process), _others_s(process)
                transactions, begun = _transactions(environment), time.monotonic()
                time.sleep(seconds)
                took = time.monotonic() - begun
                row.add(driver_cpu, "% of a core", 100 * (_own_s(process) - own) / took)
                row.add(others_cpu, "% of a core", 100 * max(0.0, _others_s(process) - others) / took)
                row.add(statements, "1/s", (_transactions(environment) - transactions) / took)
            bench.say(", ".join(f"{series.name}: {series.values[-1]:.2f} {series.unit}" for series in row.series))
    row.goals.append(Goal(driver_cpu, row[driver_cpu], 1.0, at_most=True))
    row.goals.append(Goal(statements, row[statements], 2.0, at_most=True))
    return row


def _own_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _others_s(process: psutil.Process) -> float:
    total = 0.0
    for child in process.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def _transactions(environment: Environment) -> int:
    """The number of transactions of all sessions; a statement outside a transaction counts as one."""
    with environment.connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_clear_snapshot()")
    return int(
        environment.one("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()")
    )

"""P10: only the queue: no-op jobs from claim to finish, and bulk enqueue, compared with pgqueuer and procrastinate."""

from __future__ import annotations

from benchmarks.environment import Environment
from benchmarks.measure import Bench, Row
from benchmarks.peer import run_peer

OURS = "rythmiq-ray"
PEERS = ("pgqueuer", "procrastinate")
WORKERS = {OURS: "rythmiq_worker", "pgqueuer": "pgqueuer_worker", "procrastinate": "procrastinate_worker"}
SLOW = "procrastinate"
"""This peer gets a tenth of the jobs, so that the benchmark does not take too long."""


def measure(bench: Bench) -> Row:
    row = Row("P10", "the queue alone: claim to finish of no-op jobs, and bulk enqueue")
    jobs = bench.size(100_000, 8_000)
    for run in range(bench.repeat):
        for name, module in WORKERS.items():
            # Each has its own server and process, so that none is slowed by what another has left: whether a table was
            # vacuumed can change a rate by a factor of two.
            with Environment(bench.root / f"queue-{run}-{module}", "--instant") as environment:
                count = jobs // 10 if name == SLOW else jobs
                seconds = run_peer(environment, module, jobs=count, concurrency=20, empty=True)
                row.add(f"{name} enqueue", "jobs/s", count / seconds["enqueue"])
                row.add(f"{name} claim to finish", "jobs/s", count / seconds["work"])
        bench.say(", ".join(f"{series.name} {series.values[-1]:.0f}/s" for series in row.series))
    for name in PEERS:
        for what in ("enqueue", "claim to finish"):
            row.compare(f"{OURS} {what}", f"{name} {what}", 1.5)
    return row

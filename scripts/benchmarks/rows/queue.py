"""P10: the queue alone, claim to finish of no-op jobs and bulk enqueue, beside pgqueuer and procrastinate."""

from __future__ import annotations

from benchmarks.environment import Environment
from benchmarks.measure import Bench, Row
from benchmarks.peer import run_peer

OURS = "rythmiq-ray"
PEERS = ("pgqueuer", "procrastinate")
WORKERS = {OURS: "rythmiq_worker", "pgqueuer": "pgqueuer_worker", "procrastinate": "procrastinate_worker"}
SLOW = "procrastinate"
"""It is given a tenth of the jobs, so that it ends before the reader's patience."""


def measure(bench: Bench) -> Row:
    row = Row("P10", "the queue alone: claim to finish of no-op jobs, and bulk enqueue")
    jobs = bench.size(100_000, 8_000)
    for run in range(bench.repeat):
        for name, module in WORKERS.items():
            # Each has a server and a process of its own, so that none pays for what another has left. What vacuum has
            # seen of a table changes a rate twofold.
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

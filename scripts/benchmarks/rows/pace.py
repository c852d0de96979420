"""P1: throughput at the service's real pace, compared with the peers and with the theoretical limit.

A create takes 1.7 s, every other call 0.15 s, a job 30 s, and at most 400 calls are made at once. No program can be
faster than the limit: the total time of all calls divided by 400, plus the time of the last job itself.
"""

from __future__ import annotations

import time

from benchmarks.environment import Environment
from benchmarks.measure import Bench, Row
from benchmarks.peer import run_peer

AT_ONCE = 400
JOB_S = 30.0
CALL_S = 0.15
CREATE_S = 1.7
CALLS = 4
"""The calls of a job besides the create: the bundle, the result, the log, the removal."""
PEERS = {
    "plain Ray script": ("ray_script", 40, 80),
    "procrastinate worker": ("procrastinate_worker", AT_ONCE, 1200),
    "pgqueuer worker": ("pgqueuer_worker", AT_ONCE, 1200),
}
"""Module, jobs at once, and number of jobs by peer. Each peer uses one slot for a job from its create to its end. The
Ray script has a process for each slot; 400 of them would need 35 GB."""


def measure(bench: Bench) -> Row:
    row = Row("P1", "throughput at the service's real pace")
    jobs, job_s = bench.size(5000, 400), JOB_S if not bench.quick else 5.0
    faults = f'{{"latency_s": {CALL_S}, "create_latency_s": {CREATE_S - CALL_S}}}'
    for run in range(bench.repeat):
        root = bench.root / f"pace-{run}"
        with Environment(root, "--instant", str(job_s), "--faults", faults) as environment:
            limit_s = jobs * (CREATE_S + CALLS * CALL_S) / AT_ONCE + job_s
            row.add("the limit", "jobs/s", jobs / limit_s)
            with environment.driver("ray.num_cpus=2", f"camber.max_in_flight={2 * jobs}"):
                environment.put(AT_ONCE)
                environment.wait_finished(every_s=0.1)
                environment.wait_cleaned(every_s=0.1)
                begun = time.perf_counter()
                environment.put(jobs)
                environment.wait_finished(every_s=0.1)
                environment.wait_cleaned(every_s=0.1)
                row.add("rythmiq-ray", "jobs/s", jobs / (time.perf_counter() - begun))
            bench.say(f"rythmiq-ray {row['rythmiq-ray'][-1]:.0f} jobs/s, the limit is {row['the limit'][-1]:.0f}")
            for name, (module, concurrency, count) in PEERS.items():
                work_s = run_peer(environment, module, jobs=bench.size(count, concurrency), concurrency=concurrency)[
                    "work"
                ]
                row.add(name, "jobs/s", bench.size(count, concurrency) / work_s)
                bench.say(f"{name} {row[name][-1]:.1f} jobs/s")
    row.compare("rythmiq-ray", "the limit", 0.9)
    row.compare("rythmiq-ray", "plain Ray script", 10.0)
    for name in ("procrastinate worker", "pgqueuer worker"):
        row.compare("rythmiq-ray", name, 1.0)
    row.notes.append(
        f"{jobs:,} jobs of {job_s:g} s; create {CREATE_S} s, other calls {CALL_S} s, {AT_ONCE} calls at once; the"
        " peers were given fewer jobs, as said in rows/pace.py"
    )
    return row

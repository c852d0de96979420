"""P1: throughput at the service's real pace, beside what users would pick instead and the limit itself.

A create takes 1.7 s, every other call 0.15 s, a job 30 s, and 400 calls may be under way at once. The limit is what no
program can beat: the seconds of calls that the jobs need, through 400 at once, and the last job's own time.
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
"""Beside the create: the bundle, the result, the log, the removal."""
PEERS = {
    "plain Ray script": ("ray_script", 40, 80),
    "procrastinate worker": ("procrastinate_worker", AT_ONCE, 1200),
    "pgqueuer worker": ("pgqueuer_worker", AT_ONCE, 1200),
}
"""Module, jobs at once, and how many it is given: each holds a place for a job from its create to its end. The script
has a process for each, of which 400 would need 35 GB."""


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

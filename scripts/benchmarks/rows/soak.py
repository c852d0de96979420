"""A soak test: many jobs with three drivers, of which two are killed again and again, while a prune runs.

It measures whether anything grows: memory, open files and threads of the driver that is never killed, connections to
Postgres, tables and their dead rows.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack

import psutil

from benchmarks.environment import Environment
from benchmarks.measure import Bench, Goal, Row, wait_for
from rythmiq_ray import JobSpec, NewJob, enqueue_many

DRIVERS = 3
FEED = 500
SAMPLES = 10
KEEP_S = 60
OVERRIDES = ("driver.poll_interval_s=0.5", "driver.lease_s=10", "camber.settle_s=0.5", "ray.num_cpus=1")


def measure(bench: Bench) -> Row:
    row = Row("soak", "many jobs through three drivers, with kills and a prune beside them")
    jobs = bench.size(50_000, 600)
    with Environment(bench.root / "soak", "--instant") as environment, ExitStack() as stack:
        steady = stack.enter_context(environment.driver(*OVERRIDES))
        others = [_start(environment, stack) for _ in range(DRIVERS - 1)]
        process = psutil.Process(steady.pid)
        done = kills = 0
        begun = time.perf_counter()
        samples: list[dict[str, float]] = []
        for sample in range(SAMPLES):
            wanted = jobs * (sample + 1) // SAMPLES
            while done < wanted:
                count = min(FEED, wanted - done)
                enqueue_many(environment.connection, [NewJob(spec=JobSpec(command="true"), max_attempts=50)] * count)
                done += count
                environment.wait_finished(every_s=0.2)
                _prune(environment)
            samples.append(_sample(environment, process))
            bench.say(f"{done:,} jobs, {kills} kills: " + ", ".join(f"{k} {v:,.0f}" for k, v in samples[-1].items()))
            victim = others.pop(0)
            victim.kill()
            kills += 1
            others.append(_start(environment, stack))
        row.add("jobs", "jobs/s", jobs / (time.perf_counter() - begun))
        row.add("jobs in all", "jobs", jobs)
        row.add("drivers killed", "drivers", kills)
        ended = environment.one("SELECT count(*) FROM rythmiq.jobs WHERE state <> 'SUCCEEDED'")
        row.add("jobs that did not succeed", "jobs", ended)
        wait_for(lambda: not _twice(environment), "no path has two creates", timeout_s=1)
        # By then Ray's workers run, caches are full, and the prune finds jobs that are old enough.
        before, after = samples[SAMPLES // 2], samples[-1]
        for name in before:
            row.add(f"{name}, after half", "", before[name])
            row.add(f"{name}, at the end", "", after[name])
    row.goals.append(Goal("jobs that did not succeed", [float(ended)], 0, at_most=True))
    for name in ("memory of the driver, MB", "open files of the driver", "connections to Postgres", "tables, MB"):
        row.goals.append(Goal(f"{name}: the end over half", [after[name] / max(1.0, before[name])], 1.2, at_most=True))
    return row


def _start(environment: Environment, stack: ExitStack) -> subprocess.Popen[bytes]:
    return stack.enter_context(environment.driver(*OVERRIDES, ready=False))


def _prune(environment: Environment) -> None:
    with environment.connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM rythmiq.jobs WHERE job_id IN (SELECT j.job_id FROM rythmiq.jobs AS j"
            " WHERE j.state = 'SUCCEEDED' AND j.finished_at < now() - make_interval(secs => %s)"
            " AND NOT EXISTS (SELECT FROM rythmiq.attempts AS a WHERE a.job_id = j.job_id AND a.cleaned_at IS NULL))",
            [KEEP_S],
        )


def _sample(environment: Environment, process: psutil.Process) -> dict[str, float]:
    one = environment.one
    return {
        "memory of the driver, MB": process.memory_info().rss / 1e6,
        "open files of the driver": process.num_fds(),
        "threads of the driver": process.num_threads(),
        "connections to Postgres": one("SELECT count(*) FROM pg_stat_activity WHERE datname IS NOT NULL"),
        "tables, MB": float(
            one(
                "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class AS c"
                " WHERE c.relnamespace = 'rythmiq'::regnamespace AND c.relkind = 'r'"
            )
        )
        / 1e6,
        "dead rows": float(one("SELECT sum(n_dead_tup) FROM pg_stat_user_tables WHERE schemaname = 'rythmiq'")),
    }


def _twice(environment: Environment) -> bool:
    paths = [event["mount_dir"] for event in environment.journal("create")]
    return len(set(paths)) < len(paths)

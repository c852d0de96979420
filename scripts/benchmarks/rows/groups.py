"""P11: a sweep with very many members in a large table: enqueue, release, list, count, cancel and retry."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from uuid import UUID

from benchmarks.environment import Environment
from benchmarks.measure import Bench, Row
from rythmiq_ray import JobSpec, NewGroup, NewJob, enqueue_group, enqueue_many, grid
from rythmiq_ray.model import JobState
from rythmiq_ray.queue import Ending, Queue, inspect, listing
from rythmiq_ray.secret import Secret
from rythmiq_ray.sweeps import expand

LOOKS = 5
SPEC = JobSpec(command="true")


def measure(bench: Bench) -> Row:
    row = Row("P11", "groups: a sweep, its dependents, and listings in a large table")
    members = bench.size(100_000, 5_000)
    table = bench.size(5_000_000, 100_000)
    with Environment(bench.root / "groups", "--instant") as environment:
        connection = environment.connection
        for _ in range(bench.repeat):
            environment.clear()
            plain, sweep = f"enqueue {members:,} jobs", f"enqueue a sweep of {members:,}"
            row.add(plain, "s", _seconds(lambda: enqueue_many(connection, [NewJob(spec=SPEC) for _ in range(members)])))
            environment.clear()
            rows = grid(N=range(members))
            put = partial(enqueue_group, connection, NewGroup(name="s"), expand(NewJob(spec=SPEC), rows))
            row.add(sweep, "s", _seconds(put))
            row.add("last end to dependents claimable", "ms", _release(environment, 10_000))
        environment.clear()
        group_id, _ = enqueue_group(
            connection, NewGroup(name="sweep"), expand(NewJob(spec=SPEC), grid(N=range(members)))
        )
        fill(environment, table)
        for name, look in _looks(environment, group_id).items():
            row.add(f"{name}, of {table:,} rows", "ms", _median_ms(look))
        row.add(f"cancel {members:,} members", "s", _seconds(lambda: inspect.cancel(connection, groups=[group_id])))
        ids = list(listing.ids(connection, listing.Filter(groups=[group_id])))
        row.add(f"retry {members:,} members", "s", _seconds(lambda: inspect.retry(connection, ids)))
    row.compare(plain, sweep, 0.7)
    return row


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _median_ms(look: Callable[[], object]) -> float:
    look()
    return statistics.median(_seconds(look) * 1000 for _ in range(LOOKS))


def _release(environment: Environment, members: int) -> float:
    """Milliseconds of the statement that ends the last member and releases the job that waits for the group."""
    environment.clear()
    connection = environment.connection
    jobs = [NewJob(spec=SPEC, priority=int(n == 0)) for n in range(members)]
    group_id, ids = enqueue_group(connection, NewGroup(), jobs)
    enqueue_many(connection, [NewJob(spec=SPEC, after=(group_id,)) for _ in range(100)])
    queue = Queue(Secret(environment.postgres.url), lease_s=600)
    queue.register()
    (last,) = queue.claim(1)
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE rythmiq.jobs SET state = 'SUCCEEDED', finished_at = now() WHERE group_id = %s AND state = 'QUEUED'",
            [group_id],
        )
    ending = Ending(job_id=last.job_id, attempt=1, state=JobState.SUCCEEDED)
    took = _seconds(lambda: queue.finish([ending]))
    assert len(queue.claim(1000)) == 100, "released by the same statement"
    queue.close()
    assert len(ids) == members
    return took * 1000


def fill(environment: Environment, count: int) -> None:
    """Adds ended jobs of many users and queues."""
    with environment.connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO rythmiq.jobs (job_id, user_id, queue, spec, state, finished_at, created_at, error_code)"
            " SELECT rythmiq.new_job_id(), 'user-' || n %% 1000, 'queue-' || n %% 200, '{\"command\": \"true\"}',"
            " (ARRAY['SUCCEEDED', 'FAILED', 'CANCELLED'])[1 + (n %% 100 > 95)::integer + (n %% 100 > 98)::integer],"
            " now() - n * interval '1 second', now() - n * interval '1 second',"
            " CASE WHEN n %% 100 > 95 THEN 'command_failed' END"
            " FROM generate_series(1, %s) AS n",
            [count],
        )
        cursor.execute("VACUUM ANALYZE rythmiq.jobs")


def _looks(environment: Environment, group_id: UUID) -> dict[str, Callable[[], object]]:
    connection = environment.connection
    of_group = listing.Filter(groups=[group_id])
    return {
        "jobs": lambda: list(listing.jobs(connection, limit=20)),
        "counts of jobs": lambda: listing.counts(connection),
        "failed jobs": lambda: list(listing.jobs(connection, listing.Filter(states=[JobState.FAILED]), limit=20)),
        "jobs of a user": lambda: list(listing.jobs(connection, listing.Filter(users=["user-7"]), limit=20)),
        "counts of a user": lambda: listing.counts(connection, listing.Filter(users=["user-7"])),
        "jobs of a queue": lambda: list(listing.jobs(connection, listing.Filter(queues=["queue-7"]), limit=20)),
        "groups": lambda: listing.groups(connection),
        "jobs of the sweep": lambda: list(listing.jobs(connection, of_group, limit=20)),
        "counts of the sweep": lambda: listing.counts(connection, of_group),
        "pace of the sweep": lambda: listing.pace(connection, group_id),
        "errors of the sweep": lambda: listing.group_errors(connection, group_id),
    }

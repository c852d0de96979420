"""Enqueues in the caller's own transaction, on a connection of psycopg2 or of psycopg 3.

A psycopg2 connection uses the producer; one of psycopg 3 calls the SQL function ``rythmiq.enqueue`` for each job.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import Any
from uuid import UUID

from rythmiq_ray.errors import InvalidJob
from rythmiq_ray.model import NewGroup, NewJob
from rythmiq_ray.queue import producer
from rythmiq_ray.queue.groups import NO_MEMBERS, references


def enqueue_many(connection: Any, jobs: Sequence[NewJob]) -> list[UUID]:
    """Adds all of these jobs or none; returns their ids in the same order. Raises InvalidJob."""
    if _is_psycopg2(connection):
        return producer.enqueue_many(connection, jobs)
    jobs = producer.checked(jobs)
    with _transaction(connection) as cursor:
        return _enqueued(cursor, jobs)


def enqueue_group(connection: Any, group: NewGroup, jobs: Sequence[NewJob]) -> UUID:
    """Adds a group with these members, or nothing; returns its id. Raises InvalidJob."""
    if _is_psycopg2(connection):
        return producer.insert_group(connection, group, jobs)[0]
    jobs = producer.checked(jobs)
    producer.check_group(group, jobs)
    with _transaction(connection) as cursor:
        cursor.execute(
            "INSERT INTO rythmiq.groups (group_id, name, user_id, labels, max_parallel, stop_after_failures, notify)"
            " VALUES (gen_random_uuid(), %s, %s, %s::jsonb, %s, %s, %s) RETURNING group_id",
            [
                group.name,
                group.user_id,
                json.dumps(dict(group.labels)),
                group.max_parallel,
                group.stop_after_failures,
                group.notify,
            ],
        )
        group_id = UUID(str(cursor.fetchone()[0]))
        _enqueued(cursor, [replace(job, group=job.group or group_id) for job in jobs])
        if cursor.execute("SELECT FROM rythmiq.job_status WHERE group_id = %s LIMIT 1", [group_id]).rowcount == 0:
            raise InvalidJob([NO_MEMBERS])
        return group_id


@contextmanager
def _transaction(connection: Any) -> Iterator[Any]:
    """A cursor in a savepoint, so that an error undoes only this part. With autocommit it is a transaction."""
    from psycopg.rows import tuple_row

    if not connection.autocommit:
        connection.execute("SELECT 1")  # Begins the caller's transaction; the block would commit one that it began.
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        yield cursor


def _enqueued(cursor: Any, jobs: Sequence[NewJob]) -> list[UUID]:
    """Adds each job after the jobs that it names, with their ids in place of their names; returns the ids in order."""
    named: dict[tuple[str, str | None], list[int]] = defaultdict(list)
    members: dict[str, list[int]] = defaultdict(list)
    for at, job in enumerate(jobs):
        named[str(job.group), job.name].append(at)
        members[str(job.group)].append(at)
    members.pop("None", None)
    ids: dict[int, UUID] = {}

    def meant(job: NewJob, reference: object) -> list[int]:
        return named.get((str(job.group), str(reference)), [])

    def known(job: NewJob, reference: object) -> list[str]:
        return [str(ids[at]) for at in meant(job, reference)] or [str(reference)]

    order = TopologicalSorter(
        {
            at: [each for name in references(job) for each in meant(job, name) or members.get(str(name), [])]
            for at, job in enumerate(jobs)
        }
    )
    try:
        for at in order.static_order():
            ids[at] = _enqueue(cursor, jobs[at], known, f"job {at + 1}: " if len(jobs) > 1 else "")
    except CycleError as error:
        circle = " waits for ".join(jobs[at].name or f"job {at + 1}" for at in reversed(error.args[1]))
        raise InvalidJob([f"after: {circle}: a circle never ends"]) from None
    return [ids[at] for at in range(len(jobs))]


def _enqueue(cursor: Any, job: NewJob, known: Callable[[NewJob, object], list[str]], where: str) -> UUID:
    from psycopg.errors import InvalidParameterValue

    spec = job.spec.as_dict()
    for item in spec.get("inputs", ()):
        reference, _, glob = item["uri"].removeprefix("job:").partition("/")
        if item["uri"].startswith("job:"):
            item["uri"] = f"job:{known(job, reference)[0]}/{glob}"
    line = {
        **spec,
        "queue": job.queue,
        "priority": job.priority,
        "max_attempts": job.max_attempts,
        "user_id": job.user_id,
        "unique_key": job.unique_key,
        "delay": job.delay_s,
        "name": job.name,
        "labels": dict(job.labels),
        "params": None if job.params is None else dict(job.params),
        "group": None if job.group is None else str(job.group),
        "after": [each for reference in job.after for each in known(job, reference)],
        "after_ended": [each for reference in job.after_ended for each in known(job, reference)],
        "notify": job.notify,
        "traceparent": job.traceparent,
    }
    given = {name: value for name, value in line.items() if value is not None}
    try:
        cursor.execute("SELECT rythmiq.enqueue(%s::jsonb)", [json.dumps(given)])
    except InvalidParameterValue as error:
        raise InvalidJob([f"{where}{error.diag.message_primary}"]) from None
    return UUID(str(cursor.fetchone()[0]))


def _is_psycopg2(connection: Any) -> bool:
    import psycopg2.extensions

    return isinstance(connection, psycopg2.extensions.connection)

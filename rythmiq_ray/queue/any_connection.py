"""Enqueues in the caller's own transaction, on any DB-API connection with ``%s`` parameters: psycopg2, psycopg 3.

A psycopg2 connection uses the producer; any other calls the SQL function ``rythmiq.enqueue`` for each job.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from rythmiq_ray.model import NewGroup, NewJob
from rythmiq_ray.queue import producer


def enqueue_many(connection: Any, jobs: Sequence[NewJob]) -> list[UUID]:
    """Adds jobs, in order; returns their ids. Raises the errors of the connection's library."""
    if _is_psycopg2(connection):
        return producer.enqueue_many(connection, jobs)
    with connection.cursor() as cursor:
        return [_enqueue(cursor, job) for job in jobs]


def enqueue_group(connection: Any, group: NewGroup, jobs: Sequence[NewJob]) -> UUID:
    """Adds a group with these members; returns its id. Raises the errors of the connection's library."""
    if _is_psycopg2(connection):
        return producer.insert_group(connection, group, jobs)[0]
    producer.check_group(group, jobs)
    with connection.cursor() as cursor:
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
        for job in jobs:
            _enqueue(cursor, replace(job, group=job.group or group_id))
        return group_id


def _enqueue(cursor: Any, job: NewJob) -> UUID:
    spec = job.spec.as_dict()
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
        "after": list(map(str, job.after)),
        "after_ended": list(map(str, job.after_ended)),
        "notify": job.notify,
        "traceparent": job.traceparent,
    }
    given = {name: value for name, value in line.items() if value is not None}
    cursor.execute("SELECT rythmiq.enqueue(%s::jsonb)", [json.dumps(given)])
    return UUID(str(cursor.fetchone()[0]))


def _is_psycopg2(connection: Any) -> bool:
    import psycopg2.extensions

    return isinstance(connection, psycopg2.extensions.connection)

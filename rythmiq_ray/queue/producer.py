"""Putting jobs in: one or a hundred thousand, always inside the caller's own transaction."""

from __future__ import annotations

import json
import os
import struct
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final, TextIO, cast
from uuid import UUID

import psycopg2.extensions

from rythmiq_ray.errors import InvalidJob
from rythmiq_ray.layers import load_catalog
from rythmiq_ray.model import DEFAULT_MAX_ATTEMPTS, DEFAULT_QUEUE, JobSpec, NewJob
from rythmiq_ray.queue.connection import fetch, translated
from rythmiq_ray.queue.sql import queries
from rythmiq_ray.spec import check

_SQL: Final = queries("producer")
_UNIQUE_TRIES: Final = 5
"""How often an enqueue races with the end of the job that holds its key before it gives up; once is rare."""
_to_json: Final = json.JSONEncoder(ensure_ascii=False).encode
_COPY_BYTES: Final = 64 * 1024
_COPY_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def enqueue(
    connection: psycopg2.extensions.connection,
    spec: JobSpec,
    *,
    queue: str = DEFAULT_QUEUE,
    priority: int = 0,
    max_attempts: int = DEFAULT_MAX_ATTEMPTS,
    user_id: str | None = None,
    unique_key: str | None = None,
    delay_s: float = 0.0,
) -> UUID:
    """Adds one job in the caller's transaction: it exists once that commits, and never if it rolls back.

    Returns the job's id; where an unfinished job holds ``unique_key``, that job's id. Raises InvalidJob with every
    fault of the job (also for engines and sizes that Camber does not have), and DatabaseUnavailable.
    """
    job = NewJob(
        spec=spec,
        queue=queue,
        priority=priority,
        max_attempts=max_attempts,
        user_id=user_id,
        unique_key=unique_key,
        delay_s=delay_s,
    )
    return enqueue_many(connection, [job])[0]


def enqueue_many(connection: psycopg2.extensions.connection, jobs: Iterable[NewJob]) -> list[UUID]:
    """Adds jobs in the caller's transaction and returns their ids in the same order; see :func:`enqueue`."""
    catalog = load_catalog()
    jobs = list(jobs)
    faults: list[str] = []
    for number, job in enumerate(jobs, 1):
        faults.extend(fault if len(jobs) == 1 else f"job {number}: {fault}" for fault in check(job, catalog))
    if faults:
        raise InvalidJob(faults)
    return insert(connection, jobs)


def insert(connection: psycopg2.extensions.connection, jobs: Sequence[NewJob]) -> list[UUID]:
    """Adds jobs that :mod:`rythmiq_ray.spec` checked before, in the caller's transaction."""
    ids = new_job_ids(len(jobs))
    plain = [at for at, job in enumerate(jobs) if job.unique_key is None]
    keyed = [at for at, job in enumerate(jobs) if job.unique_key is not None]
    if plain:
        _copy(connection, [(ids[at], jobs[at]) for at in plain])
    if keyed:
        holders = _insert_unique(connection, [(ids[at], jobs[at]) for at in keyed])
        for at in keyed:
            key = jobs[at].unique_key
            assert key is not None  # noqa: S101 - narrows the type; keyed holds no other
            ids[at] = holders[key]
    return ids


_last_id = 0
_id_lock: Final = threading.Lock()


def new_job_ids(count: int) -> list[UUID]:
    """UUIDs of version 7 (RFC 9562): ids made later sort later, so new rows share index pages.

    The 12 bits behind the milliseconds count fractions of one (method 3), and a process never goes back, so jobs
    keep the order in which they were given.
    """
    global _last_id
    milliseconds, rest_ns = divmod(time.time_ns(), 1_000_000)
    with _id_lock:
        first = max(_last_id + 1, milliseconds << 12 | rest_ns * 4096 // 1_000_000)
        _last_id = first + count - 1
    random = struct.unpack(f"{count}Q", os.urandom(8 * count))
    ids = []
    for ticks, low in zip(range(first, first + count), random, strict=True):
        high = (ticks >> 12) << 16 | 0x7 << 12 | ticks & 0xFFF
        ids.append(UUID(int=high << 64 | 0x2 << 62 | low >> 2))
    return ids


def _copy(connection: psycopg2.extensions.connection, rows: Sequence[tuple[UUID, NewJob]]) -> None:
    with translated(), connection.cursor() as cursor:
        delayed = any(job.delay_s for _, job in rows)
        now: datetime | None = fetch(connection, _SQL["now"], {})[0]["now"] if delayed else None
        cursor.copy_expert(_SQL["copy"], cast("TextIO", _Lines(rows, now)), _COPY_BYTES)  # needs read() alone


class _Lines:
    """Rows in the text format of COPY, made while Postgres takes in those before them."""

    def __init__(self, rows: Sequence[tuple[UUID, NewJob]], now: datetime | None) -> None:
        """``now``: the transaction's time; needed for delayed jobs only."""
        self._rows = iter(rows)
        self._now = now
        self._rest = ""

    def read(self, size: int = _COPY_BYTES, /) -> str:
        """At most so many characters; none at the end."""
        lines, length = [self._rest], len(self._rest)
        while length < size and (row := next(self._rows, None)) is not None:
            lines.append(self._line(*row))
            length += len(lines[-1])
        text = "".join(lines)
        self._rest = text[size:]
        return text[:size]

    def _line(self, job_id: UUID, job: NewJob) -> str:
        user_id = "\\N" if job.user_id is None else _escaped(job.user_id)
        queue = _escaped(job.queue)
        # JSON itself escapes all else that COPY reads as its own.
        spec = _to_json(job.spec.as_dict()).replace("\\", "\\\\")
        visible = "now"  # To Postgres that is the transaction's time.
        if job.delay_s and self._now is not None:
            visible = (self._now + timedelta(seconds=job.delay_s)).isoformat()
        return f"{job_id.int:032x}\t{user_id}\t{queue}\t{job.priority}\t{spec}\t{job.max_attempts}\t{visible}\n"


@lru_cache
def _escaped(text: str) -> str:
    return text.translate(_COPY_ESCAPES)


def _insert_unique(connection: psycopg2.extensions.connection, rows: list[tuple[UUID, NewJob]]) -> dict[str, UUID]:
    """Adds what no unfinished job holds and returns who holds each key now."""
    holders: dict[str, UUID] = {}
    for _ in range(_UNIQUE_TRIES):
        missing = [(job_id, job) for job_id, job in rows if job.unique_key not in holders]
        parameters = {"jobs": json.dumps([_as_record(job_id, job) for job_id, job in missing])}
        fetch(connection, _SQL["insert_many"], parameters)
        keys = [job.unique_key for _, job in missing]
        for row in fetch(connection, _SQL["holders"], {"keys": keys}):
            holders[row["unique_key"]] = row["job_id"]
        if all(job.unique_key in holders for _, job in rows):
            return holders
    raise InvalidJob(["unique_key: its holder keeps changing state; try again"])


def _as_record(job_id: UUID, job: NewJob) -> dict[str, object]:
    return {
        "job_id": str(job_id),
        "user_id": job.user_id,
        "queue": job.queue,
        "priority": job.priority,
        "spec": job.spec.as_dict(),
        "max_attempts": job.max_attempts,
        "delay_s": job.delay_s,
        "unique_key": job.unique_key,
    }

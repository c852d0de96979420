"""Putting jobs in: one or a hundred thousand, always inside the caller's own transaction."""

from __future__ import annotations

import json
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import tee
from json.encoder import encode_basestring
from typing import Final, TextIO, cast
from uuid import UUID

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from rythmiq_ray.errors import ConfigurationError, InvalidJob
from rythmiq_ray.layers import load_catalog
from rythmiq_ray.model import DEFAULT_MAX_ATTEMPTS, DEFAULT_QUEUE, JobSpec, NewJob
from rythmiq_ray.queue.connection import fetch, repeated, translated
from rythmiq_ray.queue.sql import queries
from rythmiq_ray.spec import check

_SQL: Final = queries("producer")
_UNIQUE_TRIES: Final = 5
"""How often an enqueue races with the end of the job that holds its key before it gives up; once is rare."""
_to_json: Final = json.JSONEncoder(ensure_ascii=False).encode
_COPY_CHARACTERS: Final = 64 * 1024
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
    delay: float | str = 0.0,
    delay_s: float | None = None,
) -> UUID:
    """Adds one job in the caller's transaction: it exists once that commits, and never if it rolls back.

    Returns the job's id; where an unfinished job holds ``unique_key``, that job's id. ``delay`` is seconds or text such
    as ``2h``; ``delay_s`` is its former name. Raises InvalidJob with every fault of the job (also for engines and sizes
    that Camber does not have), and DatabaseUnavailable.
    """
    job = NewJob(
        spec=spec,
        queue=queue,
        priority=priority,
        max_attempts=max_attempts,
        user_id=user_id,
        unique_key=unique_key,
        delay=delay if delay_s is None else delay_s,
    )
    return enqueue_many(connection, [job])[0]


def enqueue_many(connection: psycopg2.extensions.connection, jobs: Iterable[NewJob]) -> list[UUID]:
    """Adds jobs in the caller's transaction and returns their ids in the same order; see :func:`enqueue`."""
    catalog = load_catalog()
    jobs = list(jobs)
    faults: list[str] = []
    for number, job in enumerate(jobs, 1):
        if found := check(job, catalog):
            faults.extend(found if len(jobs) == 1 else [f"job {number}: {fault}" for fault in found])
    if faults:
        raise InvalidJob(faults)
    return insert(connection, jobs)


def insert(connection: psycopg2.extensions.connection, jobs: Sequence[NewJob]) -> list[UUID]:
    """Adds jobs that :mod:`rythmiq_ray.spec` checked before, in the caller's transaction.

    Where none is open, all of it is repeated after a deadlock or a serialization failure; with autocommit it is one
    transaction too. Whatever the connection's encoding is, texts arrive as they are.
    """
    try:
        return repeated(connection, lambda: _insert(connection, jobs))
    except (psycopg2.errors.UntranslatableCharacter, psycopg2.errors.CharacterNotInRepertoire):
        raise ConfigurationError(
            "The database's encoding cannot hold the text of these jobs: it must be UTF8"
        ) from None


def _insert(connection: psycopg2.extensions.connection, jobs: Sequence[NewJob]) -> list[UUID]:
    # Tee keeps for the caller what the rows take: the ids too are made while Postgres takes in those before them.
    of_rows, of_caller = tee(_new_job_ids(len(jobs)))
    keyed = [at for at, job in enumerate(jobs) if job.unique_key is not None]
    if len(keyed) < len(jobs):
        _copy(connection, of_rows, jobs)
    ids = list(of_caller)
    if keyed:
        holders = _insert_unique(connection, [(ids[at], jobs[at]) for at in keyed])
        for at in keyed:
            key = jobs[at].unique_key
            assert key is not None  # noqa: S101 - narrows the type; keyed holds no other
            ids[at] = holders[key]
    return ids


_last_id = 0
_id_lock: Final = threading.Lock()


def _new_job_ids(count: int) -> Iterator[UUID]:
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
    for ticks, low in zip(range(first, first + count), random, strict=True):
        high = (ticks >> 12) << 16 | 0x7 << 12 | ticks & 0xFFF
        yield UUID(int=high << 64 | 0x2 << 62 | low >> 2)


def _copy(connection: psycopg2.extensions.connection, ids: Iterable[UUID], jobs: Sequence[NewJob]) -> None:
    """Adds those jobs that have no unique key."""
    # The plain class, whatever the connection's own.
    with translated(), connection.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
        delayed = any(job.delay for job in jobs)
        now: datetime | None = fetch(connection, _SQL["now"], {})[0]["now"] if delayed else None
        lines = (_line(job_id, job, now) for job_id, job in zip(ids, jobs, strict=True) if job.unique_key is None)
        cursor.copy_expert(_SQL["copy"], cast("TextIO", _Stream(lines)), _COPY_CHARACTERS)  # needs read() alone


class _Stream:
    """Lines for COPY, made while Postgres takes in those before them."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._rest = ""

    def read(self, size: int, /) -> bytes:
        """At most so many characters, in UTF-8; none at the end."""
        taken, length = [self._rest], len(self._rest)
        if length < size:
            for line in self._lines:
                taken.append(line)
                length += len(line)
                if length >= size:
                    break
        text = "".join(taken)
        self._rest = text[size:]
        return text[:size].encode()


def _line(job_id: UUID, job: NewJob, now: datetime | None) -> str:
    """A row in the text format of COPY; ``now`` is the transaction's time, needed for delayed jobs only."""
    user_id = "\\N" if job.user_id is None else _escaped(job.user_id)
    queue = _escaped(job.queue)
    # JSON itself escapes all else that COPY reads as its own.
    spec = _spec_json(job.spec).replace("\\", "\\\\")
    visible = "now"  # To Postgres that is the transaction's time.
    if job.delay and now is not None:
        visible = (now + timedelta(seconds=job.delay_s)).isoformat()
    return f"{job_id.int:032x}\t{user_id}\t{queue}\t{job.priority}\t{spec}\t{job.max_attempts}\t{visible}\n"


def _spec_json(spec: JobSpec) -> str:
    known = spec.as_dict()
    if len(known) > 3:
        return _to_json(known)
    # Most specs are no more than the three texts that are always there; the encoder would take six times as long.
    command, engine, node_size = map(encode_basestring, known.values())
    return f'{{"command": {command}, "engine": {engine}, "node_size": {node_size}}}'


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
        keys = [job.unique_key for _, job in missing if job.unique_key is not None]
        for row in fetch(connection, _SQL["holders"], {"keys": json.dumps(keys)}):
            holders[keys[row["place"]]] = row["job_id"]
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

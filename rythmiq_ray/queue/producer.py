"""Enqueues jobs, one or a hundred thousand, in the caller's own transaction."""

from __future__ import annotations

import json
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import repeat, tee
from json.encoder import encode_basestring
from typing import Any, Final, TextIO, TypeVar, cast
from uuid import UUID, uuid4

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from rythmiq_ray import spec as specs
from rythmiq_ray.config_loader import load_catalog
from rythmiq_ray.errors import ConfigurationError, InvalidJob
from rythmiq_ray.model import DEFAULT_MAX_ATTEMPTS, DEFAULT_QUEUE, JobSpec, NewGroup, NewJob
from rythmiq_ray.queue import groups
from rythmiq_ray.queue.connection import Conflict, fetch, repeated, translated
from rythmiq_ray.queue.groups import Place
from rythmiq_ray.queue.sql import queries
from rythmiq_ray.queue.stream import Stream

_SQL: Final = queries("producer")
_to_json: Final = json.JSONEncoder(ensure_ascii=False).encode
_T = TypeVar("_T")
_UNIQUE_TRIES: Final = 5
"""How often an enqueue is tried while other sessions take and free its unique keys; a second try is rare."""
_NULL: Final = "\\N"
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
    name: str | None = None,
    labels: Mapping[str, str] | None = None,
    group: str | UUID | None = None,
    after: Sequence[str | UUID] = (),
    after_ended: Sequence[str | UUID] = (),
    notify: str | None = None,
    traceparent: str | None = None,
) -> UUID:
    """Adds one job in the caller's transaction: it exists once that commits, and never if it rolls back.

    Returns the job's id, or the id of the unfinished job that already has ``unique_key``. The fields are those of
    :class:`~rythmiq_ray.model.NewJob`; ``delay_s`` is the former name of ``delay``. Raises InvalidJob with every fault
    of the job, including an engine or size that Camber does not have, and DatabaseUnavailable.
    """
    job = NewJob(
        spec=spec,
        queue=queue,
        priority=priority,
        max_attempts=max_attempts,
        user_id=user_id,
        unique_key=unique_key,
        delay=delay if delay_s is None else delay_s,
        name=name,
        labels=labels or {},
        group=group,
        after=tuple(after),
        after_ended=tuple(after_ended),
        notify=notify,
        traceparent=traceparent,
    )
    return enqueue_many(connection, [job])[0]


def enqueue_many(connection: psycopg2.extensions.connection, jobs: Iterable[NewJob]) -> list[UUID]:
    """Adds jobs in the caller's transaction and returns their ids in the same order; see :func:`enqueue`."""
    return insert(connection, checked(jobs))


def enqueue_group(
    connection: psycopg2.extensions.connection, group: NewGroup, jobs: Iterable[NewJob]
) -> tuple[UUID, list[UUID]]:
    """Adds a group with these members in the caller's transaction; returns the group's id and the members' ids.

    Raises the same errors as :func:`enqueue`.
    """
    return insert_group(connection, group, checked(jobs))


def insert(connection: psycopg2.extensions.connection, jobs: Sequence[NewJob]) -> list[UUID]:
    """Adds jobs that :mod:`rythmiq_ray.spec` has checked, in the caller's transaction; returns their ids in order.

    If no transaction is open, the whole insert is tried again after a deadlock or a serialization failure. With
    autocommit it is one transaction too. Texts are stored unchanged, whatever the connection's encoding is. Raises
    InvalidJob if something that a job waits for does not exist.
    """
    return _stored(connection, lambda: _insert(connection, jobs))


def insert_group(
    connection: psycopg2.extensions.connection, group: NewGroup, jobs: Sequence[NewJob]
) -> tuple[UUID, list[UUID]]:
    """Like :func:`insert`, with a new group for the jobs that name none; returns the group's id and the jobs' ids."""
    check_group(group, jobs)

    def work() -> tuple[UUID, list[UUID]]:
        group_id = uuid4()
        return group_id, _insert(connection, jobs, (group_id, group))

    return _stored(connection, work)


def check_group(group: NewGroup, jobs: Sequence[NewJob]) -> None:
    """Raises InvalidJob for the group's own faults, for no jobs, and for two jobs with one unique key."""
    if faults := specs.check_group(group):
        raise InvalidJob(faults)
    if not jobs:
        raise InvalidJob(["group: has no jobs; it would never end"])
    keys = [job.unique_key for job in jobs if job.unique_key is not None]
    if len(set(keys)) < len(keys):
        raise InvalidJob(["unique_key: several jobs of the group have the same one, and only the first would be added"])


def checked(jobs: Iterable[NewJob]) -> list[NewJob]:
    """The jobs as a list. Raises InvalidJob with every fault of every job."""
    catalog = load_catalog()
    jobs = list(jobs)
    faults: list[str] = []
    for number, found in enumerate(specs.check_all(jobs, catalog), 1):
        if found:
            faults.extend(found if len(jobs) == 1 else [f"job {number}: {fault}" for fault in found])
    if faults:
        raise InvalidJob(faults)
    return jobs


def _stored(connection: psycopg2.extensions.connection, work: Callable[[], _T]) -> _T:
    try:
        return repeated(connection, work)
    except psycopg2.errors.ForeignKeyViolation:
        raise InvalidJob(["group: its last member was deleted meanwhile; try again"]) from None
    except (psycopg2.errors.UntranslatableCharacter, psycopg2.errors.CharacterNotInRepertoire):
        raise ConfigurationError(
            "The database's encoding cannot hold the text of these jobs: it must be UTF8"
        ) from None


def _insert(
    connection: psycopg2.extensions.connection, jobs: Sequence[NewJob], group: tuple[UUID, NewGroup] | None = None
) -> list[UUID]:
    if any(map(_is_related, jobs)):
        return _insert_related(connection, jobs, group)
    # Ids and rows are made while Postgres reads the rows before them; tee keeps the ids for the caller.
    of_rows, of_caller = tee(_new_job_ids(len(jobs)))
    now = _now(connection, jobs)
    if group is None and not any(map(_is_placed, jobs)):
        texts = _SpecTexts()
        lines = (_line(job_id, job, texts.of(job.spec), now) + "\n" for job_id, job in zip(of_rows, jobs, strict=True))
        _copy(connection, "copy", lines)
        return list(of_caller)
    places: Iterable[Place] = repeat(Place(), len(jobs))
    if group is not None:
        group_id, limited = group[0], group[1].max_parallel is not None
        groups.write_groups(connection, dict([group]))
        places = (Place(group_id, number, blocked=limited) for number in range(len(jobs)))
    _copy(connection, "copy_placed", _placed_lines(zip(of_rows, jobs, places, strict=True), now))
    return list(of_caller)


def _is_related(job: NewJob) -> bool:
    """Whether other jobs or groups have to be looked up for it."""
    named = job.unique_key is not None or job.group or job.after or job.after_ended
    return bool(named) or groups.stored_inputs(job.spec)


def _is_placed(job: NewJob) -> bool:
    """Whether it has more than the columns of :func:`_line`."""
    return bool(job.name is not None or job.labels or job.params or job.notify or job.traceparent)


def _insert_related(
    connection: psycopg2.extensions.connection, jobs: Sequence[NewJob], group: tuple[UUID, NewGroup] | None
) -> list[UUID]:
    """Like :func:`_insert`, for jobs with unique keys, groups or dependencies."""
    ids = list(_new_job_ids(len(jobs)))
    keyed = [at for at, job in enumerate(jobs) if job.unique_key is not None]
    new = list(_resolve_keys(connection, jobs, ids, keyed)) if keyed else []
    plan = groups.plan(connection, jobs, ids, group, held=set(keyed).difference(new))
    groups.write_groups(connection, plan.groups)
    if plan.specs:
        jobs = [replace(job, spec=plan.specs.get(at, job.spec)) for at, job in enumerate(jobs)]
    now = _now(connection, jobs)
    unkeyed = (at for at, job in enumerate(jobs) if job.unique_key is None)
    lines = _placed_lines(((ids[at], jobs[at], plan.places[at]) for at in unkeyed), now)
    _copy(connection, "copy_placed", lines)
    for _ in range(_UNIQUE_TRIES):
        if not new:
            break
        records = [_as_record(ids[at], jobs[at], plan.places[at]) for at in new]
        added = {row["job_id"] for row in fetch(connection, _SQL["insert_many"], {"jobs": _to_json(records)})}
        taken = [at for at in new if ids[at] not in added]
        if taken and (plan.dependencies or plan.groups):
            raise Conflict("Another session took a unique key of these jobs, try again")
        new = list(_resolve_keys(connection, jobs, ids, taken)) if taken else []
    else:
        raise InvalidJob(["unique_key: its holder keeps changing state; try again"])
    if plan.dependencies:
        groups.write_dependencies(connection, plan)
    return ids


def _resolve_keys(
    connection: psycopg2.extensions.connection, jobs: Sequence[NewJob], ids: list[UUID], keyed: Sequence[int]
) -> Iterator[int]:
    """Gives a job whose key an unfinished or an earlier job here has the id of that job; yields the others' indexes."""
    keys = [jobs[at].unique_key for at in keyed]
    rows = fetch(connection, _SQL["holders"], {"keys": _to_json(keys)})
    holders = {keys[row["place"]]: row["job_id"] for row in rows}
    for at, key in zip(keyed, keys, strict=True):
        if key in holders:
            ids[at] = holders[key]
        else:
            holders[key] = ids[at]
            yield at


_last_id = 0
_id_lock: Final = threading.Lock()


def _new_job_ids(count: int) -> Iterator[UUID]:
    """UUIDs of version 7 (RFC 9562): ids made later sort later, so new rows share index pages.

    The 12 bits after the milliseconds are a fraction of a millisecond (method 3). The ids that a process makes only
    grow, so jobs keep the order in which they were given.
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


def _now(connection: psycopg2.extensions.connection, jobs: Sequence[NewJob]) -> datetime | None:
    """The transaction's time if a job is delayed, else None."""
    if not any(job.delay for job in jobs):
        return None
    now: datetime = fetch(connection, _SQL["now"], {})[0]["now"]
    return now


def _copy(connection: psycopg2.extensions.connection, statement: str, lines: Iterator[str]) -> None:
    # The connection may have a cursor class of its own, which need not support COPY.
    with translated(), connection.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
        cursor.copy_expert(_SQL[statement], cast("TextIO", Stream(lines)), _COPY_CHARACTERS)  # it needs only read()


def _placed_lines(rows: Iterable[tuple[UUID, NewJob, Place]], now: datetime | None) -> Iterator[str]:
    """Rows in COPY's text format: the columns of :func:`_line` and those of placed jobs."""
    texts = _SpecTexts()
    group: UUID | None = None
    group_text = _NULL
    for job_id, job, place in rows:
        if place.group_id is not group:
            group = place.group_id
            group_text = _NULL if group is None else str(group)
        params = _NULL if job.params is None else _pairs_text(job.params)
        line = _line(job_id, job, texts.of(job.spec, job.params, params), now)
        name = _NULL if job.name is None else _escaped(job.name)
        labels = _pairs_text(job.labels) if job.labels else "{}"
        number = _NULL if place.number is None else place.number
        notify = _NULL if job.notify is None else _escaped(job.notify)
        state = "BLOCKED" if place.blocked else "QUEUED"
        yield (
            f"{line}\t{name}\t{labels}\t{params}\t{group_text}\t{number}\t{place.waits_for}\t{notify}"
            f"\t{job.traceparent or _NULL}\t{state}\n"
        )


def _line(job_id: UUID, job: NewJob, spec: str, now: datetime | None) -> str:
    """A row's first columns; ``now`` is the transaction's time, needed for delayed jobs only."""
    user_id = _NULL if job.user_id is None else _escaped(job.user_id)
    visible = "now"  # To Postgres that is the transaction's time.
    if job.delay and now is not None:
        visible = (now + timedelta(seconds=job.delay_s)).isoformat()
    return f"{job_id.int:032x}\t{user_id}\t{_escaped(job.queue)}\t{job.priority}\t{spec}\t{job.max_attempts}\t{visible}"


class _SpecTexts:
    """Specs in COPY's text format. Members of a sweep share one spec object and differ only in their variables."""

    def __init__(self) -> None:
        self._spec: JobSpec | None = None
        self._head = ""
        self._env: Mapping[str, str] = {}

    def of(self, spec: JobSpec, params: Mapping[str, str] | None = None, params_text: str = "") -> str:
        """``params_text`` is ``params`` in COPY's text format."""
        if spec is not self._spec:
            self._spec, self._env = spec, spec.env
            self._head = _head_of(spec)
        if not params:
            return f'{self._head}, "env": {_pairs_text(self._env)}}}' if self._env else f"{self._head}}}"
        env = _pairs_text({**self._env, **params}) if self._env else params_text
        return f'{self._head}, "env": {env}}}'


def _head_of(spec: JobSpec) -> str:
    """The JSON of a spec without ``env`` and without the closing brace."""
    known = spec.as_dict()
    known.pop("env", None)
    if len(known) > 3:
        # JSON already escapes the other characters that are special to COPY.
        return _to_json(known).replace("\\", "\\\\")[:-1]
    # Most specs have only the three texts that are always there; the JSON encoder takes six times as long for them.
    command, engine, node_size = map(encode_basestring, known.values())
    return f'{{"command": {command}, "engine": {engine}, "node_size": {node_size}'.replace("\\", "\\\\")


def _pairs_text(pairs: Mapping[str, str]) -> str:
    """A JSON object of texts, in COPY's text format. The JSON encoder takes several times as long for a few of them."""
    inner = ", ".join([f"{encode_basestring(name)}: {encode_basestring(text)}" for name, text in pairs.items()])
    return f"{{{inner}}}".replace("\\", "\\\\")


def _spec_of(job: NewJob) -> dict[str, Any]:
    spec = job.spec.as_dict()
    if job.params:
        spec["env"] = {**spec.get("env", {}), **job.params}
    return spec


@lru_cache
def _escaped(text: str) -> str:
    return text.translate(_COPY_ESCAPES)


def _as_record(job_id: UUID, job: NewJob, place: Place) -> dict[str, object]:
    return {
        "job_id": str(job_id),
        "user_id": job.user_id,
        "queue": job.queue,
        "priority": job.priority,
        "spec": _spec_of(job),
        "max_attempts": job.max_attempts,
        "delay_s": job.delay_s,
        "unique_key": job.unique_key,
        "name": job.name,
        "labels": dict(job.labels),
        "params": None if job.params is None else dict(job.params),
        "group_id": None if place.group_id is None else str(place.group_id),
        "group_index": place.number,
        "waits_for": place.waits_for,
        "notify": job.notify,
        "traceparent": job.traceparent,
        "state": "BLOCKED" if place.blocked else "QUEUED",
    }

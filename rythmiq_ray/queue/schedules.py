"""Adds, lists, pauses, resumes, runs and removes schedules for users. Drivers fire the due times."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import psycopg2
import psycopg2.extensions

from rythmiq_ray.errors import InvalidJob, NotFound
from rythmiq_ray.queue.connection import Row, fetch
from rythmiq_ray.queue.sql import queries
from rythmiq_ray.schedules import CatchUp, Overlap, due, next_after

_SQL: Final = queries("schedules")
_LONGEST_NAME: Final = 200

Connection = psycopg2.extensions.connection


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A row of ``rythmiq.schedules``."""

    name: str
    cron: str
    time_zone: str
    job: Mapping[str, Any] | None
    """A job, as in the JSON Schema that `rythmiq schema` prints; None for a sweep."""
    sweep: Mapping[str, Any] | None
    """``jobs`` is a list of such jobs, the other keys are fields of the group; None for a single job."""
    overlap: str
    catch_up: str
    paused: bool
    reason: str | None
    next_at: datetime
    last_at: datetime | None
    last_job_id: UUID | None
    last_group_id: UUID | None
    last_outcome: str | None
    last_state: str | None
    """The state of the last run; None if there was none or it was pruned."""
    created_at: datetime
    enqueued_by: str


_FIELDS: Final = tuple(field.name for field in fields(Schedule))


def add(
    connection: Connection,
    name: str,
    cron: str,
    *,
    time_zone: str = "UTC",
    job: Mapping[str, Any] | None = None,
    sweep: Mapping[str, Any] | None = None,
    overlap: Overlap = Overlap.SKIP,
    catch_up: CatchUp = CatchUp.ONE,
    replace: bool = False,
) -> datetime:
    """Adds a schedule whose job or sweep the caller has checked; returns when it is first due.

    Raises InvalidJob for a bad name, cron expression or time zone, and if the name is taken, unless ``replace``.
    """
    if not 1 <= len(name) <= _LONGEST_NAME:
        raise InvalidJob([f"name: must have 1 to {_LONGEST_NAME} characters"])
    next_at = next_after(cron, time_zone, now(connection))
    parameters = {
        "name": name,
        "cron": cron,
        "time_zone": time_zone,
        "job": None if job is None else json.dumps(dict(job)),
        "sweep": None if sweep is None else json.dumps(dict(sweep)),
        "overlap": str(overlap),
        "catch_up": str(catch_up),
        "next_at": next_at,
        "replace": replace,
    }
    if not fetch(connection, _SQL["add"], parameters):
        raise InvalidJob([f"name: there is a schedule {name!r} already; --replace replaces it"])
    return next_at


def schedules(connection: Connection, name: str | None = None) -> list[Schedule]:
    """All schedules, sorted by name, or the one with this name. Raises NotFound if none has it."""
    rows = fetch(connection, _SQL["list"], {"name": name})
    if name is not None and not rows:
        raise NotFound(f"There is no schedule {name!r}")
    return [_schedule(row) for row in rows]


def pause(connection: Connection, name: str, reason: str | None = None) -> None:
    """Stops a schedule from firing until it is resumed. Raises NotFound."""
    _changed(connection, "pause", name, reason=reason)


def resume(connection: Connection, name: str) -> datetime:
    """Lets a schedule fire again, and missed times as ``catch_up`` says. Returns its next time. Raises NotFound."""
    (found,) = schedules(connection, name)
    missed = due(found.cron, found.time_zone, found.next_at, now(connection), CatchUp(found.catch_up))
    next_at = missed.times[0] if missed.times and found.catch_up != CatchUp.NONE else missed.next_at
    _changed(connection, "resume", name, next_at=next_at)
    return next_at


def remove(connection: Connection, name: str) -> None:
    """Removes a schedule; the jobs that it enqueued stay. Raises NotFound."""
    _changed(connection, "remove", name)


def run(connection: Connection, name: str) -> UUID | None:
    """Enqueues its job or sweep now, in addition to its due times. Raises NotFound.

    Returns the job's or the group's id; None if the run is skipped: because of ``overlap``, or because other jobs
    have all unique keys of the sweep.
    """
    schedules(connection, name)
    made: UUID | None = fetch(connection, _SQL["run"], {"name": name})[0]["made"]
    return made


def now(connection: Connection) -> datetime:
    """The time on the database's clock."""
    at: datetime = fetch(connection, _SQL["now"], {})[0]["now"]
    return at


def _changed(connection: Connection, statement: str, name: str, **parameters: object) -> None:
    if not fetch(connection, _SQL[statement], {"name": name, **parameters}):
        raise NotFound(f"There is no schedule {name!r}")


def _schedule(row: Row) -> Schedule:
    values = {name: row[name] for name in _FIELDS}
    for name in ("job", "sweep"):
        if isinstance(values[name], str):
            values[name] = json.loads(values[name])
    return Schedule(**values)

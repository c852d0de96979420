"""Looking for jobs and groups: by one set of filters, by id, by its first digits, by name."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from itertools import islice
from typing import Any, Final
from uuid import UUID

import psycopg2
import psycopg2.extensions

from rythmiq_ray.errors import NotFound
from rythmiq_ray.model import Artifact, Group, Job, JobState, Phase, RemoteStatus
from rythmiq_ray.queue.connection import Row, fetch
from rythmiq_ray.queue.rows import finite, job_from_row, phase_of, state_of, texts_of
from rythmiq_ray.queue.sql import queries

_QUERIES: Final = queries("listing")
_SQL: Final = {name: text.replace(":filter", _QUERIES["filter"]) for name, text in _QUERIES.items()}
_ID_DIGITS: Final = 32
_LEAST_DIGITS: Final = 4
_PAGE: Final = 1_000
"""Rows that are in memory at once."""
MOST_COUNTED: Final = 1_000_000
"""Beyond this a total is not known: to count takes time for each row."""
_MOST_OF_A_STATE: Final = 20_000
_GROUP_FIELDS: Final = tuple(field.name for field in fields(Group))
_ARTIFACT_FIELDS: Final = tuple(field.name for field in fields(Artifact))
_SPECIAL: Final = frozenset("\\^$.|+(){}")

Connection = psycopg2.extensions.connection


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """Which jobs are meant; what is not given is not looked at, and several values of one kind are alternatives."""

    groups: Collection[UUID] | None = None
    ids: Collection[UUID] | None = None
    queues: Collection[str] | None = None
    users: Collection[str] | None = None
    states: Collection[JobState] | None = None
    name: str | None = None
    """A glob: ``*``, ``?`` and ``[…]``."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """All of them, with these values."""
    errors: Collection[str] | None = None
    """Error codes."""
    since: datetime | None = None
    """Enqueued at this time or later."""
    until: datetime | None = None
    """Enqueued before this time."""

    @property
    def empty(self) -> bool:
        """Whether every job is meant."""
        return self == Filter()

    def parameters(self) -> dict[str, Any]:
        """As the statements take them."""
        return {
            "groups": _list(self.groups),
            "ids": _list(self.ids),
            "queues": _list(self.queues),
            "users": _list(self.users),
            "states": _list(self.states),
            "name": None if self.name is None else pattern_of(self.name),
            "labels": json.dumps(dict(self.labels)) if self.labels else None,
            "errors": _list(self.errors),
            "since": self.since,
            "until": self.until,
        }


def pattern_of(glob: str) -> str:
    """A glob as a regular expression of Postgres that matches the whole text."""
    out = []
    at = 0
    while at < len(glob):
        character = glob[at]
        end = glob.find("]", at + 2) if character == "[" else -1
        if end > 0:
            inner = glob[at + 1 : end].replace("\\", "\\\\")
            out.append(f"[{'^' + inner[1:] if inner[0] == '!' else inner}]")
            at = end
        elif character in "*?":
            out.append(".*" if character == "*" else ".")
        else:
            out.append(f"\\{character}" if character in _SPECIAL or character == "[" else character)
        at += 1
    return f"^({''.join(out)})$"


def _list(values: Collection[Any] | None) -> list[Any] | None:
    return None if values is None else list(values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """How many jobs are in a state; of running ones, in a phase and as the service has them."""

    state: JobState
    phase: Phase | None
    started: bool
    """Whether the service has started the remote job."""
    jobs: int
    bounded: bool
    """There are so many at least."""


def jobs(
    connection: Connection, wanted: Filter | None = None, *, limit: int | None = 50, before: UUID | None = None
) -> Iterator[Job]:
    """The newest jobs first, of one group the last members; ``limit`` None: all. ``before``: only what comes behind it.

    A page is in memory at a time.
    """
    parameters = (wanted or Filter()).parameters()
    name = "jobs"
    if wanted is not None and wanted.groups is not None and len(wanted.groups) == 1:
        name, parameters["group_id"] = "jobs_of_group", next(iter(wanted.groups))
    elif wanted is not None and wanted.ids is not None and len(wanted.ids) > _PAGE:
        # A page at a time: each statement would look through all of them again.
        newest = sorted(wanted.ids, reverse=True)
        pages = (replace(wanted, ids=newest[at : at + _PAGE]) for at in range(0, len(newest), _PAGE))
        found = (job for page in pages for job in jobs(connection, page, limit=None, before=before))
        yield from islice(found, limit)
        return
    left = limit
    while left is None or left > 0:
        page = _PAGE if left is None else min(_PAGE, left)
        rows = fetch(connection, _SQL[name], {**parameters, "before": before, "limit": page})
        yield from map(job_from_row, rows)
        if len(rows) < page:
            return
        before = rows[-1]["job_id"]
        left = None if left is None else left - len(rows)


def ids(connection: Connection, wanted: Filter) -> dict[UUID, JobState]:
    """All that are meant, with their states, the oldest first."""
    rows = fetch(connection, _SQL["ids"], wanted.parameters())
    return {row["job_id"]: state_of(row["state"]) for row in rows}


def members(connection: Connection, groups: Collection[UUID], wanted: Filter | None = None) -> list[Job]:
    """The members of groups, in their order."""
    chosen = replace(wanted or Filter(), groups=list(groups))
    return [job_from_row(row) for row in fetch(connection, _SQL["members"], chosen.parameters())]


def total(connection: Connection, wanted: Filter, *, most: int = MOST_COUNTED) -> int | None:
    """How many jobs are meant; None where that is more than ``most``."""
    (row,) = fetch(connection, _SQL["total"], {**wanted.parameters(), "most": most + 1})
    return None if row["total"] > most else int(row["total"])


def counts(connection: Connection, wanted: Filter | None = None) -> list[Count]:
    """Jobs by state and phase; of each state but RUNNING at most 20,000 are counted."""
    parameters = {**(wanted or Filter()).parameters(), "most": _MOST_OF_A_STATE}
    return [
        Count(
            state=state_of(row["state"]),
            phase=phase_of(row["phase"]),
            started=RemoteStatus(row["remote_status"] or "").started,
            jobs=row["jobs"],
            bounded=row["state"] != JobState.RUNNING and row["jobs"] == _MOST_OF_A_STATE,
        )
        for row in fetch(connection, _SQL["counts"], parameters)
        if row["jobs"]
    ]


# ------------------------------------------------------------------------------------------------------ by id or name


@dataclass(frozen=True, slots=True)
class Found:
    """What an id, its first digits or a name stands for."""

    id: UUID
    is_job: bool


def find(connection: Connection, text: str | UUID) -> Found:
    """The job or group with this id, else with this name, else whose id alone starts with these digits.

    Of groups of one name the unfinished one is meant, else the newest. A number is also Camber's own, of a remote job.
    Raises NotFound, also where it could be several.
    """
    wanted = str(text)
    digits = wanted.replace("-", "").lower()
    is_id = _LEAST_DIGITS <= len(digits) <= _ID_DIGITS and not set(digits) - set("0123456789abcdef")
    rows = _of_digits(connection, digits) if is_id and len(digits) == _ID_DIGITS else []
    rows = rows or fetch(connection, _SQL["named"], {"name": wanted})
    if not rows and is_id:
        rows = _of_digits(connection, digits)
        if len(rows) > 1:
            raise NotFound(f"More than one job's or group's id starts with {wanted}: give more digits")
    if not rows and wanted.isascii() and wanted.isdigit() and len(wanted) < 19:
        rows = fetch(connection, _SQL["by_remote_id"], {"remote_id": int(wanted)})
    if not rows:
        raise NotFound(
            f"There is no job or group {wanted!r}: give an id, its first {_LEAST_DIGITS} digits or more, or a name"
        )
    return _found(rows[0])


def _of_digits(connection: Connection, digits: str) -> list[Row]:
    bounds = {"low": UUID(digits.ljust(_ID_DIGITS, "0")), "high": UUID(digits.ljust(_ID_DIGITS, "f"))}
    return fetch(connection, _SQL["between"], bounds)


def _found(row: Row) -> Found:
    return Found(row["id"], row["is_job"])


# ------------------------------------------------------------------------------------------------------------- groups


def group_from_row(row: Row) -> Group:
    """The group of a row of ``rythmiq.groups``."""
    return Group(**{name: row[name] for name in _GROUP_FIELDS} | {"labels": texts_of(row["labels"])})


def groups(
    connection: Connection,
    *,
    wanted: Filter | None = None,
    unfinished: bool | None = None,
    limit: int | None = 50,
    before: UUID | None = None,
) -> list[Group]:
    """The newest groups first. Of the filter, users, name, labels, since and until count."""
    parameters = {**_of_groups(wanted, unfinished), "limit": limit, "before": before}
    return [group_from_row(row) for row in fetch(connection, _SQL["groups"], parameters)]


def groups_total(connection: Connection, *, wanted: Filter | None = None, unfinished: bool | None = None) -> int:
    """How many groups there are."""
    (row,) = fetch(connection, _SQL["groups_total"], _of_groups(wanted, unfinished))
    return int(row["total"])


def _of_groups(wanted: Filter | None, unfinished: bool | None) -> dict[str, Any]:
    return {**(wanted or Filter()).parameters(), "unfinished": unfinished}


def groups_of(connection: Connection, ids: Collection[UUID]) -> list[Group]:
    """These groups, the oldest first; those that are not there are left out."""
    return [group_from_row(row) for row in fetch(connection, _SQL["groups_by_id"], {"ids": list(ids)})]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How a group has come along so far."""

    began_at: datetime | None
    """When the first attempt of a member began."""
    credits: float | None
    """What ended attempts cost, estimated."""
    priced: int
    """Members that this is the sum of."""


def pace(connection: Connection, group_id: UUID) -> Pace:
    """Reads every member of the group: some 50 ms for 100,000."""
    (row,) = fetch(connection, _SQL["pace"], {"group_id": group_id})
    return Pace(began_at=row["began_at"], credits=finite(row["credits"]), priced=row["priced"])


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorKind:
    """An error that members of a group ended with; those that differ in numbers alone are one."""

    error_code: str | None
    error_message: str | None
    """Of the example."""
    jobs: int
    job_id: UUID
    """One of them, as an example."""


def group_errors(connection: Connection, group_id: UUID, *, limit: int = 10) -> list[ErrorKind]:
    """The most frequent first."""
    return [ErrorKind(**row) for row in fetch(connection, _SQL["group_errors"], {"group_id": group_id, "limit": limit})]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job or a group is; a job is one member."""

    id: UUID
    state: JobState
    """Of a group: RUNNING while a member is unfinished, then FAILED or CANCELLED if one is, else SUCCEEDED."""
    members: int
    ended: int
    failed: int

    @property
    def done(self) -> bool:
        return self.state.finished


def progress(connection: Connection, found: Collection[Found]) -> dict[UUID, Progress]:
    """Of each that is still there. It costs a row for each, however many members a group has."""
    parameters = {
        "jobs": [item.id for item in found if item.is_job],
        "groups": [item.id for item in found if not item.is_job],
    }
    rows = fetch(connection, _SQL["ended"], parameters)
    return {
        row["id"]: Progress(row["id"], state_of(row["state"]), row["members"], row["ended"], row["failed"])
        for row in rows
    }


def stored(
    connection: Connection, ids: Sequence[UUID], name: str | None = None
) -> dict[UUID, list[tuple[int, Artifact]]]:
    """Of each job what its last attempt that left anything stored, as (attempt, artifact); of this name alone."""
    out: dict[UUID, list[tuple[int, Artifact]]] = {}
    for start in range(0, len(ids), _PAGE):
        page = list(ids[start : start + _PAGE])
        for row in fetch(connection, _SQL["stored"], {"ids": page, "name": name}):
            artifact = Artifact(**{key: row[key] for key in _ARTIFACT_FIELDS})
            out.setdefault(row["job_id"], []).append((row["attempt"], artifact))
    return out


def unserved(connection: Connection, queues: Collection[str]) -> list[str]:
    """Of these queues those that no living driver serves; none where no driver lives."""
    return [row["queue"] for row in fetch(connection, _SQL["unserved"], {"queues": list(queues)})]


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What a job waits for, or waited for."""

    id: UUID
    is_job: bool
    name: str | None
    needs: str
    """``succeeded`` or ``ended``."""
    satisfied: bool
    state: JobState | None
    """As it is now; None where it was deleted."""


def needs(connection: Connection, job_id: UUID) -> list[Need]:
    """What this job depends on, what it still waits for first."""
    rows = fetch(connection, _SQL["needs"], {"job_id": job_id})
    return [Need(**{**row, "state": None if row["state"] is None else state_of(row["state"])}) for row in rows]


# ------------------------------------------------------------------------------------------------- queues and drivers


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueState:
    """What is unfinished in a queue."""

    queue: str
    blocked: int
    queued: int
    retrying: int
    running: int
    oldest_s: float | None
    """For how long the oldest job that could be claimed has been so."""
    drivers: int
    """Living drivers that serve it."""


def queues(connection: Connection) -> list[QueueState]:
    """Queues with unfinished jobs, by name. It reads an index of all that wait: some 100 ms for a million."""
    return [QueueState(**{**row, "oldest_s": finite(row["oldest_s"])}) for row in fetch(connection, _SQL["queues"], {})]


@dataclass(frozen=True, kw_only=True, slots=True)
class DriverState:
    """A driver and what it holds."""

    driver_id: UUID
    hostname: str
    pid: int
    version: str
    started_at: datetime
    heartbeat_at: datetime
    lease_expires_at: datetime
    stopped_at: datetime | None
    queues: list[str] | None
    """None: all, or a driver of 0.1.0, which does not say."""
    alive: bool
    draining: bool
    """It ends what it has and takes nothing new."""
    submitting: int
    waiting: int
    collecting: int


def drivers(connection: Connection, *, gone_s: float = 3600.0) -> list[DriverState]:
    """Living drivers first; then those that hold jobs still, or that went within ``gone_s``."""
    return [DriverState(**row) for row in fetch(connection, _SQL["drivers"], {"gone_s": gone_s})]


def ahead(connection: Connection, job: Job, *, most: int = 10_000) -> int:
    """How many jobs of its queue go before it; ``most`` where there are as many or more."""
    parameters = {
        "queue": job.queue,
        "priority": job.priority,
        "next_visible_at": job.next_visible_at,
        "job_id": job.job_id,
        "most": most,
    }
    return int(fetch(connection, _SQL["ahead"], parameters)[0]["jobs"])

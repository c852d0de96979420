"""Finds jobs and groups: by filters, by id, by an id's first digits, by name."""

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
"""The number of rows in memory at once."""
MOST_COUNTED: Final = 1_000_000
"""Larger totals are not counted, because counting takes time for each row."""
_MOST_OF_A_STATE: Final = 20_000
_GROUP_FIELDS: Final = tuple(field.name for field in fields(Group))
_ARTIFACT_FIELDS: Final = tuple(field.name for field in fields(Artifact))
_SPECIAL: Final = frozenset("\\^$.|+(){}")

Connection = psycopg2.extensions.connection


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """A filter of jobs. A field that is None or empty is ignored; several values of one field are alternatives."""

    groups: Collection[UUID] | None = None
    ids: Collection[UUID] | None = None
    queues: Collection[str] | None = None
    users: Collection[str] | None = None
    states: Collection[JobState] | None = None
    name: str | None = None
    """A glob: ``*``, ``?`` and ``[…]``."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """The job must have all of these labels with these values."""
    errors: Collection[str] | None = None
    """Error codes."""
    since: datetime | None = None
    """Enqueued at this time or later."""
    until: datetime | None = None
    """Enqueued before this time."""

    @property
    def empty(self) -> bool:
        """Whether it matches every job."""
        return self == Filter()

    def parameters(self) -> dict[str, Any]:
        """The parameters of the SQL statements."""
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
    """How many jobs are in a state; running ones by phase, and by whether the service has started them."""

    state: JobState
    phase: Phase | None
    started: bool
    """Whether the service has started the remote job."""
    jobs: int
    bounded: bool
    """There may be more than ``jobs``."""


def jobs(
    connection: Connection, wanted: Filter | None = None, *, limit: int | None = 50, before: UUID | None = None
) -> Iterator[Job]:
    """Jobs, the newest first; of one group the last members first. ``limit`` None: all. ``before``: only jobs after it.

    Only one page is in memory at a time.
    """
    parameters = (wanted or Filter()).parameters()
    name = "jobs"
    if wanted is not None and wanted.groups is not None and len(wanted.groups) == 1:
        name, parameters["group_id"] = "jobs_of_group", next(iter(wanted.groups))
    elif wanted is not None and wanted.ids is not None and len(wanted.ids) > _PAGE:
        # By slices: each page would search all of them again.
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
    """All matching jobs with their states, the oldest first."""
    rows = fetch(connection, _SQL["ids"], wanted.parameters())
    return {row["job_id"]: state_of(row["state"]) for row in rows}


def members(connection: Connection, groups: Collection[UUID], wanted: Filter | None = None) -> list[Job]:
    """The members of groups, in their order."""
    chosen = replace(wanted or Filter(), groups=list(groups))
    return [job_from_row(row) for row in fetch(connection, _SQL["members"], chosen.parameters())]


def total(connection: Connection, wanted: Filter, *, most: int = MOST_COUNTED) -> int | None:
    """The number of matching jobs; None if it is more than ``most``."""
    (row,) = fetch(connection, _SQL["total"], {**wanted.parameters(), "most": most + 1})
    return None if row["total"] > most else int(row["total"])


def counts(connection: Connection, wanted: Filter | None = None) -> list[Count]:
    """Numbers of jobs by state and phase; of each state but RUNNING at most 20,000 are counted."""
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
    """The job or group that an id, its first digits or a name refers to."""

    id: UUID
    is_job: bool


def find(connection: Connection, text: str | UUID) -> Found:
    """The job or group with this id, else with this name, else the only one whose id starts with these digits.

    Of several groups with one name it is the unfinished one, else the newest. A number may also be the id of a remote
    job at Camber. Raises NotFound, also if several ids match.
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
    """Groups, the newest first. Only users, name, labels, since and until of the filter are used."""
    parameters = {**_of_groups(wanted, unfinished), "limit": limit, "before": before}
    return [group_from_row(row) for row in fetch(connection, _SQL["groups"], parameters)]


def groups_total(connection: Connection, *, wanted: Filter | None = None, unfinished: bool | None = None) -> int:
    """The number of matching groups."""
    (row,) = fetch(connection, _SQL["groups_total"], _of_groups(wanted, unfinished))
    return int(row["total"])


def _of_groups(wanted: Filter | None, unfinished: bool | None) -> dict[str, Any]:
    return {**(wanted or Filter()).parameters(), "unfinished": unfinished}


def groups_of(connection: Connection, ids: Collection[UUID]) -> list[Group]:
    """These groups, the oldest first; unknown ids are left out."""
    return [group_from_row(row) for row in fetch(connection, _SQL["groups_by_id"], {"ids": list(ids)})]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """The progress and cost of a group so far."""

    began_at: datetime | None
    """When the first attempt of a member began."""
    credits: float | None
    """The estimated cost of ended attempts."""
    priced: int
    """How many members this is the sum of."""


def pace(connection: Connection, group_id: UUID) -> Pace:
    """The pace of a group. Reads every member: about 50 ms for 100,000."""
    (row,) = fetch(connection, _SQL["pace"], {"group_id": group_id})
    return Pace(began_at=row["began_at"], credits=finite(row["credits"]), priced=row["priced"])


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorKind:
    """An error of members of a group; messages that differ only in numbers count as one."""

    error_code: str | None
    error_message: str | None
    """The message of the example."""
    jobs: int
    job_id: UUID
    """One of them, as an example."""


def group_errors(connection: Connection, group_id: UUID, *, limit: int = 10) -> list[ErrorKind]:
    """The errors of a group's members, the most frequent first."""
    return [ErrorKind(**row) for row in fetch(connection, _SQL["group_errors"], {"group_id": group_id, "limit": limit})]


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a job or group; a job counts as one member."""

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
    """The progress of each job or group that still exists. Reads one row for each, however many members it has."""
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
    """For each job the files of its last attempt that stored any, as (attempt, artifact); ``name``: only such files."""
    out: dict[UUID, list[tuple[int, Artifact]]] = {}
    for start in range(0, len(ids), _PAGE):
        page = list(ids[start : start + _PAGE])
        for row in fetch(connection, _SQL["stored"], {"ids": page, "name": name}):
            artifact = Artifact(**{key: row[key] for key in _ARTIFACT_FIELDS})
            out.setdefault(row["job_id"], []).append((row["attempt"], artifact))
    return out


def unserved(connection: Connection, queues: Collection[str]) -> list[str]:
    """The queues among these that no live driver serves; empty if no driver is alive."""
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
    """Its present state; None if it was deleted."""


def needs(connection: Connection, job_id: UUID) -> list[Need]:
    """The job's dependencies, unmet ones first."""
    rows = fetch(connection, _SQL["needs"], {"job_id": job_id})
    return [Need(**{**row, "state": None if row["state"] is None else state_of(row["state"])}) for row in rows]


# ------------------------------------------------------------------------------------------------- queues and drivers


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueState:
    """The unfinished jobs of a queue."""

    queue: str
    blocked: int
    queued: int
    retrying: int
    running: int
    oldest_s: float | None
    """How many seconds the oldest claimable job has been claimable."""
    drivers: int
    """Live drivers that serve the queue."""


def queues(connection: Connection) -> list[QueueState]:
    """Queues with unfinished jobs, by name. Reads an index of all waiting jobs: about 100 ms for a million."""
    return [QueueState(**{**row, "oldest_s": finite(row["oldest_s"])}) for row in fetch(connection, _SQL["queues"], {})]


@dataclass(frozen=True, kw_only=True, slots=True)
class DriverState:
    """A driver and the numbers of its jobs."""

    driver_id: UUID
    hostname: str
    pid: int
    version: str
    started_at: datetime
    heartbeat_at: datetime
    lease_expires_at: datetime
    stopped_at: datetime | None
    queues: list[str] | None
    """The queues that it serves; None: all, or a driver of 0.1.0, which does not report them."""
    alive: bool
    draining: bool
    """It finishes its jobs and claims no more."""
    submitting: int
    waiting: int
    collecting: int


def drivers(connection: Connection, *, gone_s: float = 3600.0) -> list[DriverState]:
    """Live drivers first; then drivers that still have jobs, or that ended within the last ``gone_s`` seconds."""
    return [DriverState(**row) for row in fetch(connection, _SQL["drivers"], {"gone_s": gone_s})]


def ahead(connection: Connection, job: Job, *, most: int = 10_000) -> int:
    """How many jobs of its queue are ahead of it; ``most`` if there are at least as many."""
    parameters = {
        "queue": job.queue,
        "priority": job.priority,
        "next_visible_at": job.next_visible_at,
        "job_id": job.job_id,
        "most": most,
    }
    return int(fetch(connection, _SQL["ahead"], parameters)[0]["jobs"])

"""Queries of the console and the report, beside the listings. Each is bounded, however large the tables are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import psycopg2.extensions

from rythmiq_ray.model import Group, Job, JobState
from rythmiq_ray.queue import listing
from rythmiq_ray.queue.connection import fetch
from rythmiq_ray.queue.rows import finite, job_from_row, state_of, texts_of
from rythmiq_ray.queue.sql import queries

_FILTER: Final = queries("listing")["filter"]
_SQL: Final = {name: text.replace(":filter", _FILTER) for name, text in queries("console").items()}

Connection = psycopg2.extensions.connection

MOST_ENDS: Final = 250_000
"""The most ended jobs that are counted of each final state: about 60 ms."""
MOST_QUEUED: Final = 10_000
"""The most jobs that are counted of each state of a queue, and of BLOCKED jobs in all."""
_MOST_QUEUES: Final = 200
WINDOW: Final = 30_000
"""The most rows that are read for one page of jobs if no index selects the matching ones: about 50 ms."""
FEW: Final = 20_000
"""Up to this many jobs of a state are read by that state's index."""
MOST_POINTS: Final = 20_000
"""Members of a group that a chart shows."""
_GLOB: Final = frozenset("*?[")
_ODD_AFTER: Final = timedelta(days=1)
_SLACK: Final = timedelta(hours=1)
"""How far the enqueuer's clock, which an id contains, may differ from the database's, which the row's times have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ends:
    """How many jobs ended in a step of time, and how."""

    at: datetime
    """The start of the step."""
    state: JobState
    jobs: int


def ends(connection: Connection, *, since: datetime, step_s: float, most: int = MOST_ENDS) -> list[Ends]:
    """Jobs that ended since ``since``, by steps of ``step_s`` seconds; of each final state the newest ``most``."""
    rows = fetch(connection, _SQL["ends"], {"since": since, "step_s": step_s, "most": most})
    return [
        Ends(at=datetime.fromtimestamp(row["step"] * step_s, UTC), state=state_of(row["state"]), jobs=row["jobs"])
        for row in rows
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueEnds:
    """How many jobs of a queue ended in a step of time, and how."""

    step: int
    queue: str
    state: JobState
    jobs: int


def ends_by_queue(
    connection: Connection, *, steps: int, step_s: int, most: int = MOST_ENDS
) -> tuple[int, list[QueueEnds]]:
    """The number of the step that goes on, and the ends in it and in so many before it; of each way ``most``.

    Steps are counted from 1970, by the database's clock. It reads a row for each end: some 100 ms for 50,000.
    """
    rows = fetch(connection, _SQL["ends_by_queue"], {"steps": steps, "step_s": step_s, "most": most})
    found = [
        QueueEnds(step=row["step"], queue=row["queue"], state=state_of(row["state"]), jobs=row["jobs"])
        for row in rows
        if row["jobs"]
    ]
    return rows[0]["now"], found


def errors(
    connection: Connection, *, since: datetime, most: int = 5_000, limit: int = 10, alike: bool = False
) -> list[listing.ErrorKind]:
    """Errors of jobs that FAILED since then, of the newest ``most``. ``alike``: also by message, numbers ignored."""
    parameters = {"since": since, "most": most, "limit": limit}
    rows = fetch(connection, _SQL["alike_errors" if alike else "errors"], parameters)
    return [listing.ErrorKind(**row) for row in rows]


@dataclass(frozen=True, kw_only=True, slots=True)
class Holdup:
    """Running jobs with the same reason to wait, or that the service has not started yet."""

    reason: str | None
    pending: bool
    jobs: int
    since: datetime | None
    job_id: UUID
    """One of these jobs."""


def holdups(connection: Connection) -> list[Holdup]:
    """Running jobs by their reason to wait; it is None for jobs without one."""
    return [
        Holdup(
            reason=row["wait_reason"],
            pending=bool(row["pending"]),
            jobs=row["jobs"],
            since=row["since"],
            job_id=row["job_id"],
        )
        for row in fetch(connection, _SQL["running"], {})
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Unstored:
    """Attempts whose files are kept at the service, because they could not be stored."""

    attempts: int
    until: datetime | None
    """When the first of them will be removed."""
    job_id: UUID | None


def unstored(connection: Connection, *, most: int = 1_000) -> Unstored:
    """How many there are, up to ``most``."""
    (row,) = fetch(connection, _SQL["unstored"], {"most": most})
    return Unstored(**row)


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueSummary:
    """The unfinished jobs of a queue; at most :data:`MOST_QUEUED` of each state are counted."""

    queue: str
    blocked: int
    queued: int
    retrying: int
    running: int
    pending: int
    """Running jobs that the service has not started."""
    oldest_s: float | None
    """How many seconds the oldest claimable job has been claimable, among those counted."""
    drivers: int
    """Live drivers that serve the queue."""

    @property
    def bounded(self) -> bool:
        """Whether more wait than were counted."""
        return self.queued + self.retrying >= MOST_QUEUED


def queues(connection: Connection) -> list[QueueSummary]:
    """Queues with unfinished jobs, by name."""
    parameters = {"most": MOST_QUEUED, "queues": _MOST_QUEUES}
    return [
        QueueSummary(**{**row, "oldest_s": finite(row["oldest_s"])})
        for row in fetch(connection, _SQL["queues"], parameters)
    ]


# ------------------------------------------------------------------------------------------------------ a page of jobs


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A page of matching jobs, the newest first."""

    jobs: list[Job]
    next: UUID | None
    """The job after which the next page begins; None if there is none."""
    searched: int | None
    """How many rows were read, if older ones remain unread; None if the page is full or all rows were read."""


def page(
    connection: Connection,
    wanted: listing.Filter,
    *,
    limit: int,
    before: UUID | None = None,
    counts: Collection[listing.Count] | None = None,
    window: int = WINDOW,
) -> Page:
    """A page of jobs in bounded time, whatever the filter.

    ``counts``: all jobs by state, from :func:`listing.counts`; states with few jobs are read by their index. If no
    index selects the matching jobs, ``window`` rows are read, and the next page begins after them.
    """
    if (wanted.groups is not None and len(wanted.groups) == 1) or wanted.ids is not None:
        jobs = list(listing.jobs(connection, wanted, limit=limit + 1, before=before))
        return _paged(jobs, limit)
    parameters = {**wanted.parameters(), "before": before, "limit": limit + 1, "window": window}
    if wanted.states is not None and counts is not None and _few(wanted.states, counts):
        return _paged([job_from_row(row) for row in fetch(connection, _SQL["few"], parameters)], limit)
    those = "all"
    if wanted.users is not None and len(wanted.users) == 1:
        those, parameters["user"] = "user", next(iter(wanted.users))
    elif wanted.name is not None and not _GLOB & set(wanted.name):
        those, parameters["exact"] = "name", wanted.name
    elif wanted.since is not None or wanted.until is not None:
        those = "time"
        parameters |= _bounds(wanted)
    statement = "window_of_time" if those == "time" else "window"
    jobs = [job_from_row(row) for row in fetch(connection, _of(statement, those), parameters)]
    if len(jobs) > limit:
        return _paged(jobs, limit)
    end = fetch(connection, _of("window_end", those), parameters)
    return Page(jobs=jobs, next=end[0]["job_id"] if end else None, searched=window if end else None)


def _of(statement: str, those: str) -> str:
    """The statement restricted to rows that an index selects."""
    return _SQL[statement].replace(":those", _SQL[f"those_of_{those}"])


def _paged(jobs: list[Job], limit: int) -> Page:
    more = len(jobs) > limit
    return Page(jobs=jobs[:limit], next=jobs[limit - 1].job_id if more else None, searched=None)


def _few(states: Collection[JobState], counts: Collection[listing.Count]) -> bool:
    found = [count for count in counts if count.state in states]
    return not any(count.bounded for count in found) and sum(count.jobs for count in found) <= FEW


def _bounds(wanted: listing.Filter, now: datetime | None = None) -> dict[str, UUID]:
    now = now or datetime.now(UTC)
    return {
        "odd": id_at(now + _ODD_AFTER),
        "until_id": id_at(now + _ODD_AFTER if wanted.until is None else wanted.until + _SLACK),
        "since_id": UUID(int=0) if wanted.since is None else id_at(wanted.since - _SLACK),
    }


def id_at(time: datetime) -> UUID:
    """The smallest UUID of version 7 of that time."""
    return UUID(int=max(0, int(time.timestamp() * 1000)) << 80)


# ------------------------------------------------------------------------------------------------------------- a group


@dataclass(frozen=True, slots=True)
class Point:
    """A member of a group, as a chart shows it."""

    job_id: UUID
    place: int
    state: JobState
    name: str | None
    params: Mapping[str, str]
    credits: float | None
    error_code: str | None
    seconds: float | None
    """How many seconds its command ran; None before its end."""


def points(connection: Connection, group_id: UUID, *, most: int = MOST_POINTS) -> list[Point]:
    """The first ``most`` members of a group, in their order."""
    return [
        Point(
            row["job_id"],
            row["group_index"] or 0,
            state_of(row["state"]),
            row["name"],
            texts_of(row["params"]) if row["params"] else {},
            finite(row["cost_credits"]),
            row["error_code"],
            row["seconds"],
        )
        for row in fetch(connection, _SQL["points"], {"group_id": group_id, "most": most})
    ]


def running_of(connection: Connection, groups: Collection[UUID]) -> dict[UUID, int]:
    """How many members of each of these groups run; a group of which none does is left out."""
    rows = fetch(connection, _SQL["running_of"], {"groups": list(groups)}) if groups else []
    return {row["group_id"]: row["jobs"] for row in rows}


def member(connection: Connection, group_id: UUID, place: int) -> UUID | None:
    """The member at a place; None if there is none."""
    rows = fetch(connection, _SQL["member"], {"group_id": group_id, "place": place})
    return rows[0]["job_id"] if rows else None


def file_names(connection: Connection, group_id: UUID, *, most_bytes: int) -> list[str]:
    """Names of files up to ``most_bytes`` that some members stored."""
    rows = fetch(connection, _SQL["file_names"], {"group_id": group_id, "bytes": most_bytes})
    return list(dict.fromkeys(row["name"] for row in rows if row["small"]))


def groups_since(connection: Connection, since: datetime, *, limit: int) -> list[Group]:
    """Groups created since then, those with the most members first."""
    rows = fetch(connection, _SQL["groups_of_time"], {"since": since, "limit": limit})
    return [listing.group_from_row(row) for row in rows]


# ---------------------------------------------------------------------------------------------------------------- cost


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """Jobs of one user in one queue that ended in a period."""

    user_id: str | None
    queue: str
    jobs: int
    failed: int
    credits: float
    """Estimated cost; jobs without a known price count as 0."""


def spent(connection: Connection, since: datetime, until: datetime) -> list[Spent]:
    """Jobs that ended from ``since`` up to ``until``, exclusive. Reads each of them: some seconds for a million."""
    rows = fetch(connection, _SQL["day"], {"since": since, "until": until})
    return [Spent(**{**row, "credits": finite(row["credits"]) or 0.0}) for row in rows]

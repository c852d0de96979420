"""Reads for the screens, in the background. Each read is a few statements with limits, on one connection."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

from rythmiq_ray.console import filters
from rythmiq_ray.console.database import Database
from rythmiq_ray.console.filters import ParsedFilter
from rythmiq_ray.console.why import Reason, Why
from rythmiq_ray.errors import DatabaseUnavailable, NotFound
from rythmiq_ray.model import Artifact, Group, Job
from rythmiq_ray.queue import console, control, inspect, listing
from rythmiq_ray.queue.control import Limit, Rights
from rythmiq_ray.queue.listing import Count, DriverState, ErrorKind, Filter, Need, Pace
from rythmiq_ray.top.rates import Rates, Throughput

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

PAGE: Final = 200
"""The most rows of a table."""
_COUNTED_S: Final = 5.0
"""How long the counts of all jobs are cached; they cost most."""
_MOST_FILES: Final = 500


@dataclass(frozen=True, kw_only=True)
class Head:
    """What is shown above every table."""

    at: datetime
    counts: Sequence[Count]
    limits: Sequence[Limit]
    throughput: Throughput
    rights: Rights


@dataclass(frozen=True, kw_only=True)
class Queues:
    """Queues with unfinished jobs, with recently ended jobs, or with a limit of their own."""

    head: Head
    asked: ParsedFilter
    queues: Sequence[console.QueueSummary]


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The newest groups."""

    head: Head
    asked: ParsedFilter
    groups: Sequence[Group]
    running: Mapping[UUID, int]
    more: bool


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """A page of jobs."""

    head: Head
    asked: ParsedFilter
    page: console.Page
    groups: Mapping[UUID, str | None]
    before: UUID | None


@dataclass(frozen=True, kw_only=True)
class Drivers:
    """Live drivers, those that ended not long ago, and those that still hold jobs."""

    head: Head
    asked: ParsedFilter
    drivers: Sequence[DriverState]


@dataclass(frozen=True, kw_only=True)
class JobDetails:
    """All about a job."""

    at: datetime
    job: Job
    attempts: Sequence[inspect.Attempt]
    files: Sequence[tuple[int, Artifact]]
    needs: Sequence[Need]
    group: Group | None
    reasons: Sequence[Reason]


@dataclass(frozen=True, kw_only=True)
class GroupDetails:
    """All about a group, and its members, the last one first."""

    at: datetime
    group: Group
    counts: Sequence[Count]
    pace: Pace
    errors: Sequence[ErrorKind]
    page: console.Page
    limit: Limit | None


@dataclass
class _Kept:
    """Counts that are cached for a while."""

    until: float = 0.0
    counts: Sequence[Count] = field(default_factory=list)


class Source:
    """Reads the data of screens. Not thread-safe. Reads raise DatabaseUnavailable, NotFound and psycopg2's errors."""

    def __init__(self, database: Database, why: Why) -> None:
        self.database = database
        self._why = why
        self._rates = Rates()
        self._kept = _Kept()
        self._rights: Rights | None = None

    @property
    def rights(self) -> Rights | None:
        """What the login may do; None until it was read."""
        return self._rights

    def forget(self) -> None:
        """Drops the caches, after an action or when the connection may lead to another server."""
        self._kept.until = 0.0
        self._rights = None

    def driver(self, driver_id: UUID) -> DriverState:
        with self._reading() as connection:
            found = {each.driver_id: each for each in listing.drivers(connection)}
        if driver_id not in found:
            raise NotFound("This driver is gone.")
        return found[driver_id]

    def queues(self, given: Sequence[tuple[str, str]]) -> Queues:
        with self._reading() as connection:
            asked = filters.read(given, connection)
            head = self._head(connection)
            found = {each.queue: each for each in console.queues(connection)}
        names = {*found, *head.throughput.queues, *(each.name for each in head.limits if each.scope == "queue")}
        wanted = asked.values("queue")
        return Queues(
            head=head,
            asked=asked,
            queues=[found.get(name) or _idle(name) for name in sorted(names) if not wanted or name in wanted],
        )

    def groups(self, given: Sequence[tuple[str, str]]) -> Groups:
        with self._reading() as connection:
            asked = filters.read(given, connection)
            head = self._head(connection)
            if asked.filter.groups is not None:
                found = listing.groups_of(connection, asked.filter.groups)
            else:
                found = listing.groups(connection, wanted=asked.filter, limit=PAGE + 1)
            running = console.running_of(connection, [group.group_id for group in found[:PAGE]])
        return Groups(head=head, asked=asked, groups=found[:PAGE], running=running, more=len(found) > PAGE)

    def jobs(self, given: Sequence[tuple[str, str]], before: UUID | None) -> Jobs:
        with self._reading() as connection:
            asked = filters.read(given, connection)
            head = self._head(connection)
            page = console.page(connection, asked.filter, limit=PAGE, before=before, counts=head.counts)
            groups = listing.groups_of(connection, {job.group_id for job in page.jobs if job.group_id is not None})
        names = {group.group_id: group.name for group in groups}
        return Jobs(head=head, asked=asked, page=page, groups=names, before=before)

    def drivers(self, given: Sequence[tuple[str, str]]) -> Drivers:
        with self._reading() as connection:
            asked = filters.read(given, connection)
            head = self._head(connection)
            found = listing.drivers(connection)
        wanted = set(asked.values("queue"))
        shown = [each for each in found if not wanted or each.queues is None or wanted & set(each.queues)]
        return Drivers(head=head, asked=asked, drivers=shown)

    def job(self, job_id: UUID) -> JobDetails:
        with self._reading() as connection:
            job = inspect.job(connection, job_id)
            group = None
            if job.group_id is not None:
                group = next(iter(listing.groups_of(connection, [job.group_id])), None)
            return JobDetails(
                at=datetime.now(UTC),
                job=job,
                attempts=inspect.attempts(connection, job_id),
                files=inspect.artifacts(connection, job_id)[:_MOST_FILES],
                needs=listing.needs(connection, job_id),
                group=group,
                reasons=list(self._why(connection, job)),
            )

    def group(self, group_id: UUID) -> GroupDetails:
        members = Filter(groups=[group_id])
        with self._reading() as connection:
            found = listing.find(connection, group_id)
            (group,) = listing.groups_of(connection, [found.id])
            limits = control.limits(connection)
            return GroupDetails(
                at=datetime.now(UTC),
                group=group,
                counts=listing.counts(connection, members),
                pace=listing.pace(connection, group_id),
                errors=listing.group_errors(connection, group_id, limit=3),
                page=console.page(connection, members, limit=PAGE),
                limit=paused_of(limits, "group", str(group_id)),
            )

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with self.database.read() as connection:
                yield connection
        except DatabaseUnavailable:
            self.forget()
            raise

    def _head(self, connection: Connection) -> Head:
        if self._rights is None:
            self._rights = control.rights(connection)
        if time.monotonic() > self._kept.until:
            self._kept = _Kept(time.monotonic() + _COUNTED_S, listing.counts(connection))
        return Head(
            at=datetime.now(UTC),
            counts=self._kept.counts,
            limits=control.limits(connection),
            throughput=self._rates.read(connection),
            rights=self._rights,
        )


def _idle(name: str) -> console.QueueSummary:
    return console.QueueSummary(
        queue=name, blocked=0, queued=0, retrying=0, running=0, pending=0, oldest_s=None, drivers=0
    )


def paused_of(limits: Iterable[Limit], scope: str, name: str) -> Limit | None:
    """The pause of a scope; None if it is not paused."""
    return next((each for each in limits if each.scope == scope and each.name == name and each.paused), None)

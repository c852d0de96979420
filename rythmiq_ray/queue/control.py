"""Limits, pauses, budgets and costs for all drivers together, set and read while they run."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from rythmiq_ray.errors import InvalidJob, NotFound
from rythmiq_ray.model import EACH_USER, Job
from rythmiq_ray.queue import listing
from rythmiq_ray.queue.connection import fetch
from rythmiq_ray.queue.sql import queries

_SQL: Final = queries("control")
_MOST: Final = 2**31 - 1
SCOPES: Final = ("account", "queue", "user", "group")

Connection = psycopg2.extensions.connection


@dataclass(frozen=True, slots=True)
class Scope:
    """What a limit applies to: the account, a queue, a user (``*``: each user), or a group by its id."""

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """A row of ``rythmiq.limits``: the limits of a scope, or one of its budgets."""

    scope: str
    name: str
    label: str
    """The name to show; for a group its name, not its id."""
    max_running: int | None
    per_minute: int | None
    """The most attempts that may begin within any minute."""
    credits: float | None
    period: str | None
    """``day``, ``month`` (both in UTC) or ``all``."""
    paused: bool
    cancel_running: bool
    reason: str | None
    set_by: str
    set_at: datetime
    spent: float | None
    """Credits spent in this period, as a driver last computed them."""
    over: list[str]
    """The names that have reached the budget."""
    running: int
    """Jobs of the scope that run now; for ``*`` those of the user with the most."""

    @property
    def shown(self) -> str:
        return str(Scope(self.scope, self.label))

    @property
    def closed(self) -> str | None:
        """Why no new attempt may begin in the scope, in words; None if it is open, or only full."""
        if self.paused:
            return f"{self.shown} was paused by {self.set_by}" + (f" ({self.reason})" if self.reason else "")
        if self.over and self.credits is not None:
            spent = f"{self.spent or 0:,.2f} of {self.credits:,.2f} credits ({self.period})"
            return f"the budget of {self.shown} is reached: {spent}"
        return None

    def holds_for(self, job: Job) -> bool:
        """Whether the limit applies to the job: it is in the scope; for a budget of each user, its user is over."""
        match self.scope:
            case "account":
                return True
            case "queue":
                return self.name == job.queue
            case "user" if self.name == EACH_USER:
                return self.paused or not {job.user_id or "", EACH_USER}.isdisjoint(self.over)
            case "user":
                return self.name == (job.user_id or "")
        return self.name == str(job.group_id)


_LIMIT_FIELDS: Final = tuple(field.name for field in fields(Limit))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The cost of one day, user, queue, group or value of a label."""

    key: str | None
    """None: jobs in no group, or without that label."""
    credits: float
    """Estimated cost, running jobs included."""
    jobs: int
    running_credits: float
    """The part of it that running jobs have cost so far."""


def scope_of(connection: Connection, text: str) -> Scope:
    """Parses ``account``, ``queue:NAME``, ``user:NAME``, ``user:*`` or ``group:ID``; a group also by name.

    Raises InvalidJob if it is none of these, and NotFound for an unknown group.
    """
    kind, _, name = text.partition(":")
    if kind not in SCOPES or (kind == "account") == bool(name):
        raise InvalidJob([f"scope: {text!r} is not a scope; give account, queue:NAME, user:NAME, user:* or group:ID"])
    if kind == "group":
        found = listing.find(connection, name)
        if found.is_job:
            raise NotFound(f"{name} is a job, not a group")
        name = str(found.id)
    return Scope(kind, name)


def limits(connection: Connection) -> list[Limit]:
    """All limits, pauses and budgets."""
    return [Limit(**{name: row[name] for name in _LIMIT_FIELDS}) for row in fetch(connection, _SQL["limits"], {})]


def closed(connection: Connection, jobs: Collection[Job]) -> list[str]:
    """Why no new attempt may begin for some of these jobs: pauses, and budgets that are reached."""
    waiting = [job for job in jobs if not job.state.finished]
    found = limits(connection) if waiting else []
    return [limit.closed for limit in found if limit.closed and any(limit.holds_for(job) for job in waiting)]


def limits_of(connection: Connection, job: Job) -> list[tuple[Limit, bool]]:
    """The limits that apply to a job, each with whether it has no room now."""
    group_id = None if job.group_id is None else str(job.group_id)
    asked = {"queue": job.queue, "user_id": job.user_id, "group_id": group_id}
    full = {(row["scope"], row["name"]) for row in fetch(connection, _SQL["rooms"], asked)}
    user = job.user_id or ""
    mine = {("account", ""), ("queue", job.queue), ("user", user), ("user", EACH_USER), ("group", group_id)}
    found = []
    for limit in limits(connection):
        if (limit.scope, limit.name) in mine:
            name = user if limit.name == EACH_USER else limit.name
            shut = limit.closed is not None and limit.holds_for(job)
            found.append((limit, shut or (limit.scope, name) in full))
    return found


def set_limit(
    connection: Connection, scope: Scope, *, max_running: int | None = None, per_minute: int | None = None
) -> None:
    """Limits the jobs of a scope that run at once, and the attempts that begin in a minute; None changes nothing."""
    for name, value in (("max_running", max_running), ("per_minute", per_minute)):
        if value is not None and value > _MOST:
            raise InvalidJob([f"{name}: must be at most {_MOST:,}"])
    _call(connection, "set_limit", scope, max_running=max_running, per_minute=per_minute)


def unset_limit(connection: Connection, scope: Scope) -> None:
    """Removes a scope's limits; a pause and budgets stay. Raises NotFound."""
    if not _call(connection, "unset_limit", scope)["found"]:
        raise NotFound(f"{scope} has no limit")


def set_budget(
    connection: Connection, scope: Scope, credits_: float, period: str, *, cancel_running: bool = False
) -> None:
    """Limits the credits that a scope may spend in a ``day``, a ``month`` or in ``all``; one of each may be set."""
    _call(connection, "set_budget", scope, credits=credits_, period=period, cancel_running=cancel_running)


def unset_budget(connection: Connection, scope: Scope, period: str | None = None) -> None:
    """Removes a scope's budgets, or the one of that period. Raises NotFound."""
    if not _call(connection, "unset_budget", scope, period=period)["found"]:
        raise NotFound(f"{scope} has no such budget")


def pause(connection: Connection, scope: Scope, *, reason: str | None = None, cancel_running: bool = False) -> int:
    """Stops new submits in a scope; returns how many running jobs were asked to end."""
    jobs: int = _call(connection, "pause", scope, reason=reason, cancel_running=cancel_running)["jobs"]
    return jobs


def resume(connection: Connection, scope: Scope) -> None:
    """Ends a pause. Raises NotFound if there is none."""
    if not _call(connection, "resume", scope)["found"]:
        raise NotFound(f"{scope} is not paused")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rights:
    """What the login of a connection may do. A function may still refuse: it looks at whose the thing is."""

    login: str
    cancel: bool
    retry: bool
    pause: bool
    """And resume."""
    drain: bool


def rights(connection: Connection) -> Rights:
    """Asks Postgres."""
    (row,) = fetch(connection, _SQL["rights"], {})
    return Rights(**row)


def drain(connection: Connection, driver_id: UUID) -> None:
    """Tells a driver to finish its jobs, claim no more, and exit. Raises NotFound if it is not alive."""
    if not fetch(connection, _SQL["drain"], {"driver_id": driver_id})[0]["found"]:
        raise NotFound(f"No live driver has the id {driver_id}")


def cost(
    connection: Connection,
    *,
    by: str = "day",
    label: str | None = None,
    since: date | None = None,
    until: date | None = None,
    wanted: listing.Filter | None = None,
) -> list[Cost]:
    """Credits spent, by ``day`` (in UTC), ``user``, ``queue``, ``group``, ``label`` or ``all``.

    Only users, queues, groups and labels of the filter are used. Pruned jobs are included.
    """
    asked = wanted or listing.Filter()
    parameters = {
        "by": by,
        "label": label,
        "since": since,
        "until": until,
        "users": _list(asked.users),
        "queues": _list(asked.queues),
        "groups": _list(asked.groups),
        "labels": json.dumps(dict(asked.labels)) if asked.labels else None,
    }
    return [Cost(**row) for row in fetch(connection, _SQL["cost"], parameters)]


def _list(values: Collection[Any] | None) -> list[Any] | None:
    return None if values is None else list(values)


def _call(connection: Connection, statement: str, scope: Scope, **parameters: object) -> dict[str, Any]:
    with _refusals():
        return dict(fetch(connection, _SQL[statement], {"scope": scope.kind, "name": scope.name, **parameters})[0])


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except psycopg2.errors.InvalidParameterValue as error:
        raise InvalidJob([str(error.diag.message_primary)]) from None

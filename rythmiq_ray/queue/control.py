"""Limits, pauses, budgets and costs of all drivers together: set and read while they run."""

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
    """What a limit holds for: the account, a queue, a user (``*``: each one), or a group by its id."""

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """A row of ``rythmiq.limits``: of a scope, or of one of its budgets."""

    scope: str
    name: str
    label: str
    """The name; of a group its own name rather than its id."""
    max_running: int | None
    per_minute: int | None
    """Attempts that may begin within any minute."""
    credits: float | None
    period: str | None
    """``day``, ``month`` (both in UTC) or ``all``."""
    paused: bool
    cancel_running: bool
    reason: str | None
    set_by: str
    set_at: datetime
    spent: float | None
    """Credits in this period, when a driver looked last."""
    over: list[str]
    """Names that have reached the budget."""
    running: int
    """Jobs that run in the scope now; of each user's the most."""

    @property
    def shown(self) -> str:
        return str(Scope(self.scope, self.label))

    @property
    def closed(self) -> str | None:
        """Why nothing new is begun in it, in words; None where it is open, or merely full."""
        if self.paused:
            return f"{self.shown} was paused by {self.set_by}" + (f" ({self.reason})" if self.reason else "")
        if self.over and self.credits is not None:
            spent = f"{self.spent or 0:,.2f} of {self.credits:,.2f} credits ({self.period})"
            return f"the budget of {self.shown} is reached: {spent}"
        return None

    def holds_for(self, job: Job) -> bool:
        """Whether the job is in its scope, and, of each user's budget, its user is over."""
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
    """What was spent for one day, user, queue, group or value of a label."""

    key: str | None
    """None: in no group, or without that label."""
    credits: float
    """Estimated; with what runs."""
    jobs: int
    running_credits: float
    """Of it what runs has cost so far."""


def scope_of(connection: Connection, text: str) -> Scope:
    """The scope that ``account``, ``queue:NAME``, ``user:NAME``, ``user:*`` or ``group:ID`` is; a group also by name.

    Raises InvalidJob for what is none, and NotFound for a group that is not there.
    """
    kind, _, name = text.partition(":")
    if kind not in SCOPES or (kind == "account") == bool(name):
        raise InvalidJob([f"scope: {text!r} is none; give account, queue:NAME, user:NAME, user:* or group:ID"])
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
    """Why nothing new is begun of some of these jobs: what is paused, and which budgets are reached."""
    waiting = [job for job in jobs if not job.state.finished]
    found = limits(connection) if waiting else []
    return [limit.closed for limit in found if limit.closed and any(limit.holds_for(job) for job in waiting)]


def limits_of(connection: Connection, job: Job) -> list[tuple[Limit, bool]]:
    """Those that hold for a job, each with whether there is no room in it now."""
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
    """Bounds the jobs of a scope that run at once, and the attempts that begin in a minute; None leaves it as it is."""
    for name, value in (("max_running", max_running), ("per_minute", per_minute)):
        if value is not None and value > _MOST:
            raise InvalidJob([f"{name}: must be {_MOST:,} at most"])
    _call(connection, "set_limit", scope, max_running=max_running, per_minute=per_minute)


def unset_limit(connection: Connection, scope: Scope) -> None:
    """Takes a scope's limits away; a pause and budgets stay. Raises NotFound."""
    if not _call(connection, "unset_limit", scope)["found"]:
        raise NotFound(f"{scope} has no limit")


def set_budget(
    connection: Connection, scope: Scope, credits_: float, period: str, *, cancel_running: bool = False
) -> None:
    """Bounds what a scope may spend in a ``day``, a ``month`` or in ``all``; one of each may be set."""
    _call(connection, "set_budget", scope, credits=credits_, period=period, cancel_running=cancel_running)


def unset_budget(connection: Connection, scope: Scope, period: str | None = None) -> None:
    """Takes away a scope's budgets, or the one of that period. Raises NotFound."""
    if not _call(connection, "unset_budget", scope, period=period)["found"]:
        raise NotFound(f"{scope} has no such budget")


def pause(connection: Connection, scope: Scope, *, reason: str | None = None, cancel_running: bool = False) -> int:
    """Lets nothing new of a scope be submitted; returns how many running jobs were asked to end."""
    jobs: int = _call(connection, "pause", scope, reason=reason, cancel_running=cancel_running)["jobs"]
    return jobs


def resume(connection: Connection, scope: Scope) -> None:
    """Ends a pause. Raises NotFound where there is none."""
    if not _call(connection, "resume", scope)["found"]:
        raise NotFound(f"{scope} is not paused")


def drain(connection: Connection, driver_id: UUID) -> None:
    """Lets a driver end what it has, take nothing new, and go. Raises NotFound for one that does not live."""
    if not fetch(connection, _SQL["drain"], {"driver_id": driver_id})[0]["found"]:
        raise NotFound(f"No living driver has the id {driver_id}")


def cost(
    connection: Connection,
    *,
    by: str = "day",
    label: str | None = None,
    since: date | None = None,
    until: date | None = None,
    wanted: listing.Filter | None = None,
) -> list[Cost]:
    """What was spent, by ``day``, ``user``, ``queue``, ``group``, ``label`` or ``all``, days being of UTC.

    Of the filter users, queues, groups and labels count. It outlives the jobs themselves.
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

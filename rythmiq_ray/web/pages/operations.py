"""Pages: queues and limits, drivers, schedules, cost."""

from __future__ import annotations

from functools import partial
from typing import Final
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from rythmiq_ray.console.actions import Target, of_scope
from rythmiq_ray.queue import console as looks
from rythmiq_ray.queue import control, listing
from rythmiq_ray.queue import schedules as kept
from rythmiq_ray.web.pages.overview import COST_S, cost_chart, spent_by_day
from rythmiq_ray.web.render import page
from rythmiq_ray.web.state import console_of

MOST_SHARES: Final = 50
"""The most users, queues or groups that are shown, the most expensive first."""


def queues(request: Request) -> Response:
    """Page ``/queues``: the jobs in each queue, and all limits."""
    with console_of(request).database.read() as connection:
        found = looks.queues(connection)
        limits = control.limits(connection)
    paused = {(limit.scope, limit.name) for limit in limits if limit.paused}
    return page(
        request,
        "queues.html",
        here="queues",
        title="Queues",
        queues=found,
        most=looks.MOST_QUEUED,
        limits=[(limit, _target(limit)) for limit in limits],
        account=Target("account"),
        account_actions=of_scope(paused=("account", "") in paused),
        queue_actions=[
            (Target("queue", name=each.queue), of_scope(paused=("queue", each.queue) in paused)) for each in found
        ],
        of_scope=of_scope,
    )


def _target(limit: control.Limit) -> Target:
    of_group = limit.scope == "group"
    return Target(limit.scope, id=UUID(limit.name) if of_group else None, name="" if of_group else limit.name)  # type: ignore[arg-type]  # scopes are kinds


def drivers(request: Request) -> Response:
    """Page ``/drivers``."""
    with console_of(request).database.read() as connection:
        found = listing.drivers(connection)
    return page(request, "drivers.html", here="drivers", title="Drivers", drivers=found)


def schedules(request: Request) -> Response:
    """Page ``/schedules``."""
    with console_of(request).database.read() as connection:
        found = kept.schedules(connection)
    return page(request, "schedules.html", here="schedules", title="Schedules", schedules=found)


def cost(request: Request) -> Response:
    """Page ``/cost``: the cost of each of the last days, and by user, queue and group. It includes pruned jobs."""
    console = console_of(request)
    with console.database.read() as connection:
        days = spent_by_day(console, connection)
        shares = {
            by: console.kept(f"cost by {by}", COST_S, partial(control.cost, connection, by=by, since=days[0].day))
            for by in ("user", "queue", "group")
        }
    week = days[-7:]
    return page(
        request,
        "cost.html",
        here="cost",
        title="Cost",
        days=[*reversed(days)],
        chart=cost_chart(days, height=160),
        week=sum(day.credits for day in week),
        week_jobs=sum(day.jobs for day in week),
        shares={by: found[:MOST_SHARES] for by, found in shares.items()},
    )

"""Queues, drivers, schedules, cost."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from rythmiq_ray.queue import console as looks
from rythmiq_ray.queue import listing
from rythmiq_ray.queue import schedules as kept
from rythmiq_ray.web import ledger
from rythmiq_ray.web.ledger import tally
from rythmiq_ray.web.pages.overview import cost_chart
from rythmiq_ray.web.render import page
from rythmiq_ray.web.state import console_of


def queues(request: Request) -> Response:
    """Page ``/queues``."""
    with console_of(request).database.read() as connection:
        found = looks.queues(connection)
    return page(request, "queues.html", here="queues", title="Queues", queues=found, most=looks.MOST_QUEUED)


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
    """Page ``/cost``: what ended on each of the last days, and whose it was."""
    console = console_of(request)
    days = console.ledger.days(ledger.DAYS, wait_s=0.15)
    week = [day for day in days[:7] if day is not None]
    spent = [each for day in days if day is not None for each in day.spent]
    return page(
        request,
        "cost.html",
        here="cost",
        title="Cost",
        days=days,
        chart=cost_chart([*reversed(days)], height=160),
        fault=console.ledger.fault,
        week=sum(day.credits for day in week),
        week_jobs=sum(day.jobs for day in week),
        users=tally(spent, lambda each: each.user_id),
        queues=tally(spent, lambda each: each.queue),
    )

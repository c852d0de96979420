"""The overview page: six numbers, throughput, cost, and current problems."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Final

from starlette.requests import Request
from starlette.responses import Response

from rythmiq_ray.console import formatting
from rythmiq_ray.model import JobState
from rythmiq_ray.queue import console as looks
from rythmiq_ray.queue import control, listing, schedules
from rythmiq_ray.web import charts
from rythmiq_ray.web.charts import Column
from rythmiq_ray.web.daily_costs import Day
from rythmiq_ray.web.render import page
from rythmiq_ray.web.state import Console, console_of

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

SPANS: Final = {"hour": (3_600.0, 60.0), "day": (86_400.0, 1_800.0)}
"""How far back the throughput goes, and its steps, in seconds. For longer spans the ledger has the numbers by day."""
_MONTH: Final = "30 days"
DAYS: Final = 30
"""How many days of cost are shown."""
COST_S: Final = 5.0
"""How long costs are cached."""
_DAY_S: Final = 5.0
"""How long the counts of the last day are cached."""
_ENDS_S: Final = 2.0
"""How long the counts of a chart are cached."""
_LONG_PENDING_S: Final = 1_800.0
_LONG_WAIT_S: Final = 600.0
_ENDS: Final = (JobState.FAILED, JobState.CANCELLED, JobState.SUCCEEDED)


@dataclass(frozen=True)
class DayCost:
    """What one day cost; days are in UTC."""

    day: date
    credits: float
    jobs: int


@dataclass(frozen=True)
class Trouble:
    """A problem, and where to look."""

    kind: str
    """``fault`` or ``warning``."""
    said: str
    link: str
    """A path relative to the console's base."""
    link_said: str


def overview(request: Request) -> Response:
    """Page ``/``."""
    console = console_of(request)
    span = request.query_params.get("span", "hour")
    span = span if span in (*SPANS, _MONTH) else "hour"
    now = datetime.now(UTC)
    with console.database.read() as connection:
        counts = console.counts(connection)
        queues = looks.queues(connection)
        drivers = listing.drivers(connection)
        length_s, step_s = SPANS.get(span, SPANS["hour"])
        since = start_of(now, length_s, step_s)
        ends = (
            console.kept(span, _ENDS_S, lambda: looks.ends(connection, since=since, step_s=step_s))
            if span in SPANS
            else []
        )
        yesterday = now - timedelta(days=1)
        day = console.kept("day", _DAY_S, lambda: looks.ends(connection, since=yesterday, step_s=86_400.0))
        errors = looks.errors(connection, since=yesterday)
        troubles = list(_troubles(connection, queues, drivers, errors, now))
        groups = listing.groups(connection, unfinished=True, limit=5)
        week = spent_by_day(console, connection)[-7:]
    if span in SPANS:
        shown = throughput(ends, now, length_s, step_s)
    else:
        shown = by_day([*reversed(console.daily_costs.days(wait_s=0.05))])
    return page(
        request,
        "overview.html",
        here="overview",
        title="Overview",
        states=_states(counts),
        day={state: sum(each.jobs for each in day if each.state is state) for state in _ENDS},
        day_bounded={
            state: sum(each.jobs for each in day if each.state is state) >= looks.MOST_ENDS for state in _ENDS
        },
        oldest_s=max((queue.oldest_s or 0.0 for queue in queues), default=None),
        alive=sum(driver.alive for driver in drivers),
        span=span,
        spans=[*SPANS, _MONTH],
        throughput=shown,
        today=week[-1],
        cost=cost_chart(week),
        troubles=troubles,
        errors=errors,
        groups=groups,
    )


def _states(counts: Sequence[listing.Count]) -> dict[str, tuple[int, bool]]:
    out: dict[str, tuple[int, bool]] = {}
    for state in JobState:
        found = [count for count in counts if count.state is state]
        out[str(state)] = (sum(count.jobs for count in found), any(count.bounded for count in found))
    running = [count for count in counts if count.state is JobState.RUNNING]
    out["PENDING"] = (sum(count.jobs for count in running if count.phase == "waiting" and not count.started), False)
    return out


def start_of(now: datetime, length_s: float, step_s: float) -> datetime:
    """When the first whole step begins."""
    step = (now.timestamp() - length_s) // step_s + 1
    return datetime.fromtimestamp(step * step_s, UTC)


def throughput(ends: Sequence[looks.Ends], now: datetime, length_s: float, step_s: float) -> dict[str, object]:
    """A chart of the jobs that ended in each step of time, and its labels."""
    by_step: dict[datetime, dict[JobState, int]] = defaultdict(dict)
    for each in ends:
        by_step[each.at][each.state] = each.jobs
    data = []
    at = start_of(now, length_s, step_s)
    while at <= now:
        found = by_step.get(at, {})
        said = ", ".join(f"{found[state]:,} {state}" for state in _ENDS if state in found) or "none ended"
        data.append(
            Column(
                at,
                {f"s-{state.lower()}": found.get(state, 0) for state in reversed(_ENDS)},
                f"{charts.hours(at, with_date=length_s > 86_400)} UTC: {said}",
            )
        )
        at += timedelta(seconds=step_s)
    total = sum(each.jobs for each in ends)
    label = f"{formatting.plural(total, 'job')} ended in the last {formatting.duration(length_s)}"
    with_date = length_s > 86_400
    most = max((sum(column.parts.values()) for column in data), default=0)
    return {
        "svg": charts.columns(data, label),
        "first": charts.hours(data[0].at, with_date=with_date) if data else "",
        "middle": charts.hours(data[len(data) // 2].at, with_date=with_date) if data else "",
        "most": f"{int(most):,} in {formatting.duration(step_s)}",
        "total": total,
        "bounded": any(sum(each.jobs for each in ends if each.state is state) >= looks.MOST_ENDS for state in _ENDS),
    }


def by_day(days: Sequence[Day | None]) -> dict[str, object]:
    """A chart of the jobs that ended each day, the oldest first, and its labels; None is a day not known yet."""
    known = [day for day in days if day is not None]
    data = []
    for day in known:
        failed = sum(each.failed for each in day.spent)
        said = f"{day.day} UTC: {day.jobs:,} ended, {failed:,} of them FAILED"
        at = datetime(day.day.year, day.day.month, day.day.day, tzinfo=UTC)
        data.append(Column(at, {"s-succeeded": day.jobs - failed, "s-failed": failed}, said))
    total = sum(day.jobs for day in known)
    return {
        "svg": charts.columns(
            data, f"{formatting.plural(total, 'job')} ended in {formatting.plural(len(known), 'day')}"
        ),
        "first": f"{known[0].day}" if known else "",
        "middle": f"{known[len(known) // 2].day}" if known else "",
        "most": f"{max((day.jobs for day in known), default=0):,} a day",
        "total": total,
        "bounded": len(known) < len(days),
    }


def spent_by_day(console: Console, connection: Connection) -> list[DayCost]:
    """The cost of each of the last days, the oldest first; running jobs count by their estimate so far."""
    first = datetime.now(UTC).date() - timedelta(days=DAYS - 1)
    found = console.kept("cost by day", COST_S, lambda: control.cost(connection, by="day", since=first))
    by_day = {each.key: each for each in found}
    days = (first + timedelta(days=n) for n in range(DAYS))
    return [
        DayCost(day, by_day[f"{day}"].credits, by_day[f"{day}"].jobs) if f"{day}" in by_day else DayCost(day, 0.0, 0)
        for day in days
    ]


def cost_chart(days: Sequence[DayCost], *, height: int = 120) -> dict[str, object]:
    """A chart of the credits of each day, the oldest first, and its labels."""
    data = [
        Column(
            datetime(day.day.year, day.day.month, day.day.day, tzinfo=UTC),
            {"cost": day.credits},
            f"{day.day} UTC: {formatting.credits(day.credits)}, {formatting.plural(day.jobs, 'job')}",
        )
        for day in days
    ]
    total = sum(day.credits for day in days)
    return {
        "svg": charts.columns(
            data, f"{formatting.credits(total)} in {formatting.plural(len(days), 'day')}", height=height
        ),
        "first": f"{days[0].day}",
        "most": formatting.credits(max(day.credits for day in days)),
        "total": total,
    }


def _troubles(
    connection: Connection,
    queues: Sequence[looks.QueueSummary],
    drivers: Sequence[listing.DriverState],
    errors: Sequence[listing.ErrorKind],
    now: datetime,
) -> Iterator[Trouble]:
    for limit in control.limits(connection):
        if limit.closed:
            yield Trouble("warning", f"{formatting.visible(limit.closed)}.", "queues", "queues")
    waiting = [queue for queue in queues if queue.queued + queue.retrying]
    alive = sum(driver.alive for driver in drivers)
    if not alive and queues:
        yield Trouble("fault", "No driver is running, and jobs are waiting.", "drivers", "drivers")
    for queue in waiting if alive else ():
        if not queue.drivers:
            said = f"No live driver serves the queue {formatting.visible(queue.queue)}, and jobs wait in it."
            yield Trouble("fault", said, "queues", "queues")
        elif queue.oldest_s is not None and queue.oldest_s > _LONG_WAIT_S:
            waited = formatting.duration(queue.oldest_s)
            said = f"The oldest job of queue {formatting.visible(queue.queue)} has waited for {waited}."
            yield Trouble("warning", said, "queues", "queues")
    for driver in drivers:
        held = driver.submitting + driver.waiting + driver.collecting
        if not driver.alive and held:
            jobs = formatting.plural(held, "job")
            said = f"A driver on {formatting.visible(driver.hostname)} is gone and still holds {jobs}."
            yield Trouble("warning", said, "drivers", "drivers")
    for holdup in looks.holdups(connection):
        if holdup.reason:
            jobs = formatting.plural(holdup.jobs, "running job")
            said = f"{jobs} cannot go on: {formatting.visible(holdup.reason)[:300]}"
            yield Trouble("warning", said, f"jobs/{holdup.job_id}", "one of them")
        elif holdup.pending and holdup.since and (now - holdup.since).total_seconds() > _LONG_PENDING_S:
            waits = formatting.duration((now - holdup.since).total_seconds())
            said = f"{formatting.plural(holdup.jobs, 'job')} PENDING at Camber, the first for {waits}."
            yield Trouble("warning", said, f"jobs/{holdup.job_id}", "the first of them")
    kept = looks.unstored(connection)
    if kept.attempts and kept.job_id is not None:
        until = "" if kept.until is None else f", until {kept.until.astimezone(UTC):%Y-%m-%d %H:%M} UTC at the soonest"
        said = f"{formatting.plural(kept.attempts, 'attempt')} could not be stored and are kept at Camber{until}."
        yield Trouble("warning", said, f"jobs/{kept.job_id}", "the first to go")
    for schedule in schedules.schedules(connection):
        if (schedule.last_outcome or "").startswith("not enqueued"):
            said = f"Schedule {formatting.visible(schedule.name)} was {formatting.visible(schedule.last_outcome)[:300]}"
            yield Trouble("fault", said, "schedules", "schedules")
    failed = sum(error.jobs for error in errors)
    if failed:
        said = f"{formatting.plural(failed, 'job')} FAILED in the last 24 hours, most with {errors[0].error_code}."
        yield Trouble("warning", said, "jobs?state=failed&since=24h", "failed jobs")

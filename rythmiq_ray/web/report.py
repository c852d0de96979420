"""The report: one file with the console's charts, which loads nothing from a network and can be printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from markupsafe import Markup

from rythmiq_ray.console import formatting
from rythmiq_ray.errors import NotFound
from rythmiq_ray.model import JobState
from rythmiq_ray.outlook import outlook_of
from rythmiq_ray.queue import console as looks
from rythmiq_ray.queue import listing
from rythmiq_ray.queue.console import Point
from rythmiq_ray.web import charts, members
from rythmiq_ray.web.charts import Column
from rythmiq_ray.web.daily_costs import tally
from rythmiq_ray.web.members import Gauge, Picture
from rythmiq_ray.web.render import HERE, render

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_MOST_ROWS: Final = 500
"""Members in a table of a report; pictures show all of them."""
_MOST_GROUPS: Final = 30
_HOURLY: Final = timedelta(days=3)
"""Up to here the ends of a period are shown by the hour, beyond it by the day."""
_ENDS: Final = (JobState.SUCCEEDED, JobState.CANCELLED, JobState.FAILED)

Numbers = Mapping[UUID, Mapping[str, float]]


def group_report(
    connection: Connection, group_id: UUID, *, numbers: Numbers | None = None, now: datetime | None = None
) -> str:
    """A group as a page of HTML. ``numbers``: fields of a file of each member, of which each makes a picture.

    Raises NotFound.
    """
    found = listing.groups_of(connection, [group_id])
    if not found:
        raise NotFound(f"There is no group {group_id}")
    group = found[0]
    now = now or datetime.now(UTC)
    points = looks.points(connection, group_id)
    states = {str(state): 0 for state in JobState}
    for count in listing.counts(connection, listing.Filter(groups=[group_id])):
        states[str(count.state)] = states.get(str(count.state), 0) + count.jobs
    pace = listing.pace(connection, group_id)
    ended = group.members - group.unfinished
    failed = [point for point in points if point.state in (JobState.FAILED, JobState.CANCELLED)]
    slow = sorted((point for point in points if point.seconds is not None), key=lambda point: -(point.seconds or 0.0))
    return render(
        "report_group.html",
        {
            **_common(now),
            "title": formatting.visible(group.name or group.group_id),
            "group": group,
            "states": states,
            "strip": charts.shares(
                {state: states[state] for state in ("SUCCEEDED", "FAILED", "CANCELLED", "RUNNING", "RETRYING")},
                f"{ended:,} of {group.members:,} members have ended",
                height=22,
                total=group.members,
            ),
            "outlook": outlook_of(group, pace, now),
            "pace": pace,
            "errors": listing.group_errors(connection, group_id, limit=20),
            "pictures": _pictures(points, numbers or {}),
            "points": len(points),
            "failed": failed[:_MOST_ROWS],
            "failed_left": max(0, len(failed) - _MOST_ROWS),
            "slow": slow[:20],
            "rows": points[:_MOST_ROWS],
            "rows_left": max(0, group.members - _MOST_ROWS),
        },
    )


def _pictures(points: Sequence[Point], numbers: Numbers) -> list[tuple[str, Picture]]:
    """Members by state, by time, by credits and by each number, as far as there are any."""
    if not points:
        return []
    axes = members.parameters(points)
    x = axes[0].name if axes else ""
    y = axes[1].name if len(axes) > 1 else ""
    fields = list(dict.fromkeys(name for row in numbers.values() for name in row))[:4]
    gauges = [("seconds", Gauge(lambda point: point.seconds, formatting.duration))]
    gauges.append(("credits", Gauge(lambda point: point.credits, formatting.credits)))
    gauges += [(name, _field(name, numbers)) for name in fields]
    out = [("by state", members.picture(points, axes, x=x, y=y))]
    for name, gauge in gauges:
        if not any(gauge.measure(point) is not None for point in points):
            continue
        if x and not y:
            out.append((f"{name} by {x}", members.picture(points, axes, x=x, height=gauge)))
        else:
            out.append((f"by {name}", members.picture(points, axes, x=x, y=y, colour=gauge)))
    return out


def _field(name: str, numbers: Numbers) -> Gauge:
    return Gauge(lambda point: numbers.get(point.job_id, {}).get(name))


def period_report(connection: Connection, since: datetime, *, now: datetime | None = None) -> str:
    """What happened since then, as a page of HTML. It reads every job that ended: some seconds for a million."""
    now = now or datetime.now(UTC)
    hourly = now - since <= _HOURLY
    step_s = 3_600.0 if hourly else 86_400.0
    ends = looks.ends(connection, since=since, step_s=step_s, most=100_000_000)
    days = _days(connection, since, now)
    spent = [each for _, of in days for each in of]
    by_state = {str(state): sum(each.jobs for each in ends if each.state is state) for state in _ENDS}
    return render(
        "report_period.html",
        {
            **_common(now),
            "title": f"{since.astimezone(UTC):%Y-%m-%d %H:%M} to {now:%Y-%m-%d %H:%M} UTC",
            "since": since,
            "by_state": by_state,
            "ended": sum(by_state.values()),
            "credits": sum(each.credits for each in spent),
            "throughput": _ends_chart(ends, since, now, step_s),
            "step": "hour" if hourly else "day",
            "first": f"{since.astimezone(UTC):%Y-%m-%d %H:%M}" if hourly else f"{since.astimezone(UTC):%Y-%m-%d}",
            "last": f"{now:%Y-%m-%d %H:%M}" if hourly else f"{now:%Y-%m-%d}",
            "cost": _cost_chart(days),
            "errors": looks.errors(connection, since=since, most=100_000, limit=20, alike=True),
            "users": tally(spent, lambda each: each.user_id),
            "queues": tally(spent, lambda each: each.queue),
            "groups": looks.groups_since(connection, since, limit=_MOST_GROUPS),
        },
    )


def _days(connection: Connection, since: datetime, now: datetime) -> list[tuple[date, Sequence[looks.Spent]]]:
    days: list[tuple[date, Sequence[looks.Spent]]] = []
    at = since.astimezone(UTC)
    while at < now:
        midnight = datetime(at.year, at.month, at.day, tzinfo=UTC) + timedelta(days=1)
        days.append((at.date(), looks.spent(connection, at, min(midnight, now))))
        at = midnight
    return days


def _ends_chart(ends: Sequence[looks.Ends], since: datetime, now: datetime, step_s: float) -> Markup:
    found: dict[datetime, dict[JobState, int]] = {}
    for each in ends:
        found.setdefault(each.at, {})[each.state] = each.jobs
    at = datetime.fromtimestamp(since.timestamp() // step_s * step_s, UTC)
    data = []
    while at <= now:
        counts = found.get(at, {})
        said = ", ".join(f"{counts[state]:,} {state}" for state in _ENDS if state in counts) or "none ended"
        parts = {f"s-{state.lower()}": counts.get(state, 0) for state in _ENDS}
        data.append(Column(at, parts, f"{charts.hours(at, with_date=True)} UTC: {said}"))
        at += timedelta(seconds=step_s)
    return charts.columns(data, f"{formatting.plural(sum(each.jobs for each in ends), 'job')} ended", height=140)


def _cost_chart(days: Sequence[tuple[date, Sequence[looks.Spent]]]) -> Markup:
    data = []
    for day, spent in days:
        credits = sum(each.credits for each in spent)
        at = datetime(day.year, day.month, day.day, tzinfo=UTC)
        data.append(Column(at, {"cost": credits}, f"{day} UTC: {formatting.credits(credits)}"))
    total = sum(sum(column.parts.values()) for column in data)
    return charts.columns(data, f"{formatting.credits(total)} in {formatting.plural(len(days), 'day')}", height=140)


def _common(now: datetime) -> dict[str, Any]:
    style = (HERE / "static" / "console.css").read_text(encoding="utf-8")
    return {"now": now, "style": Markup(style)}  # noqa: S704 - our own file

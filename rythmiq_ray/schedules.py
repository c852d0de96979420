"""Computes when a schedule is due: cron with time zones, missed times, the next time. No clock and no database.

When clocks change, a job of a fixed hour runs once: if its hour is skipped it runs when that hour is over, and of an
hour that comes twice the first counts. Jobs of every hour or minute go by elapsed time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from rythmiq_ray.errors import InvalidJob

MOST_CAUGHT_UP: Final = 100
"""The most missed times that are caught up: the last ones."""
GRACE_S: Final = 60.0
"""A time counts as missed only if it is further past than this."""


class CatchUp(StrEnum):
    """Which times to run that passed while no driver was running, or while the schedule was paused."""

    NONE = "none"
    ONE = "one"
    """Only the last one."""
    ALL = "all"


class Overlap(StrEnum):
    """What a due time does while the previous run is unfinished."""

    SKIP = "skip"
    QUEUE = "queue"
    CANCEL = "cancel"
    """It cancels the previous run."""


@dataclass(frozen=True)
class Due:
    """The times to fire, the oldest first, and the next one after now."""

    times: Sequence[datetime]
    next_at: datetime


def check(cron: str, time_zone: str) -> None:
    """Raises InvalidJob for an invalid cron expression (five fields) or an unknown time zone."""
    faults = []
    try:
        ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        faults.append(f"time_zone: there is no {time_zone!r}; give one such as UTC or Europe/Berlin")
    try:
        CronSim(cron, datetime(2026, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        faults.append(f"cron: {cron!r}: {str(error).lower()}; give five fields: minute, hour, day, month, weekday")
    if faults:
        raise InvalidJob(faults)


def next_after(cron: str, time_zone: str, after: datetime) -> datetime:
    """The first time after ``after``, in UTC. Raises InvalidJob if there is none."""
    check(cron, time_zone)
    try:
        found: datetime = next(CronSim(cron, after.astimezone(ZoneInfo(time_zone))))
    except (StopIteration, CronSimError):
        raise InvalidJob([f"cron: {cron!r} never comes"]) from None
    return found.astimezone(UTC)


def due(cron: str, time_zone: str, next_at: datetime, now: datetime, catch_up: CatchUp) -> Due:
    """The times to fire at ``now`` for a schedule whose next time was ``next_at``. Raises as :func:`next_after`."""
    if next_at > now:
        return Due((), next_at)
    if catch_up is CatchUp.NONE:
        # Times that were missed long ago do not count, so they need not be computed.
        next_at = max(next_at, next_after(cron, time_zone, now - timedelta(seconds=GRACE_S, microseconds=1)))
    times: list[datetime] = []
    at = next_at
    while at <= now:
        times.append(at)
        if len(times) > MOST_CAUGHT_UP:
            del times[0]
        at = next_after(cron, time_zone, at)
    return Due(times if catch_up is CatchUp.ALL else times[-1:], at)

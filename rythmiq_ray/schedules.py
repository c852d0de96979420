"""Computes when a schedule is due: cron with time zones, missed times, the next time. No clock and no database.

When clocks change, a job of a fixed hour runs once: if its hour is skipped it runs when that hour is over, and of an
hour that comes twice the first counts. Jobs of every hour or minute go by elapsed time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import islice, takewhile
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
    # Within the second of two equal hours the library begins with times of the first.
    found = next((at for at in _times(cron, time_zone, after) if at > after), None)
    if found is None:
        raise InvalidJob([f"cron: {cron!r} never matches a date"])
    return found


def due(cron: str, time_zone: str, next_at: datetime, now: datetime, catch_up: CatchUp) -> Due:
    """The times to fire at ``now`` for a schedule whose next time was ``next_at``. Raises as :func:`next_after`.

    They are computed backwards from ``now``, so that a ``next_at`` of years ago costs no more than one of today.
    """
    if next_at > now:
        return Due((), next_at)
    following = next_after(cron, time_zone, now)
    most = MOST_CAUGHT_UP if catch_up is CatchUp.ALL else 1
    earliest = max(next_at, now - timedelta(seconds=GRACE_S)) if catch_up is CatchUp.NONE else next_at
    # From an hour later: within the second of two equal hours the library omits later times of the first.
    back = _times(cron, time_zone, now + timedelta(hours=1), reverse=True)
    times = list(islice(takewhile(lambda at: at > next_at, (at for at in back if at <= now)), most))
    if len(times) < most:
        times.append(next_at)  # Also if somebody set it to a time that is not the cron's.
    return Due([at for at in reversed(times) if at >= earliest], following)


def _times(cron: str, time_zone: str, start: datetime, *, reverse: bool = False) -> Iterator[datetime]:
    for at in CronSim(cron, start.astimezone(ZoneInfo(time_zone)), reverse=reverse):
        yield at.astimezone(UTC)

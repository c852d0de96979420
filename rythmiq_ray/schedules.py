"""When a schedule is due: cron with time zones, what was missed, and what comes next. No clock and no database.

Around a change of clocks a job of a fixed hour runs once: what would fall into the hour that is left out runs when that
is over, and of an hour that comes twice the first counts. Jobs of every hour or minute go by the time that has passed.
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
"""So many missed times are caught up at most; of more, the last ones."""
GRACE_S: Final = 60.0
"""A time that is not further past than this was not missed."""


class CatchUp(StrEnum):
    """What becomes of times that passed while no driver lived, or while the schedule was paused."""

    NONE = "none"
    ONE = "one"
    """The last of them."""
    ALL = "all"


class Overlap(StrEnum):
    """What a due time does while the run before it is unfinished."""

    SKIP = "skip"
    QUEUE = "queue"
    CANCEL = "cancel"
    """It cancels that one."""


@dataclass(frozen=True)
class Due:
    """The times that are to be fired, the oldest first, and the next one after now."""

    times: Sequence[datetime]
    next_at: datetime


def check(cron: str, time_zone: str) -> None:
    """Raises InvalidJob for what is no cron expression of five fields, or no time zone."""
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
    """The first time after this one, in UTC. Raises InvalidJob where there never is one."""
    check(cron, time_zone)
    # Asked within an hour that comes twice, the library begins with times of the first one.
    found = next((at for at in _times(cron, time_zone, after) if at > after), None)
    if found is None:
        raise InvalidJob([f"cron: {cron!r} never comes"])
    return found


def due(cron: str, time_zone: str, next_at: datetime, now: datetime, catch_up: CatchUp) -> Due:
    """What is to be fired at ``now`` of a schedule whose next time was ``next_at``. Raises as :func:`next_after`.

    It goes back from now, so that a time of long ago costs no more than one of today.
    """
    if next_at > now:
        return Due((), next_at)
    following = next_after(cron, time_zone, now)
    most = MOST_CAUGHT_UP if catch_up is CatchUp.ALL else 1
    earliest = max(next_at, now - timedelta(seconds=GRACE_S)) if catch_up is CatchUp.NONE else next_at
    # From an hour later: seen from the second of two equal hours, the library leaves out what is later in the first.
    back = _times(cron, time_zone, now + timedelta(hours=1), reverse=True)
    times = list(islice(takewhile(lambda at: at > next_at, (at for at in back if at <= now)), most))
    if len(times) < most:
        times.append(next_at)  # Also where a person chose it, and it is no time of the cron's.
    return Due([at for at in reversed(times) if at >= earliest], following)


def _times(cron: str, time_zone: str, start: datetime, *, reverse: bool = False) -> Iterator[datetime]:
    for at in CronSim(cron, start.astimezone(ZoneInfo(time_zone)), reverse=reverse):
        yield at.astimezone(UTC)

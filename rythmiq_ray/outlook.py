"""What is to be expected of a group, by the pace so far."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rythmiq_ray.model import Group
    from rythmiq_ray.queue.listing import Pace


@dataclass(frozen=True)
class Outlook:
    """What is to be expected of a group, by the pace so far; None where nothing has ended yet."""

    seconds_left: float | None
    credits: float | None
    """In all, estimated."""
    so_far: float | None


def outlook_of(group: Group, pace: Pace, now: datetime | None = None) -> Outlook:
    """Takes each member that is left for one that takes as long and costs as much as those that ended."""
    ended = group.members - group.unfinished
    seconds_left = credits = None
    if group.unfinished == 0:
        seconds_left = 0.0
    elif ended and pace.began_at is not None and group.stopped_at is None:
        passed = ((now or datetime.now(UTC)) - pace.began_at).total_seconds()
        seconds_left = max(0.0, passed) / ended * group.unfinished
    if pace.priced and pace.credits is not None:
        left = 0 if group.stopped_at is not None else group.unfinished
        credits = pace.credits + pace.credits / pace.priced * left
    return Outlook(seconds_left, credits, pace.credits)

"""Estimates of when a group will end and what it will cost."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rythmiq_ray.model import Group
    from rythmiq_ray.queue.listing import Pace


@dataclass(frozen=True)
class Outlook:
    """Estimates for a group by its pace so far; None while no member has ended."""

    seconds_left: float | None
    credits: float | None
    """Estimated total cost of the group."""
    so_far: float | None


def outlook_of(group: Group, pace: Pace, now: datetime | None = None) -> Outlook:
    """Assumes that each remaining member takes as long and costs as much as the members that have ended, on average."""
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

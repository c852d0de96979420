"""Times on a page: with their zone, and in the form that programs read beside the words."""

from __future__ import annotations

from datetime import UTC, datetime

from markupsafe import Markup, escape

from rythmiq_ray.console.formatting import NOTHING, rough
from rythmiq_ray.queue.connection import EARLIEST, LATEST


def moment(time: datetime | None) -> Markup:
    """A date and time, in UTC, to the second."""
    if time is None:
        return escape(NOTHING)
    if time in (EARLIEST, LATEST):
        return escape("long ago" if time == EARLIEST else "never")
    at = time.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(f"{at:%Y-%m-%dT%H:%M:%SZ}", f"{at:%Y-%m-%d %H:%M:%S} UTC")


def ago(time: datetime | None, now: datetime | None = None) -> Markup:
    """``3 min ago``, with the time itself beside it for who points at it."""
    if time is None:
        return escape(NOTHING)
    if time in (EARLIEST, LATEST):
        return moment(time)
    at = time.astimezone(UTC)
    seconds = ((now or datetime.now(UTC)) - at).total_seconds()
    text = f"in {rough(-seconds)}" if seconds < -0.5 else f"{rough(max(0.0, seconds))} ago"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        f"{at:%Y-%m-%dT%H:%M:%SZ}", f"{at:%Y-%m-%d %H:%M:%S} UTC", text
    )

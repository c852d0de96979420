"""Parses the values of filters: labels, and past times."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from rythmiq_ray.duration import seconds_of
from rythmiq_ray.errors import InvalidJob


def labels_of(assignments: Sequence[str]) -> dict[str, str]:
    """Parses labels, ``K=V`` each; raises InvalidJob with all faults."""
    labels: dict[str, str] = {}
    faults = []
    for at, assignment in enumerate(assignments):
        name, mark, value = assignment.partition("=")
        if not mark or not name:
            faults.append(f"label[{at}]: must be K=V")
        elif labels.get(name, value) != value:
            faults.append(f"label: {name!r} is there twice")
        labels[name] = value
    if faults:
        raise InvalidJob(faults)
    return labels


def past_time(text: str, now: datetime | None = None) -> datetime:
    """Parses ``2h`` or ``30d`` (ago), or a date and time in ISO 8601, in the local time zone if it names none.

    Raises ValueError.
    """
    try:
        return (now or datetime.now(UTC)) - timedelta(seconds=seconds_of(text))
    except (ValueError, OverflowError):
        pass
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise ValueError(
            "give how long ago, such as 2h or 30d, or a date such as 2026-01-07 or 2026-01-07T10:30"
        ) from None

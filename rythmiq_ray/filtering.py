"""What filters say in words: labels, and times that are past."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from rythmiq_ray.duration import seconds_of
from rythmiq_ray.errors import InvalidJob


def labels_of(assignments: Sequence[str]) -> dict[str, str]:
    """``K=V`` each; raises InvalidJob."""
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
    """``2h`` or ``30d`` ago, or a date and time in ISO 8601, of the local time zone where it names none.

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
            "give a time that has passed since, such as 2h or 30d, or a date such as 2026-01-07 or 2026-01-07T10:30"
        ) from None

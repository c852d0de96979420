"""How a group is shown: its bar, the time that is left, its cost, its errors."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import typer

from rythmiq_ray.cli import output
from rythmiq_ray.console.formatting import bar
from rythmiq_ray.model import Group, JobState
from rythmiq_ray.outlook import Outlook, outlook_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg2.extensions import connection as Connection

    from rythmiq_ray.queue.listing import Count, ErrorKind

_BAR: Final = 40
_ERROR: Final = 300
"""Characters of an error's message, from its end."""


def show_group(connection: Connection, group_id: UUID, *, as_json: bool) -> None:
    """Prints all that is known of a group."""
    from rythmiq_ray.queue import listing

    (group,) = listing.groups_of(connection, [group_id])
    counts = listing.counts(connection, listing.Filter(groups=[group_id]))
    pace = listing.pace(connection, group_id)
    errors = listing.group_errors(connection, group_id)
    outlook = outlook_of(group, pace)
    if as_json:
        states = {state: sum(count.jobs for count in counts if count.state is state) for state in JobState}
        output.print_json(
            record_of(group)
            | {
                "states": states,
                "began_at": None if pace.began_at is None else pace.began_at.isoformat(),
                "seconds_left": outlook.seconds_left,
                "credits": pace.credits,
                "credits_estimated": outlook.credits,
                "errors": [output.record(error) for error in errors],
            }
        )
        return
    _print(group, counts, outlook, errors)


def record_of(group: Group) -> dict[str, Any]:
    """A group as JSON data."""
    return output.record(group) | {"labels": dict(group.labels), "state": group.state, "unfinished": group.unfinished}


def _print(group: Group, counts: Sequence[Count], outlook: Outlook, errors: Sequence[ErrorKind]) -> None:
    now = datetime.now(UTC)
    running = sum(count.jobs for count in counts if count.state is JobState.RUNNING)
    states = {state: sum(count.jobs for count in counts if count.state is state) for state in JobState}
    limits = [
        f"at most {group.max_parallel} at once" if group.max_parallel else "",
        f"stops after {group.stop_after_failures} failures" if group.stop_after_failures else "",
    ]
    left = None
    if group.unfinished and outlook.seconds_left is not None:
        left = f"about {output.duration(outlook.seconds_left)} at the pace so far"
    credits = None
    if outlook.so_far is not None:
        credits = f"{outlook.so_far:.4f} so far"
        if outlook.credits is not None and group.unfinished:
            credits += f", about {outlook.credits:.4f} in total"
        credits += " (estimated)"
    output.pairs(
        {
            "group": group.group_id,
            "name": group.name,
            "state": group.state,
            "progress": f"{bar(group, running, _BAR)} {group.members - group.unfinished:,} of {group.members:,}",
            "members": ", ".join(f"{number:,} {state}" for state, number in states.items() if number),
            "time left": left,
            "credits": credits,
            "limits": ", ".join(filter(None, limits)),
            "stopped": None if group.stopped_at is None else f"{output.age(group.stopped_at, now)} ago, by failures",
            "user": group.user_id,
            "labels": " ".join(f"{name}={value}" for name, value in group.labels.items()),
            "enqueued by": group.enqueued_by,
            "created": f"{output.age(group.created_at, now)} ago",
            "finished": None if group.finished_at is None else f"{output.age(group.finished_at, now)} ago",
        }
    )
    if errors:
        typer.echo()
        for error in errors:
            words = " ".join((error.error_message or "").split())
            shown = words if len(words) <= _ERROR else f"…{words[-_ERROR:]}"
            typer.echo(f"{error.jobs:>6,} x {error.error_code}: {output.printable(shown)}")
            typer.echo(f"         such as {error.job_id}")

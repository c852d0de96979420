"""Pages: the list of groups, and one group with a picture of its members."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from rythmiq_ray.console import filters, formatting
from rythmiq_ray.console.actions import Target, of_scope, offered
from rythmiq_ray.errors import NotFound
from rythmiq_ray.model import Group, JobState
from rythmiq_ray.outlook import outlook_of
from rythmiq_ray.queue import console as looks
from rythmiq_ray.queue import control, listing
from rythmiq_ray.queue.console import Point
from rythmiq_ray.web import charts, files, members, output_numbers
from rythmiq_ray.web.members import Axis, Gauge, Picture
from rythmiq_ray.web.pages.jobs import uuid_of
from rythmiq_ray.web.render import page
from rythmiq_ray.web.state import Console, console_of

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

PAGE: Final = 50
_ROWS: Final = 20
"""Members in the table below the picture."""


def groups(request: Request) -> Response:
    """Page ``/groups``."""
    console = console_of(request)
    before = uuid_of(request.query_params.get("before", ""))
    only = request.query_params.get("only", "")
    unfinished = {"unfinished": True, "finished": False}.get(only)
    with console.database.read() as connection:
        asked = filters.read(request.query_params.multi_items(), connection)
        found = listing.groups(connection, wanted=asked.filter, unfinished=unfinished, limit=PAGE + 1, before=before)
    return page(
        request,
        "groups.html",
        here="groups",
        title="Groups",
        asked=asked,
        only=only,
        groups=[(group, bar(group)) for group in found[:PAGE]],
        next=found[PAGE - 1].group_id if len(found) > PAGE else None,
        before=before,
        query=urlencode([*asked.given, *([("only", only)] if only else [])]),
    )


def bar(group: Group, running: int = 0) -> Any:
    """A strip of a group's members by state."""
    counts = {
        "SUCCEEDED": group.succeeded,
        "FAILED": group.failed,
        "CANCELLED": group.cancelled,
        "RUNNING": running,
    }
    said = f"{formatting.plural(group.members - group.unfinished, 'member')} of {group.members:,} have ended"
    return charts.shares(counts, said, total=group.members)


@dataclass(frozen=True)
class Choice:
    """What a group's picture shows, as the query string says it."""

    x: str
    y: str
    colour: str
    file: str
    measures: Sequence[tuple[str, str]]
    """What can be measured: its word in a query string, and its name on the page."""


def group(request: Request) -> Response:
    """Page ``/groups/ID``."""
    console = console_of(request)
    group_id: UUID = request.path_params["id"]
    now = datetime.now(UTC)
    with console.database.read() as connection:
        found = _group(connection, group_id)
        counts = listing.counts(connection, listing.Filter(groups=[group_id]))
        pace = listing.pace(connection, group_id)
        errors = listing.group_errors(connection, group_id)
        rows = looks.page(connection, listing.Filter(groups=[group_id]), limit=_ROWS)
        points = looks.points(connection, group_id)
        names = looks.file_names(connection, group_id, most_bytes=output_numbers.MOST_BYTES)
        limits = control.limits(connection)
    paused = any(limit.paused for limit in limits if (limit.scope, limit.name) == ("group", str(group_id)))
    pausing = of_scope(paused=paused) if paused or found.unfinished else []
    states = {str(state): sum(count.jobs for count in counts if count.state is state) for state in JobState}
    shown = shown_of(console, group_id, points, request.query_params, names)
    return page(
        request,
        "group.html",
        here="groups",
        title=formatting.visible(found.name or found.group_id),
        group=found,
        states=states,
        strip=charts.shares(
            {state: states[state] for state in ("SUCCEEDED", "FAILED", "CANCELLED", "RUNNING", "RETRYING")},
            f"{found.members - found.unfinished:,} of {found.members:,} members have ended",
            height=22,
            total=found.members,
        ),
        outlook=outlook_of(found, pace, now),
        pace=pace,
        errors=errors,
        rows=rows,
        points=len(points),
        picture=shown.picture,
        choice=shown.choice,
        axes=shown.axes,
        reading=shown.reading,
        files=shown.files,
        query=urlencode({name: getattr(shown.choice, name) for name in ("x", "y", "colour", "file")}),
        offered=offered("group", [state for state in JobState if states[str(state)]]) + pausing,
        target=Target("group", id=group_id),
    )


def _group(connection: Connection, group_id: UUID) -> Group:
    found = listing.groups_of(connection, [group_id])
    if not found:
        raise NotFound(f"There is no group {group_id}")
    return found[0]


@dataclass(frozen=True)
class Shown:
    """A group's picture, and what can be chosen for it."""

    picture: Picture
    choice: Choice
    axes: Sequence[Axis]
    files: Sequence[str]
    reading: str


def shown_of(
    console: Console, group_id: UUID, points: Sequence[Point], query: Mapping[str, str], names: Sequence[str]
) -> Shown:
    """The picture that a query string asks for; missing or unknown choices are made by the group's parameters."""
    axes = members.parameters(points)
    known = {axis.name for axis in axes}
    readable = [name for name in names if files.kind_of(name, 0) in ("table", "text") and name != "log.txt"]
    file = next((name for name in readable if query.get("file") == name), "")
    reading, fields = "", []
    numbers: Mapping[UUID, Mapping[str, float]] = {}
    if file:
        wanted = members.ids_of(points, [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED])
        table = console.output_numbers.of(group_id, file, wanted)
        numbers, fields = dict(table.of), table.fields
        if table.fault:
            reading = f"{file} cannot be read: {table.fault}"
        elif len(numbers) < len(wanted):
            reading = f"{len(numbers):,} of {len(wanted):,} files have been read so far."
    measures = [("seconds", "seconds"), ("credits", "credits"), *((f"file:{name}", name) for name in fields)]
    words_of = [word for word, _ in measures]
    x = query.get("x") or (axes[0].name if axes else "")
    y = query.get("y", axes[1].name if len(axes) > 1 else "seconds")
    colour = query.get("colour", "state")
    x = x if x in known else ""  # without a parameter, as with "-", members are in their order
    if y not in known | set(words_of):
        y = words_of[2] if file and fields and len(axes) < 2 else axes[1].name if len(axes) > 1 else "seconds"
    colour = colour if colour in ("state", *words_of) else "state"
    if file and fields and query.get("colour", "") not in ("state", *words_of):
        colour = words_of[2]
    picture = members.picture(
        points,
        axes,
        x=x,
        y=y if y in known else "",
        height=None if y in known else gauge_of(y, numbers),
        colour=gauge_of(colour, numbers),
    )
    choice = Choice(x, y, colour, file, measures)
    return Shown(picture, choice, axes, readable, reading)


def gauge_of(word: str, numbers: Mapping[UUID, Mapping[str, float]]) -> Gauge | None:
    """What a word of a query string measures; None for the state."""
    if word == "seconds":
        return Gauge(lambda point: point.seconds, formatting.duration)
    if word == "credits":
        return Gauge(lambda point: point.credits, formatting.credits)
    if word.startswith("file:"):
        name = word.removeprefix("file:")
        return Gauge(lambda point: numbers.get(point.job_id, {}).get(name))
    return None


def picture_data(request: Request) -> Response:
    """``/groups/ID/picture.json``: each member's place in the picture and its text for the pointer."""
    console = console_of(request)
    group_id: UUID = request.path_params["id"]
    with console.database.read() as connection:
        points = looks.points(connection, group_id)
        names = looks.file_names(connection, group_id, most_bytes=output_numbers.MOST_BYTES)
    picture = shown_of(console, group_id, points, request.query_params, names).picture
    body = json.dumps(
        {"kind": picture.kind, "across": picture.across, "down": picture.down, "members": picture.data},
        separators=(",", ":"),
    )
    return Response(body, media_type="application/json")

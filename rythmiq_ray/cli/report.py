"""``rythmiq report``: a group or a period as one file, for a mail or a ticket."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from uuid import UUID

import typer

from rythmiq_ray.access import database, read
from rythmiq_ray.cli import output
from rythmiq_ray.cli.failure import say
from rythmiq_ray.cli.filters import time_of
from rythmiq_ray.errors import ConfigurationError, NotFound

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_PATIENCE_S: Final = 600.0
"""The statement timeout, because a report reads all jobs of a period."""


def report(
    context: typer.Context,
    reference: Annotated[str | None, typer.Argument(metavar="GROUP", help="A group, by id or name.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Jobs that ended since then: 2h or 30d ago, or a date.")
    ] = None,
    to: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The file to write.")] = Path(
        "report.html"
    ),
    file: Annotated[
        str | None, typer.Option("--file", metavar="NAME", help="For a group: charts of the numbers in this output.")
    ] = None,
) -> None:
    """Write a report: one HTML file with charts, which needs no network and can be printed.

    For a group: progress, members by their parameters, similar errors together, the longest runs. With --since:
    throughput, cost by day, user and queue, errors, groups. A report of 10,000 members is smaller than 5 MB.

    \b
    Examples:
      rythmiq report lr -o lr.html
      rythmiq report lr --file score.json
      rythmiq report --since 30d -o month.html
    """
    if (reference is None) == (since is None):
        raise typer.BadParameter("give a group, or --since", ctx=context)
    if file is not None and reference is None:
        raise typer.BadParameter("--file goes with a group", ctx=context)
    try:
        from rythmiq_ray.web import report as reports
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is not installed: pip install 'rythmiq-ray[web]'") from None
    from rythmiq_ray.queue import listing

    with database(statement_timeout_s=_PATIENCE_S) as connection:
        connection.autocommit = True
        if since is not None:
            text = reports.period_report(connection, time_of(since, "--since"))
        else:
            found = listing.find(connection, reference or "")
            if found.is_job:
                raise NotFound(f"{reference!r} is a job, not a group")
            numbers = None if file is None else _numbers(connection, found.id, file)
            text = reports.group_report(connection, found.id, numbers=numbers)
    data = text.encode()
    to.write_bytes(data)
    say(f"{output.size(len(data))} in {to}")


def _numbers(connection: Connection, group_id: UUID, file: str) -> dict[UUID, dict[str, float]]:
    from rythmiq_ray.queue import console
    from rythmiq_ray.web.output_numbers import read_numbers

    members = [point.job_id for point in console.points(connection, group_id)]

    def progressing(pages: Iterable[dict[UUID, dict[str, float]]]) -> dict[UUID, dict[str, float]]:
        found: dict[UUID, dict[str, float]] = {}
        with output.progress_bar("reading", len(members)) as step:
            for page in pages:
                found |= page
                for _ in page:
                    step()
        return found

    numbers = progressing(read_numbers(connection, members, file, read))
    if not any(numbers.values()):
        say(f"no member has a number in {output.printable(file)}")
    return numbers

"""``rythmiq top``: the console in a terminal."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

from rythmiq_ray.access import database, database_url
from rythmiq_ray.cli.filters import JobSelection, filtered
from rythmiq_ray.cli.operations import reasons_of
from rythmiq_ray.duration import seconds_of
from rythmiq_ray.errors import ConfigurationError

_LEAST_S = 0.5


class View(StrEnum):
    """Which table is shown first."""

    QUEUES = "queues"
    GROUPS = "groups"
    JOBS = "jobs"
    DRIVERS = "drivers"


@filtered
def top(
    wanted: JobSelection,
    view: Annotated[
        View | None,
        typer.Option(
            case_sensitive=False, help="Table to show first; by default jobs if there is a filter, else queues."
        ),
    ] = None,
    interval: Annotated[str, typer.Option(metavar="TIME", help="Time between updates, such as 2s or 1m.")] = "2s",
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours; NO_COLOR does the same.")] = False,
) -> None:
    """Watch queues, groups, jobs and drivers in the terminal, full screen.

    Keys: 1 to 4 or tab change the table, enter looks inside, l shows the log, c cancels, r retries,
    p pauses, / filters, ? helps, q quits. What changes something is asked for first. A login of
    rythmiq_reader is enough to watch.

    \b
    Examples:
      rythmiq top
      rythmiq top --queue night --state failed --since 1d
      rythmiq top --view groups --user alice
      rythmiq top --interval 10s --no-color       # over a slow line
    """
    try:
        from rythmiq_ray.top.app import Top
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        raise ConfigurationError(f"{missing} is not installed: pip install 'rythmiq-ray[top]'") from None
    try:
        interval_s = seconds_of(interval)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--interval") from None
    if interval_s < _LEAST_S:
        raise typer.BadParameter(f"must be {_LEAST_S} s or more", param_hint="--interval")
    if (
        not (sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty())
        or os.environ.get("TERM", "dumb") == "dumb"
    ):
        raise typer.BadParameter(
            "it needs a terminal; `rythmiq queues`, `groups`, `jobs` and `drivers` list the same without one"
        )
    with database() as connection:
        wanted.resolved(connection)  # What is wrong with the database or a group's name is said before the screen goes.
    if no_color:
        os.environ["NO_COLOR"] = "1"
    chosen = view or (View.JOBS if wanted.given else View.QUEUES)
    Top(database_url(), reasons_of, view=chosen, given=wanted.written, interval_s=interval_s).run_in_terminal()
